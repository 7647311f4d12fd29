"""The command itself, training real models, killed or interrupted: it ends as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from sweeps.results import SweepFolder, read_info, read_results, read_state, read_steps_trained
from sweeps.steps import read_steps
from tests.sweeps.killing import MEASURED_BY_CLOCK, wait_until

SWEEP = """
name: killed
base: embedded
axes:
  alignment:
    - none
    - {name: always, patch: {losses.repa: &repa {use: repa, teacher: "embedded:dinov2", layer: 1, weight: 0.5}}}
    - {name: stops, patch: {losses.repa: {<<: *repa, stop_step: 16}}}
scheduler: {use: none}
trial: {steps: 32, eval_every: 8}
set:
  batch_size: 16
  warmup_steps: 4
  data.num_train: 256
  data.num_reference: 64
  sampling.num_steps: 2
  evaluation: {num_samples: 32, inception: null}
"""
NEEDED = 32 + 32 + 16
"""Two whole trainings, and what the one that stops does not share."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "killed.yaml"
    path.write_text(SWEEP)
    return path


@pytest.fixture(scope="module")
def untouched(tmp_path_factory, recipe):
    """The table when nobody interferes."""
    store = tmp_path_factory.mktemp("untouched")
    assert start(recipe, store).wait(timeout=600) == 0, printed(store)
    assert trained(store) == NEEDED
    return table(store)


def start(recipe: Path, store: Path) -> subprocess.Popen[bytes]:
    store.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "sweeps", "run", str(recipe), "--store", str(store)]
    with (store / "printed.txt").open("ab") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, cwd=Path(__file__).parents[2])


def printed(store: Path) -> str:
    return (store / "printed.txt").read_text()


def folder(store: Path) -> SweepFolder:
    return SweepFolder(store, "killed")


def trained(store: Path) -> int:
    """Count the updates made over all lives."""
    homes = (folder(store).root / "trials").glob("*")
    return sum(read_steps_trained(home) for home in homes)


def table(store: Path) -> pd.DataFrame:
    frame = read_results(folder(store).results).drop(columns=MEASURED_BY_CLOCK)
    return frame.sort_values(["trial_id", "step"]).reset_index(drop=True)


def at_step(process: subprocess.Popen[bytes], store: Path, step: int) -> None:
    wait_until(lambda: trained(store) >= step or process.poll() is not None, f"step {step}")
    assert process.poll() is None, printed(store)


@pytest.mark.slow
def test_killed_it_ends_with_the_same_figures(recipe, untouched, tmp_path):
    for step in (13, 45):
        process = start(recipe, tmp_path)
        at_step(process, tmp_path, step)
        process.kill()
        process.wait()
    assert start(recipe, tmp_path).wait(timeout=600) == 0, printed(tmp_path)
    pd.testing.assert_frame_equal(table(tmp_path), untouched)
    # Two trials at a time, and two kills: at the most four segments of eight steps were begun again.
    assert NEEDED <= trained(tmp_path) <= NEEDED + 4 * 8
    assert read_steps(folder(tmp_path), read_info(folder(tmp_path))).left == 0


@pytest.mark.slow
def test_interrupted_it_keeps_everything_and_goes_on(recipe, untouched, tmp_path):
    process = start(recipe, tmp_path)
    at_step(process, tmp_path, 20)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=600) == 130, printed(tmp_path)
    assert "Traceback" not in printed(tmp_path)
    states = {read_state(folder(tmp_path).trial(info.trial_id)).state for info in read_info(folder(tmp_path)).trials}
    assert "running" not in states
    assert start(recipe, tmp_path).wait(timeout=600) == 0, printed(tmp_path)
    pd.testing.assert_frame_equal(table(tmp_path), untouched)
    assert trained(tmp_path) == NEEDED  # not a step was lost
