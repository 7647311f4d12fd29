"""The command line and what ends a run before it starts: one message, exit code 2, nothing trained."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prx.errors import UserError
from sweeps import __main__ as cli
from sweeps.results import SweepFolder, read_results
from sweeps.run import preflight
from tests.sweeps import fakes

ROOT = Path(__file__).parents[2]


def command(monkeypatch, *arguments):
    """Run the command line in this process; gives the exit code."""
    monkeypatch.setattr(sys, "argv", ["prx-sweep", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_a_wrong_yaml_is_one_message_with_its_line(monkeypatch, capsys, tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("name: x\nbase: embedded\naxes: {alignment: [none]}\ntrail: {steps: 10}\n")
    for verb in ("plan", "run"):
        assert command(monkeypatch, verb, path) == 2
        error = capsys.readouterr().err
        assert f"error: {path}:" in error
        assert f"{path}:4: trail: unknown key" in error
        assert "Traceback" not in error


def test_status_of_a_sweep_that_is_not_there(monkeypatch, capsys, tmp_path):
    assert command(monkeypatch, "status", "nothing", "--store", tmp_path) == 2
    assert f"error: {tmp_path}/sweeps/nothing: holds no sweep" in capsys.readouterr().err


def test_status_takes_the_yaml_too(monkeypatch, capsys, tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("name: nothing\n")
    assert command(monkeypatch, "status", path, "--store", tmp_path) == 2
    assert "sweeps/nothing: holds no sweep" in capsys.readouterr().err
    path.write_text("[1]\n")
    assert command(monkeypatch, "status", path, "--store", tmp_path) == 2
    assert "must be the YAML of a sweep, with a name" in capsys.readouterr().err


def test_an_address_that_does_not_answer(monkeypatch, tmp_path):
    plan, folder = fakes.make_plan("good-1"), SweepFolder(tmp_path, "fake")
    with pytest.raises(UserError, match=r"--address: no Ray cluster to use at 127\.0\.0\.1:1"):
        preflight(plan, folder, "127.0.0.1:1", None)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match="RAY_ADDRESS: no Ray cluster to use"):
        preflight(plan, folder, None, None)
    assert not list(tmp_path.iterdir())


def test_a_store_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--store: .* must be a folder that can be written; .*/file is not"):
        preflight(fakes.make_plan("good-1"), SweepFolder(tmp_path / "file", "fake"), None, None)


def test_concurrency_is_at_least_one(tmp_path):
    with pytest.raises(UserError, match="--max-concurrent must be at least 1, got 0"):
        preflight(fakes.make_plan("good-1"), SweepFolder(tmp_path, "fake"), None, 0)


SCRIPT = """
import sys
from pathlib import Path
from tests.sweeps import fakes
from sweeps.run import run_sweep
plan = fakes.make_plan("slow-1", "slow-2", "slow-3")
sys.exit(run_sweep(plan, store=Path(sys.argv[1]), parts=fakes.PARTS, max_concurrent=2).exit_code)
"""


def start(store):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(store)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )


def wait_for(folder, name, steps):
    for _ in range(600):
        found = [fakes.trained(path) for path in folder.root.glob("trials/*")]
        if any(len(trained) >= steps for trained in found):
            return
        time.sleep(0.1)
    raise AssertionError(f"{name} never got to {steps} steps")


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_in_the_middle_the_same_command_goes_on(tmp_path, sign):
    folder = SweepFolder(tmp_path, "fake")
    process = start(tmp_path)
    wait_for(folder, "a trial", 15)
    process.send_signal(sign)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == (-9 if sign == signal.SIGKILL else 130)
    assert "Traceback" not in output
    done = sum(len(fakes.trained(path)) for path in folder.root.glob("trials/*"))
    assert done < 120
    again = start(tmp_path)
    again.communicate(timeout=120)
    assert again.returncode == 0
    frame = read_results(folder.results)
    assert sorted(frame["step"]) == sorted([10, 20, 30, 40] * 3)
    assert set(frame["state"]) == {"complete"}
    assert frame["replayed"].any()
    for path in folder.root.glob("trials/*"):
        lost = len(fakes.trained(path)) - 40
        assert lost == 0 if sign != signal.SIGKILL else 0 <= lost <= 10
