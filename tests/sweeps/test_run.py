"""A sweep of fakes on a real Ray: crashes, no numbers, dead processes, early stopping, resume, exit codes."""

from __future__ import annotations

import io
import os
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console

from sweeps.report_end import print_end
from sweeps.results import SweepFolder, read_results, read_state
from sweeps.run import run_sweep
from sweeps.session import sweep_info
from sweeps.status import exclusive, render_status
from sweeps.trial import Settings, TrialRun
from tests.sweeps import fakes

NAMES = ("good-3", "good-1", "good-2", "good-5", "crash-2", "nan-2", "die-9", "good-4")
HALVING = "{use: halving, grace_steps: 10, reduction_factor: 2}"


def text_of(run):
    output = io.StringIO()
    result = run(Console(file=output, width=200))
    return result, output.getvalue()


class Sweep:
    """The module's one big run, and what it printed."""

    def __init__(self, store: Path) -> None:
        self.store, self.folder = store, SweepFolder(store, "fake")
        self.plan = fakes.make_plan(*NAMES, scheduler=HALVING)
        self._killed_before("good-1")
        self.outcome, self.text = text_of(
            lambda console: run_sweep(self.plan, store=store, parts=fakes.PARTS, max_concurrent=2, console=console)
        )
        self.frame = read_results(self.outcome.results_path)

    def home(self, name):
        (trial,) = [trial for trial in self.plan.trials if trial.cell.name == name]
        return self.folder.trial(trial.trial_id)

    def state(self, name):
        return read_state(self.home(name))

    def _killed_before(self, name):
        """Leave what a driver killed at step 25 of a trial leaves."""
        (trial,) = [trial for trial in self.plan.trials if trial.cell.name == name]
        paths = {"root": str(self.folder.root), "folder": str(self.home(name)), "cache": str(self.folder.cache)}
        parts = {"trainer": fakes.PARTS.trainer, "evaluate": fakes.PARTS.evaluate}
        config = trial.config.model_dump(mode="json")
        run = TrialRun(Settings(trial.trial_id, config, metric="cmmd", **paths, **parts))
        assert asdict(run.settings)["trial_id"] == trial.trial_id
        for _ in range(5):
            run.next()


@pytest.fixture(scope="module")
def sweep(ray_here, tmp_path_factory):
    return Sweep(tmp_path_factory.mktemp("store"))


def test_every_trial_ends_in_the_right_state(sweep):
    states = {name: sweep.state(name) for name in NAMES}
    assert {name: state.state for name, state in states.items()} == {
        "good-3": "complete", "good-1": "complete", "good-2": "complete", "good-4": "pruned", "good-5": "pruned",
        "crash-2": "failed", "nan-2": "failed", "die-9": "pruned",
    }  # fmt: skip
    assert states["good-5"].reason == "rung 10: cmmd 5.1 behind 3.1 (kept best 4 of 7)"
    assert states["crash-2"].reason == "RuntimeError: the fake broke at step 15"
    assert states["nan-2"].reason == "NonFiniteError: step 10: cmmd must be a finite number, got nan"
    assert sweep.outcome.exit_code == 1
    assert len(sweep.outcome.failed) == 2
    assert sweep.outcome.unfinished == 0


def test_results_have_a_row_per_boundary(sweep):
    steps = {name: list(group["step"]) for name, group in sweep.frame.groupby("name")}
    assert steps["good-2"] == [10, 20, 30, 40]
    assert steps["good-5"] == [10]
    assert steps["crash-2"] == [10]
    assert steps["nan-2"] == [0]
    assert sweep.frame.loc[sweep.frame["name"] == "good-3", "is_baseline"].all()
    assert (sweep.frame["device_seconds"] >= 0).all()


def test_the_killed_trial_went_on_from_its_checkpoint(sweep):
    rows = sweep.frame[sweep.frame["name"] == "good-1"]
    assert list(zip(rows["step"], rows["replayed"], strict=True)) == [
        (10, True), (20, True), (30, False), (40, False),
    ]  # fmt: skip
    assert fakes.trained(sweep.home("good-1")) == [*range(1, 26), *range(21, 41)]


def test_paused_trials_train_no_step_twice(sweep):
    assert fakes.trained(sweep.home("good-2")) == list(range(1, 41))
    assert fakes.trained(sweep.home("good-5")) == list(range(1, 11))


def test_a_trial_whose_process_died_is_tried_again_and_its_cohort_waits_for_it(sweep):
    """`die-9` kills its process in step 5, before the first rung, and is compared there all the same."""
    assert fakes.trained(sweep.home("die-9")) == [*range(1, 5), *range(1, 11)]
    assert sweep.state("die-9").reason == "rung 10: cmmd 9.1 behind 3.1 (kept best 4 of 7)"
    assert sweep.text.count(" restarted ") == 1
    assert not (sweep.home("die-9") / "error.txt").exists()


@pytest.mark.slow
def test_a_trial_that_takes_every_process_down_fails_after_three(ray_here, tmp_path):
    plan = fakes.make_plan("die-2", "doom-1")
    outcome, text = text_of(
        lambda console: run_sweep(plan, store=tmp_path, parts=fakes.PARTS, max_concurrent=1, console=console)
    )
    (died, doomed) = [SweepFolder(tmp_path, "fake").trial(trial.trial_id) for trial in plan.trials]
    assert (outcome.exit_code, outcome.unfinished) == (1, 0)
    assert fakes.trained(died) == [*range(1, 5), *range(1, 41)]
    assert (read_state(died).state, read_state(doomed).state) == ("complete", "failed")
    assert read_state(doomed).reason.startswith("the worker process died: ")
    assert (doomed / "error.txt").read_text().startswith("the worker process died: ")
    assert len(set((doomed / "died").read_text().split())) == 3
    assert text.count(" restarted ") == 1 + 2


def test_the_place_of_a_trial_that_failed_goes_to_the_best_in_reserve(sweep):
    """`crash-2` passes rung 10 and breaks at step 15: `good-4`, which waited in reserve, goes on to rung 20."""
    assert fakes.trained(sweep.home("good-4")) == list(range(1, 21))
    assert "in reserve after rung 10" in sweep.text


def test_the_report_is_there_when_a_run_ends_and_knows_its_circumstances(sweep):
    assert "the report could not be written" not in sweep.text
    page = (sweep.folder.root / "report.html").read_text()
    for words in ("· not running ·", "3 complete", "3 pruned", "2 failed", "the fake broke at step 15", "python"):
        assert words in page, words


def test_what_is_printed(sweep):
    assert f"logs: {sweep.folder.logs}" in sweep.text
    for kind in ("started", "boundary", "paused", "resumed", "pruned", "complete", "failed", "restarted"):
        assert f" {kind} " in sweep.text
    assert "Traceback" not in sweep.text
    _, end = text_of(lambda console: print_end(sweep.outcome, console))
    lines = [line.split()[0] for line in end.splitlines() if line.strip()]
    assert lines[2:5] == ["good-1", "good-2", "good-3"]
    assert f"results: {sweep.folder.results}" in end
    assert f"report: {sweep.folder.root / 'report.html'}" in end
    steps, rows = sweep.outcome.steps, sweep.frame[sweep.frame["step"] > 0]
    assert (steps.asked, steps.trained, steps.taken_over) == (8 * 40, 10 * len(rows), 0)
    assert steps.beside == 10 + 5  # nan-2 measured nothing, good-1 was killed between two boundaries
    assert str(sweep.outcome.steps) in end
    assert f"samples of the leader: {sweep.home('good-1') / 'samples' / 'step-00000040.png'}" in end
    assert "failed: crash-2: RuntimeError: the fake broke at step 15 (traceback: " in end
    _, status = text_of(lambda console: console.print(render_status(sweep.folder)))
    assert "fake: not running; 3 complete, 3 pruned, 2 failed" in status
    assert f"\n{sweep.outcome.steps}\n" in status


def test_running_again_trains_nothing_and_needs_no_ray(sweep):
    """Without the failed cells (those are tried again) every rung is decided from the journals alone."""
    names = [name for name in NAMES if sweep.state(name).state != "failed"]
    before = {name: fakes.trained(sweep.home(name)) for name in names}
    plan = fakes.make_plan(*names, scheduler=HALVING)
    outcome, text = text_of(
        lambda console: run_sweep(plan, store=sweep.store, parts=fakes.PARTS,
                                  console=console)
    )  # fmt: skip
    assert outcome.exit_code == 0
    assert "started" not in text
    assert {name: fakes.trained(sweep.home(name)) for name in names} == before
    frame = read_results(outcome.results_path)
    assert frame["replayed"].all()
    assert set(frame.loc[frame["step"] == 40, "name"]) == {"good-1", "good-2", "good-3"}


def test_a_sweep_is_run_by_one_process_at_a_time(tmp_path):
    from prx.errors import UserError

    plan = fakes.make_plan("good-1")
    folder = SweepFolder(tmp_path, "fake")
    folder.root.mkdir(parents=True)
    with exclusive(folder), pytest.raises(UserError, match=f"is being run by process {os.getpid()}"):
        run_sweep(plan, store=tmp_path, parts=fakes.PARTS, console=Console(file=io.StringIO()))


def test_what_ranks_is_what_decides():
    plan = fakes.make_plan("good-1", more="objectives: {adherence: max, cmmd: min}\n")
    assert (sweep_info(plan).metric, sweep_info(plan).mode) == ("adherence", "max")
    plan = fakes.make_plan("good-1", scheduler="{use: asha}", more="objectives: {adherence: max, cmmd: min}\n")
    assert (sweep_info(plan).metric, sweep_info(plan).mode) == ("cmmd", "min")
