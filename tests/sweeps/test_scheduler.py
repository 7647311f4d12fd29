"""The cohort scheduler on a simulated Tune: random arrival, few workers, failures; replay; waiting."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import TrialScheduler

from sweeps.early_stopping import build_scheduler, make_scheduler
from sweeps.ledger import Ledger
from sweeps.results import SweepFolder, SweepInfo, TrialInfo
from sweeps.simulation.curves import Curve, CurveSet
from sweeps.simulation.simulate import Arrival, simulate
from sweeps.simulation.tune import SimulatedTune, Verdicts
from sweeps.stopping.spec import SchedulerSpec, StopSpec
from tests.sweeps.fakes import make_info, make_plan

STEPS, EVERY = 40, 10
HALVING = SchedulerSpec(use="halving", reduction_factor=2, noise_aware=False)


def quality(name, step):
    return float(name[1:]) + 1 / step


def curves_of(names, seeds=(0,), baseline="", failing=(), value=quality, **settings):
    """Make curves of cells u0, u1, ... that rank by their number."""
    curves = []
    for seed in seeds:
        for name in names:
            info = TrialInfo(f"{name}-{seed}", name, name, name == baseline, seed, {}, **settings.get(name, {}))
            values = {step: (value(name, step), 0.0) for step in range(EVERY, STEPS + 1, EVERY)}
            curves.append(Curve(info, values, fails_at=20 if info.trial_id in failing else None))
    info = SweepInfo("sim", "cmmd", "min", STEPS, EVERY, (), tuple(curve.info for curve in curves))
    return CurveSet(info, tuple(curves))


def tune_of(curves, spec, workers=2, seed=0):
    tune = SimulatedTune(curves, workers, range(len(curves.curves)), lambda curve: 1.0, random.Random(seed))
    scheduler = build_scheduler(spec, curves.info, tune, tune.verdicts)
    scheduler.join(curves.info.trials)
    return tune, scheduler


def test_survivors_depend_on_neither_arrival_nor_workers():
    curves, outcomes = curves_of([f"u{i}" for i in range(9)]), set()
    for seed in range(300):
        outcome = simulate(curves, HALVING, Arrival(random.Random(seed).randint(1, 9), 1.0, seed))
        outcomes.add(tuple(sorted(outcome.trials.items(), key=lambda item: item[0])))
        assert outcome.steps == EVERY * (9 + 5 + 3 * 2)
    (trials,) = outcomes
    assert [name for name, end in trials if end.state == "complete"] == ["u0-0", "u1-0", "u2-0"]
    assert dict(trials)["u8-0"].reason == "rung 10: cmmd 8.1 behind 4.1 (kept best 5 of 9)"
    assert dict(trials)["u3-0"].reason == "rung 20: cmmd 3.05 behind 2.05 (kept best 3 of 5)"


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_failures_and_seeds_never_hang_and_order_decides_nothing(workers):
    for case in range(60):
        rng = random.Random(case)
        names = [f"u{i}" for i in range(4)]
        failing = rng.sample([f"{name}-{s}" for name in names for s in (0, 1)], rng.randint(1, 8))
        curves = curves_of(names, (0, 1), "u3", failing)
        outcomes = [simulate(curves, HALVING, Arrival(workers, 1.0, seed)) for seed in range(3)]
        assert len({tuple(sorted(outcome.trials.items(), key=str)) for outcome in outcomes}) == 1
        assert all(end.state != "pruned" for name, end in outcomes[0].trials.items() if name.startswith("u3"))
        if {"u0-0", "u0-1"} <= set(failing) and not {"u2-0", "u2-1"} & set(failing):
            assert "u2" in outcomes[0].survivors  # promoted from the reserve


def test_a_loser_waits_in_reserve_without_a_worker_and_is_out_at_the_end():
    tune, scheduler = tune_of(curves_of(["u0", "u1", "u2", "u3"]), HALVING, workers=4)
    tune.run(scheduler)
    reserved = [reason for trial_id, reason in tune.verdicts.pauses if trial_id == "u2-0"]
    behind = "rung 10: cmmd 2.1 behind 1.1 (kept best 2 of 4)"
    assert reserved[-1] == f"in reserve after {behind}"
    assert set(reserved[:-1]) <= {"waits at rung 10"}
    assert tune.verdicts.ended["u2-0"] == ("pruned", behind)
    assert {t.trial_id: t.step for t in tune.trials} == {"u0-0": 40, "u1-0": 20, "u2-0": 10, "u3-0": 10}


def test_waiting_for_a_trial_that_never_comes_is_an_error_and_no_hang():
    tune, scheduler = tune_of(curves_of(["u0", "u1"]), HALVING)
    tune.drop("u1-0")
    with pytest.raises(RuntimeError, match="rung 10 waits for u1 seed 0, which no trial will report"):
        tune.run(scheduler)


def test_replay_decides_before_anything_starts():
    tune, scheduler = tune_of(curves_of([f"u{i}" for i in range(4)]), HALVING)
    for i in range(4):
        scheduler.replay(f"u{i}-0", 10, {"cmmd": quality(f"u{i}", 10)})
    assert scheduler.open_rungs() == (20,)
    assert tune.verdicts.ended == {}  # u2 and u3 are in reserve: a survivor may fail
    scheduler.replay("u0-0", 20, {"cmmd": 0.0})
    scheduler.replay("u1-0", 20, {"cmmd": 1.0})
    assert [trial.trial_id for trial in tune.waiting] == ["u0-0", "u1-0"]
    assert set(tune.verdicts.ended) == {"u2-0", "u3-0"}
    tune.run(scheduler)
    assert set(tune.verdicts.ended) == {"u1-0", "u2-0", "u3-0"}


def test_a_trial_left_undone_is_not_compared_with_what_it_had():
    tune, scheduler = tune_of(curves_of(["u0", "u1", "u2"]), SchedulerSpec(use="halving", grace=20, noise_aware=False))
    scheduler.replay("u0-0", 10, {"cmmd": 0.0})
    scheduler.settled("u0-0")
    tune.drop("u0-0")
    tune.run(scheduler)
    assert tune.verdicts.ended["u2-0"][1] == "rung 20: cmmd 2.05 behind 1.05 (kept best 1 of 2)"


def test_a_loser_that_is_replaying_is_stopped_at_its_next_report():
    tune, scheduler = tune_of(curves_of(["u0", "u1"]), SchedulerSpec(use="halving", grace_steps=10))
    scheduler.replay("u1-0", 10, {"cmmd": 9.0})
    for trial in tune.waiting:
        trial.status = "RUNNING"
        scheduler.on_trial_add(tune, trial)
    first, second = tune.waiting
    tune.scheduler = scheduler
    assert scheduler.on_trial_result(tune, first, {"step": 10, "cmmd": 1.0}) == TrialScheduler.CONTINUE
    assert scheduler.on_trial_result(tune, second, {"step": 5}) == TrialScheduler.CONTINUE
    assert scheduler.on_trial_result(tune, second, {"step": 10, "cmmd": 9.0}) == TrialScheduler.PAUSE
    second.status = "PAUSED"
    for step in (20, 30, 40):
        scheduler.on_trial_result(tune, first, {"step": step, "cmmd": 1.0})
    scheduler.on_trial_complete(tune, first, {"step": 40, "cmmd": 1.0})
    assert second.status == "TERMINATED"
    assert tune.verdicts.ended == {"u1-0": ("pruned", "rung 10: cmmd 9 behind 1 (kept best 1 of 2)")}


def test_a_cohort_waits_for_a_trial_that_is_tried_again():
    tune, scheduler = tune_of(curves_of(["u0", "u1"]), SchedulerSpec(use="halving", grace_steps=10))
    first, second = tune.waiting
    for trial in (first, second):
        scheduler.on_trial_add(tune, trial)
    assert scheduler.on_trial_result(tune, second, {"step": 10, "cmmd": 9.0}) == TrialScheduler.PAUSE
    tune.again = lambda trial: True
    scheduler.on_trial_error(tune, first)
    assert not scheduler.may_resume(second)
    assert tune.verdicts.ended == {}
    attempt = SimpleNamespace(trial_id="u0-0+2", placement_group_factory="a worker", status="RUNNING", is_saving=False)
    scheduler.on_trial_add(tune, attempt)
    assert scheduler.on_trial_result(tune, attempt, {"step": 10, "cmmd": 1.0}) == TrialScheduler.CONTINUE
    assert scheduler.holds("u1-0").startswith("in reserve")
    tune.again = lambda trial: False
    scheduler.on_trial_error(tune, attempt)
    assert scheduler.may_resume(second)


def test_who_is_taken_out_before_it_is_tried_again_starts_no_more():
    tune, scheduler = tune_of(curves_of(["u0", "u1", "u2"]), HALVING)
    for trial in tune.waiting:
        scheduler.on_trial_add(tune, trial)
        scheduler.on_trial_result(tune, trial, {"step": 10, "cmmd": float(trial.trial_id[1])})
    dead = tune.waiting[2]
    tune.again = lambda trial: True
    scheduler.on_trial_error(tune, dead)
    for trial in tune.waiting[:2]:
        scheduler.on_trial_result(tune, trial, {"step": 20, "cmmd": 1.0})
    assert [trial.trial_id for trial in tune.dropped] == ["u2-0"]
    assert tune.verdicts.ended["u2-0"][0] == "pruned"


def test_every_wave_is_a_cohort_of_its_own():
    curves = curves_of(["u0", "u1", "u2", "u3", "u4", "u5"])
    tune = SimulatedTune(curves, 6, range(6), lambda curve: 1.0, random.Random(0))
    scheduler = build_scheduler(HALVING, curves.info, tune, tune.verdicts)
    scheduler.join(curves.info.trials[:2])
    scheduler.join(curves.info.trials[2:4])
    scheduler.join(curves.info.trials[4:], judged=False)
    tune.run(scheduler)
    assert set(tune.verdicts.ended) == {"u1-0", "u3-0"}


def test_a_scheduled_stop_and_a_batch_size_come_from_the_trial():
    settings = {"u2": {"scheduled_until": 20}}
    spec = SchedulerSpec(use="halving", noise_aware=False, reduction_factor=3)
    curves = curves_of(["u0", "u1", "u2"], **settings)
    assert simulate(curves, spec, Arrival(3)).trials["u2-0"].steps == 30
    asked = spec.model_copy(update={"rungs_within_schedules": True})
    assert simulate(curves, asked, Arrival(3)).trials["u2-0"].steps == 10
    batches = {name: {"batch_size": size} for name, size in [("u0", 32), ("u1", 8)]}
    spec = SchedulerSpec(use="halving", unit="images", grace=200, reduction_factor=2, noise_aware=False)
    outcome = simulate(curves_of(["u0", "u1"], **batches), spec, Arrival(2))
    assert {name: end.steps for name, end in outcome.trials.items()} == {"u0-0": 40, "u1-0": 30}
    with pytest.raises(ValueError, match="does not say its batch size"):
        simulate(curves_of(["u0"]), spec, Arrival(1))


def test_stoppers_work_without_a_scheduler_and_beside_one():
    stop = StopSpec.model_validate({"target": {"value": 1.06}})
    outcome = simulate(curves_of(["u0", "u1", "u2"]), SchedulerSpec(stop=stop), Arrival(2))
    assert {name: (end.steps, end.state) for name, end in outcome.trials.items()} == {
        "u0-0": (10, "complete"), "u1-0": (20, "complete"), "u2-0": (40, "complete"),
    }  # fmt: skip
    assert outcome.trials["u1-0"].reason == "target: cmmd 1.05 at step 20 (asked for 1.06)"
    beside = HALVING.model_copy(update={"stop": stop})
    outcomes = {
        tuple(sorted(simulate(curves_of(["u0", "u1", "u2", "u3"]), beside, Arrival(w, 1.0, s)).trials.items(), key=str))
        for w in (1, 2, 4) for s in range(20)
    }  # fmt: skip
    (trials,) = outcomes
    assert {name: (end.steps, end.state) for name, end in trials} == {
        "u0-0": (10, "complete"), "u1-0": (20, "complete"), "u2-0": (10, "pruned"), "u3-0": (10, "pruned"),
    }  # fmt: skip


def test_worse_than_the_baseline_waits_for_it_whatever_the_order():
    stop = StopSpec.model_validate({"worse_than_baseline": {"errors": 2, "from_step": 20}})
    curves = curves_of(["u0", "u1", "u2"], (0, 1), baseline="u1")
    outcomes = {
        tuple(sorted(simulate(curves, SchedulerSpec(stop=stop), Arrival(w, 2.0, s)).trials.items(), key=str))
        for w in (1, 2, 6) for s in range(30)
    }  # fmt: skip
    (trials,) = outcomes
    assert {name: (end.steps, end.state) for name, end in trials} == {
        f"{name}-{seed}": end
        for seed in (0, 1)
        for name, end in {"u0": (40, "complete"), "u1": (40, "complete"), "u2": (20, "pruned")}.items()
    }
    assert dict(trials)["u2-0"].reason == "step 20: cmmd 2.05 behind the baseline's 1.05 ± 0"


def test_a_trial_does_not_wait_for_a_baseline_that_failed():
    stop = StopSpec.model_validate({"worse_than_baseline": {"errors": 2}})
    curves = curves_of(["u0", "u1"], baseline="u1", failing={"u1-0"}, value=lambda name, step: 1.0)
    for seed in range(20):
        outcome = simulate(curves, SchedulerSpec(stop=stop), Arrival(1 + seed % 2, 2.0, seed))
        assert outcome.trials["u0-0"].state == "complete"


def test_an_early_end_is_in_the_ledger_and_comes_again_by_replay(tmp_path):
    info = make_info("good-1")
    ledger = Ledger(SweepFolder(tmp_path, "fake"), info)
    queue = SimpleNamespace(drop=lambda trial_id: dropped.append(trial_id), waiting=())
    dropped = []
    spec = SchedulerSpec(stop=StopSpec.model_validate({"target": {"value": 2.0}}))
    scheduler = build_scheduler(spec, info, queue, ledger)
    scheduler.join(info.trials)
    assert scheduler.replays_all
    scheduler.replay("good-1-0", 10, {"cmmd": 1.1, "device_seconds": 1.0})
    assert dropped == ["good-1-0"]
    state = ledger.trials["good-1-0"].state
    assert (state.state, state.reason) == ("complete", "target: cmmd 1.1 at step 10 (asked for 2)")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("{use: none}", "RunAll"),
        ("{use: asha, grace_steps: 10}", "RayAsha"),
        ("{use: hyperband}", "RayHyperBand"),
        ("{use: median}", "RayMedian"),
        ("{use: halving}", "CohortHalving"),
    ],
)
def test_the_sweep_names_its_scheduler(text, kind):
    plan = make_plan("good-1", "good-2", scheduler=text)
    scheduler = make_scheduler(plan, make_info("good-1", "good-2"), SimpleNamespace(), Verdicts())
    assert type(scheduler).__name__ == kind
    assert scheduler.metric is None  # else Tune demands it in progress reports
