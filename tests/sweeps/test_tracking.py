"""A tracked sweep of fakes in a process of its own: after a kill and a resume trackers hold every boundary once."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator

import pytest

from sweeps.results import SweepFolder, read_info, read_journal, read_state
from tests.sweeps import killing, trackers
from tests.sweeps.killing import driving, wait_until

KILLS = [pytest.param(1, False, id="driver"), pytest.param(2, True, id="everybody")]
"""How often, and whether all that a driver started is killed with it."""


@pytest.fixture
def tracked(monkeypatch):
    """Let drivers track."""
    monkeypatch.setenv(killing.TRACKING, killing.TRACKED)


def check(store) -> Iterator[trackers.WandbRun]:
    """Compare W&B's and TensorBoard's runs with the journals, trial by trial; gives W&B's runs."""
    folder = SweepFolder(store, "fake")
    home = folder.root / "tracking"
    infos = {info.trial_id: info for info in read_info(folder).trials}
    runs = trackers.wandb_runs(home / "wandb")
    assert sorted(run.id for run in runs) == sorted(f"fake-{trial_id}" for trial_id in infos)
    assert {run.group for run in runs} == {"fake"}
    for run in runs:
        trial = folder.trial(run.config["trial_id"])
        boundaries, state = read_journal(trial).boundaries, read_state(trial)
        assert run.steps == sorted(boundaries)
        assert [row["cmmd"] for row in run.history] == [boundaries[step]["metrics"]["cmmd"] for step in run.steps]
        assert [row["samples"]["_type"] for row in run.history if "samples" in row]
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in run.images())
        assert (run.summary["state"], run.exit_code) == (state.state, 0)
        assert run.config["name"] == infos[trial.name].name
    events = [trackers.tensorboard_values(path) for path in (home / "tensorboard").iterdir()]
    assert len(events) == len(infos)
    steps = sorted([step for step, _ in values["cmmd"]] for values in events)
    assert steps == sorted(run.steps for run in runs)
    yield from runs


def strike(driver, moment: int, everybody: bool) -> None:
    """Kill the driver after so many steps, or all that it started with it; what is left ends by itself."""
    wait_until(lambda: killing.steps_made(driver.store) >= moment, f"step {moment}")
    for pid in driver.alive() if everybody else [driver.process.pid]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    driver.process.wait()
    wait_until(lambda: not driver.alive(), "what it started ends")


@pytest.mark.slow
@pytest.mark.parametrize(("times", "everybody"), KILLS)
def test_after_kills_runs_have_every_boundary_once(tmp_path, tracked, times, everybody):
    for moment in sorted(random.Random(times).sample(range(20, 90), times)):
        with driving(tmp_path) as driver:
            strike(driver, moment, everybody)
    with driving(tmp_path, pace=0.0) as driver:
        assert driver.wait() == 0, (tmp_path / "printed.txt").read_text()
    runs = list(check(tmp_path))
    assert any(run.images() for run in runs)
    printed, home = (tmp_path / "printed.txt").read_text(), tmp_path / "sweeps" / "fake" / "tracking"
    assert f"wandb sync {home}/wandb/offline-run-*" in printed
    with driving(tmp_path, pace=0.0) as driver:  # nothing to do: nothing is written again
        assert driver.wait() == 0
    assert [run.folder for run in check(tmp_path)] == [run.folder for run in runs]


@pytest.mark.slow
def test_trials_known_from_another_sweep_are_tracked_like_trained_ones(tmp_path, tracked, monkeypatch):
    history = tmp_path / "history"
    monkeypatch.delenv(killing.TRACKING)
    with driving(tmp_path / "first", history=history, pace=0.0) as driver:
        assert driver.wait() == 0
    monkeypatch.setenv(killing.TRACKING, killing.TRACKED)
    with driving(tmp_path / "second", history=history, pace=0.0) as driver:
        assert driver.wait() == 0
    assert killing.steps_made(tmp_path / "second") == 0
    assert len(list(check(tmp_path / "second"))) == len(killing.NAMES)
