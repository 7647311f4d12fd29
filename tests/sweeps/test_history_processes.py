"""Real processes over one history: no step is trained twice, and one that is killed is not waited for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from sweeps.history.store import HistoryStore
from tests.sweeps import fakes, places

ROOT = Path(__file__).parents[2]
NAMES = ("slow-1", "slow-2")
PLAYER = """
import json, sys, time
from pathlib import Path
from sweeps.history.remember import waypoints
from sweeps.trial import Settings, TrialRun
from tests.sweeps import fakes

home, history, *names = sys.argv[1:]
for name in names:
    trial = fakes.make_plan(name).trials[0]
    folder = Path(home) / name
    folder.mkdir(parents=True)
    points = waypoints({"t": (trial.config, fakes.Lineage(trial.config, Path()))})["t"]
    config = json.loads(json.dumps(trial.config.model_dump(mode="json")))
    run = TrialRun(Settings(
        trial_id=name, config=config, root=home, folder=str(folder), cache=home, metric="cmmd",
        trainer=fakes.PARTS.trainer, evaluate=fakes.PARTS.evaluate, history=history, waypoints=points,
        lease_seconds=3600.0,
    ))
    while run.reached < 40:
        if "waits" in run.next():
            time.sleep(0.02)
    run.close()
"""


@pytest.fixture(params=["folder", "s3"])
def address(request, tmp_path) -> str:
    server = request.getfixturevalue("s3") if request.param == "s3" else ""
    return places.address(request.param, tmp_path, server)


def player(home: Path, history: str) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", PLAYER, str(home), history, *NAMES]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def trained(root: Path, name: str) -> Counter[int]:
    return Counter(step for home in sorted(root.glob("player-*")) for step in fakes.trained(home / name))


def finish(players: list[subprocess.Popen[str]]) -> None:
    for process in players:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error


@pytest.mark.slow
def test_processes_side_by_side_train_every_step_once(tmp_path, address):
    finish([player(tmp_path / f"player-{number}", address) for number in range(3)])
    for name in NAMES:
        assert trained(tmp_path, name) == Counter(range(1, 41))
    store = HistoryStore(address)
    assert len([path for path in places.paths(store) if path.endswith("entry.json")]) == 16
    assert [path for path in places.paths(store, "leases") if path.endswith(".json")] == []


@pytest.mark.slow
def test_a_killed_process_costs_its_segment_and_is_not_waited_for(tmp_path, address):
    """Its lease would live for an hour."""
    victim = player(tmp_path / "player-0", address)
    while not trained(tmp_path, "slow-1")[13]:
        assert victim.poll() is None, victim.communicate()[1]
        time.sleep(0.01)
    victim.kill()
    victim.communicate()
    assert any(path.endswith(".json") for path in places.paths(HistoryStore(address), "leases"))
    finish([player(tmp_path / f"player-{number}", address) for number in (1, 2)])
    found = trained(tmp_path, "slow-1")
    assert set(found) == set(range(1, 41))
    assert {step for step, times in found.items() if times > 1} <= set(range(11, 21))
    assert max(found.values()) == 2
    assert trained(tmp_path, "slow-2") == Counter(range(1, 41))
