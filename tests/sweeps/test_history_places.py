"""Trials and whole sweeps over every kind of history, and what happens when it is damaged or interrupted."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from prx.errors import UserError
from sweeps import __main__ as cli
from sweeps.history.store import HistoryStore
from sweeps.run import run_sweep
from tests.sweeps import alone, fakes
from tests.sweeps.alone import play, points
from tests.sweeps.places import KEY_ID, SECRET, paths, s3_uri, write

ROOT = Path(__file__).parents[2]
NEEDED = [*range(1, 41)]


@pytest.fixture
def start(tmp_path, address):
    return partial(alone.start, tmp_path, address)


def test_trials_take_over_from_each_other_wherever_the_history_lies(start, address):
    first, second = start("a"), start("b")
    assert play(first, until=10) == [(10, False)]
    assert second.next()["replayed"]
    assert first.next()["step"] == 15
    assert second.next()["waits"] == 20
    assert play(first, until=20) == [(20, False)]
    assert play(second, until=30) == [(20, True), (30, False)]
    assert play(first) == [(30, True), (40, False)]
    assert sorted(fakes.trained(first.folder) + fakes.trained(second.folder)) == NEEDED
    assert (second.folder / "samples" / "step-00000020.png").is_file()
    assert not any("partial" in path for path in paths(HistoryStore(address)))


FILES = ("state/entry.json", "state/weights", "measurement/entry.json", "measurement/grid.png")
"""Every file of a boundary's entries."""


@pytest.mark.parametrize("address", ["folder", "s3"], indirect=True)
@pytest.mark.parametrize("how", ["cut", "changed", "deleted"])
@pytest.mark.parametrize("which", FILES)
def test_any_damage_is_told_and_ends_in_the_same_results(start, address, which, how):
    play(start("a"), until=20)
    store, point = HistoryStore(address), points()[1]
    kind, _, name = which.partition("/")
    entry = store.get(point.state if kind == "state" else point.measurement)
    inner = "" if name == "entry.json" else f"{entry.attempt}/"
    path = f"{store.folder(entry.key)}/{inner}{name}"
    content = store._read(path)
    if how == "deleted":
        store.files.delete_file(path)
    else:
        changed = content[:-2] + bytes(255 - byte for byte in content[-2:])
        write(store, path, changed if how == "changed" else content[: len(content) // 2])
    again = start("b")
    found = play(again)
    assert [step for step, _ in found] == [10, 20, 30, 40]
    assert again.journal.boundaries[40]["metrics"]["cmmd"] == 1 + 1 / 40
    told = again.recall.damage()
    silent = how == "deleted" and name == "entry.json"  # as if it had never been written
    assert len(told) == (0 if silent else 1), told
    assert silent or name in told[0]
    whole = start("c")
    assert play(whole) == [(step, True) for step in (10, 20, 30, 40)]
    assert whole.recall.damage() == []


class Cut(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("address", ["folder", "s3"], indirect=True)
@pytest.mark.parametrize("number", range(6))
def test_cut_off_at_any_write_the_same_command_goes_on(start, address, monkeypatch, number):
    """A boundary's uploads and records come in an order in which each may be the last thing that happened."""
    writes = []

    def counted(self, path, content):
        writes.append(path)
        if len(writes) == number + 1:
            raise Cut
        return original(self, path, content)

    original = HistoryStore._replace
    monkeypatch.setattr(HistoryStore, "_replace", counted)
    first = start("a")
    with pytest.raises(Cut):
        play(first)
    monkeypatch.setattr(HistoryStore, "_replace", original)
    first.abandon()  # a killed process leaves its claim; who asks sees that it is gone
    again = start("a")
    assert [step for step, _ in play(again)][-1] == 40
    assert again.recall.damage() == []
    other = start("b")
    assert play(other) == [(step, True) for step in (10, 20, 30, 40)]


def test_files_dropped_while_they_are_fetched_are_no_damage(start, address, tmp_path, monkeypatch):
    play(start("a"))
    store, state = HistoryStore(address), points()[-1].state
    entry = store.get(state)

    def dropped(*arguments):
        HistoryStore(address).drop_files(entry)
        return original(*arguments)

    original = sys.modules["sweeps.history.store"].download
    monkeypatch.setattr("sweeps.history.store.download", dropped)
    assert not store.fetch(entry, tmp_path / "out")
    assert (store.damage, store.get(state).files) == ([], {})


SCRIPT = """
import sys
from pathlib import Path
from tests.sweeps import alone, fakes
from tests.sweeps.alone import play, points
from sweeps.run import run_sweep
plan = fakes.make_plan("good-1", "good-2")
sys.exit(run_sweep(plan, store=Path(sys.argv[1]), history=sys.argv[2], parts=fakes.PARTS, max_concurrent=2).exit_code)
"""


@pytest.mark.slow
def test_a_sweep_over_s3_writes_its_credentials_nowhere(s3, tmp_path):
    uri = s3_uri(s3, "a-sweep")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "runs"), uri], cwd=ROOT, env=clean,
                          capture_output=True, text=True, timeout=240, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert len([path for path in paths(HistoryStore(uri)) if path.endswith("entry.json")]) == 16
    written = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(b"a-sweep" in path.read_bytes() for path in written)
    for secret in (SECRET, "a%2Fvery", KEY_ID):
        assert [path for path in written if secret.encode() in path.read_bytes()] == []
        assert secret not in done.stdout + done.stderr


def test_history_that_cannot_be_used_ends_the_command_before_anything_is_written(s3, tmp_path, monkeypatch, capsys):
    sweep = ROOT / "sweeps" / "configs" / "smoke.yaml"
    nowhere = s3_uri(s3, "p", bucket="nobodys")
    arguments = ["run", str(sweep), "--store", f"{tmp_path}/runs", "--history", nowhere]
    monkeypatch.setattr(sys, "argv", ["prx-sweep", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "error: --history: s3://nobodys/p" in error
    assert "there is no bucket nobodys" in error
    assert SECRET not in error
    assert list(tmp_path.iterdir()) == []


def test_credentials_in_the_uri_and_a_cluster_of_somebody_else(s3, tmp_path, monkeypatch):
    monkeypatch.setattr("sweeps.run.check", lambda address: None)
    with pytest.raises(UserError, match="--history: credentials in the URI do not reach the workers of a running"):
        run_sweep(fakes.make_plan("good-1"), store=tmp_path, history=s3_uri(s3, "p"), address="127.0.0.1:1")
    assert list(tmp_path.iterdir()) == []
