"""The whole path: a head of its own, and a sweep sent to it with `ray job submit`.

PRX_SUBMIT_SWEEP names another sweep, such as sweeps/configs/quickstart.yaml.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SWEEP = os.environ.get("PRX_SUBMIT_SWEEP", "sweeps/configs/smoke.yaml")
START_S = 120
JOB_S = 1500


@dataclass(frozen=True)
class Head:
    """A running head: where it and its job server are, and the environment that may use them."""

    address: str
    server: str
    environment: dict[str, str] = field(repr=False)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # Short: Ray's socket paths below it have a limit.
    folder = Path(tempfile.mkdtemp(prefix="prx-", dir="/tmp"))
    gcs, server, client, agent = free_ports(4)
    environment = clean_environment(folder)
    where = ["--node-ip-address=127.0.0.1", f"--port={gcs}", f"--ray-client-server-port={client}"]
    where += ["--dashboard-host=127.0.0.1", f"--dashboard-port={server}", f"--temp-dir={folder / 'ray'}"]
    where.append(f"--dashboard-agent-listen-port={agent}")  # another Ray on this machine holds the default
    process = subprocess.Popen(
        [BIN / "ray", "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats", *where],
        env=environment,
        stdout=(folder / "head.log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        url = f"http://127.0.0.1:{server}"
        wait_for(url, process, folder / "head.log")
        yield Head(f"127.0.0.1:{gcs}", url, environment)
    finally:
        end(process)
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def clean_environment(folder: Path) -> dict[str, str]:
    """Return an environment with a token made for this test, and nothing of another cluster."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {
        "HOME": str(folder),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # Without this Ray replaces 127.0.0.1 by an address that the network reaches.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end_at = time.monotonic() + START_S
    while http_status(url) is None:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end_at, log.read_text()
        time.sleep(0.5)


def http_status(url: str) -> int | None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        return opener.open(f"{url}/api/version", timeout=5).status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        # The head leads a process group of its own, so this reaches nobody else.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run(
    head: Head, *command: str | Path, without: tuple[str, ...] = (), **changes: str
) -> subprocess.CompletedProcess[str]:
    environment = head.environment | {"RAY_API_SERVER_ADDRESS": head.server} | changes
    environment = {name: value for name, value in environment.items() if name not in without}
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=JOB_S,
    )


def results(store: Path) -> Path:
    name = yaml.safe_load((ROOT / SWEEP).read_text())["name"]
    return store / "sweeps" / name / "results.parquet"


def test_without_the_token_nothing_is_told(head: Head):
    assert http_status(head.server) == 401


def test_a_wrong_token_is_refused(head: Head):
    wrong = secrets.token_hex(32)
    done = run(head, BIN / "ray", "job", "submit", "--", "true", RAY_AUTH_TOKEN=wrong)
    assert done.returncode != 0
    assert "AuthenticationError" in done.stdout


def test_our_own_command_refuses_a_wrong_token_in_one_message(head: Head, tmp_path: Path):
    command = [sys.executable, "-m", "cluster", "submit", SWEEP, "--store", str(tmp_path)]
    done = run(head, *command, RAY_AUTH_TOKEN=secrets.token_hex(32))
    assert done.returncode == 2
    assert "refuses the token that was sent" in done.stdout
    assert "Traceback" not in done.stdout


ATTACH = """
import os, sys
from pathlib import Path
import ray
from cluster.connect import attach
with attach(sys.argv[1], num_cpus=None, log_dir=Path("."), environment={"PRX_PLACE": "there"}) as attached:
    assert not attached.owned
    place = ray.get(ray.remote(os.getenv).remote("PRX_PLACE"))
    print(attached.resources()["CPU"], place, os.environ["RAY_AUTH_MODE"])
print("left", "RAY_AUTH_MODE" in os.environ)
"""


def test_attach_joins_with_the_token_and_leaves(head: Head):
    done = run(head, sys.executable, "-c", ATTACH, head.address, without=("RAY_AUTH_MODE",))
    assert done.stdout.splitlines() == ["2.0 there token", "left False"]


def test_attach_tells_a_wrong_token_from_a_missing_one(head: Head):
    wrong = run(head, sys.executable, "-c", ATTACH, head.address, RAY_AUTH_TOKEN=secrets.token_hex(32))
    assert "a Ray head is there and refuses the token (the token found in" in wrong.stdout
    hidden = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
    none = run(head, sys.executable, "-c", ATTACH, head.address, without=hidden)
    assert "refuses the token (no token was found or sent)" in none.stdout


def test_a_sweep_runs_as_a_job(head: Head, tmp_path: Path):
    sweep = ["python", "-m", "sweeps", "run", SWEEP, "--store", str(tmp_path)]
    done = run(head, BIN / "ray", "job", "submit", "--working-dir", ".", "--", *sweep)
    assert done.returncode == 0, done.stdout
    assert results(tmp_path).is_file(), done.stdout


def test_the_exit_status_of_the_job_comes_back(head: Head, tmp_path: Path):
    broken = ROOT / "sweeps" / "configs" / "absent.yaml"
    from cluster import launch

    text: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
            patch.setenv(name, head.environment[name])
        command = ["python", "-m", "sweeps", "run", broken.name, "--store", str(tmp_path)]
        status = launch.submit(command, address=head.server, working_dir=ROOT, write=text.append)
    assert status == 2, "".join(text)
    assert broken.name in "".join(text)
