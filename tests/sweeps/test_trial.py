"""One trial in this process: boundaries, replay, every kind of crash."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from fractions import Fraction

import pytest

from prx.errors import NonFiniteError, UserError
from sweeps.results import read_journal
from sweeps.trial import Settings, TrialActor, TrialRun, settle_process
from tests.sweeps import fakes


@pytest.fixture
def start(tmp_path):
    def make(name="good-3", also=(), metric="cmmd"):
        trial = fakes.make_plan(name).trials[0]
        config = json.loads(json.dumps(trial.config.model_dump(mode="json")))
        config["evaluation"]["also"] = list(also)
        paths = {"root": str(tmp_path), "folder": str(tmp_path / "trial"), "cache": str(tmp_path / "cache")}
        parts = {"trainer": fakes.PARTS.trainer, "evaluate": fakes.PARTS.evaluate}
        return TrialRun(Settings(trial.trial_id, config, metric=metric, **paths, **parts))

    return make


def play(run, until="done"):
    """Call `next` to the end, or to a boundary; gives the reports of boundaries."""
    found = []
    while True:
        result = run.next()
        if "metrics" in result:
            found.append(result)
            if result["done"] or result["step"] == until:
                return found


def test_boundaries_of_an_uninterrupted_trial(start):
    run = start()
    first = run.next()
    assert first.pop("spent_seconds") > 0
    assert first == {"step": 5, "done": False, "steps_trained": 5}  # too few steps for a rate
    found = play(run)
    assert [(r["step"], r["done"], r["replayed"]) for r in found] == [
        (10, False, False), (20, False, False), (30, False, False), (40, True, False),
    ]  # fmt: skip
    assert found[0]["cmmd"] == pytest.approx(3.1)
    assert found[0]["metrics"].keys() >= {"cmmd", "cmmd_se", "adherence", "loss", "samples_per_second"}
    assert found[-1]["wall_seconds"] >= found[0]["wall_seconds"] > 0
    assert sorted(path.name for path in (run.folder / "samples").iterdir())[-1] == "step-00000040.png"
    assert fakes.trained(run.folder) == list(range(1, 41))


def test_other_sampling_settings_are_measured_at_the_end(start):
    also = [{"guidance_scale": 10.0}, {"guidance_scale": 60.0, "num_steps": 9}]
    *earlier, last = play(start(also=also))
    assert not any("@" in key for report in earlier for key in report["metrics"])
    assert last["metrics"]["cmmd"] == pytest.approx(3 + 1 / 40)
    assert last["metrics"]["cmmd@guidance_scale=10"] == pytest.approx(3 + 1 / 50)
    assert last["metrics"]["cmmd@num_steps=9,guidance_scale=60"] == pytest.approx(3 + 1 / 100)
    assert last["metrics"]["cmmd_se@guidance_scale=10"] == 0.01


def test_a_sweep_may_be_about_speed(start):
    found = play(start(metric="samples_per_second"))
    assert [r["step"] for r in found] == [10, 20, 30, 40]
    assert all(r["samples_per_second"] == r["metrics"]["samples_per_second"] > 0 for r in found)


def test_the_loss_is_the_mean_over_a_segment_wherever_it_was_cut(start):
    run = start()
    play(run, until=20)
    run.next()
    run.close()  # saved at step 25
    assert read_journal(run.folder).losses == {25: (sum(Fraction(1 / step) for step in range(21, 26)), 5)}
    again = start()
    *_, third, _ = play(again)
    assert third["metrics"]["loss"] == float(sum(Fraction(1 / step) for step in range(21, 31)) / 10)
    assert read_journal(run.folder).losses == {}


def test_killed_between_boundaries_loses_one_segment_and_replays_the_rest(start):
    run = start()
    play(run, until=20)
    run.next()  # five more steps, then the process is gone
    again = start()
    found = play(again)
    assert [(r["step"], r["replayed"]) for r in found] == [(10, True), (20, True), (30, False), (40, False)]
    assert fakes.trained(run.folder) == [*range(1, 26), *range(21, 41)]
    assert found[1]["metrics"] == again.journal.boundaries[20]["metrics"]


def test_killed_between_checkpoint_and_journal_measures_without_training(start):
    run = start()
    play(run, until=20)
    path = run.folder / "journal.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    found = play(start(), until=20)
    assert [(r["step"], r["replayed"]) for r in found] == [(10, True), (20, False)]
    assert fakes.trained(run.folder) == list(range(1, 21))
    assert read_journal(run.folder).boundaries[20]["metrics"]["loss"] == run.journal.boundaries[20]["metrics"]["loss"]


def test_a_lost_checkpoint_is_trained_again_but_measured_once(start):
    run = start()
    play(run, until=20)
    shutil.rmtree(run.folder / "checkpoints")
    found = play(start())
    assert [(r["step"], r["replayed"]) for r in found] == [(10, True), (20, True), (30, False), (40, False)]
    assert list(read_journal(run.folder).boundaries) == [10, 20, 30, 40]
    assert (run.folder / "journal.jsonl").read_text().count('"kind": "boundary"') == 4


def test_closing_between_boundaries_keeps_every_step(start):
    run = start()
    play(run, until=10)
    run.next()
    run.close()
    run.close()
    again = start()
    assert again.journal.wall_seconds >= run.journal.boundaries[10]["wall_seconds"]
    play(again)
    assert fakes.trained(run.folder) == list(range(1, 41))


def test_skip_leaves_out_what_was_reported_before_a_pause(start):
    play(start(), until=20)
    again = start()
    again.skip(10)
    assert [r["step"] for r in play(again, until=20)] == [20]


def test_who_is_paused_while_it_replays_still_reports_the_rest(start):
    """Else it would train beyond a rung that it has reached long ago."""
    play(start(), until=30)
    actor = TrialActor.__new__(TrialActor)
    actor._run = start()
    assert actor.step()["step"] == 10
    paused = actor.save_checkpoint("")
    actor._run = start()
    actor.load_checkpoint(paused)
    assert [report["step"] for report in play(actor._run, until=30)] == [20, 30]


def test_a_metric_that_is_no_number_fails_the_trial(start):
    with pytest.raises(NonFiniteError, match="step 10: cmmd must be a finite number, got nan"):
        play(start("nan-1"))


def test_the_actor_keeps_the_traceback_and_survives_what_is_no_fault_of_its_process(start):
    actor = TrialActor.__new__(TrialActor)
    actor._run = start("nan-1")
    results = [actor.step(), actor.step()]
    assert results[1]["done"]
    assert results[1]["failed"] == "NonFiniteError: step 10: cmmd must be a finite number, got nan"
    assert "Traceback" in (actor._run.folder / "error.txt").read_text()
    assert actor.reset_config(asdict(start("crash-1").settings))
    for _ in range(2):
        actor.step()
    with pytest.raises(RuntimeError, match="broke at step 15"):
        actor.step()
    assert (actor._run.folder / "error.txt").read_text().endswith("RuntimeError: the fake broke at step 15\n")
    assert actor.save_checkpoint("") == {"step": 10}


def test_a_store_that_workers_cannot_see_is_named(tmp_path):
    with pytest.raises(UserError, match="--store must be a folder that all nodes share"):
        settle_process(tmp_path)
