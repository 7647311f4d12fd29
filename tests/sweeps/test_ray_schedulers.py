"""Ray's own rules behind our interface: what they see, what they decide, and that nobody waits for ever."""

from __future__ import annotations

import random

import numpy as np
import pytest
from ray.tune.schedulers import TrialScheduler

from sweeps.early_stopping import build_scheduler
from sweeps.results import read_state
from sweeps.run import run_sweep
from sweeps.simulation.simulate import Arrival, simulate
from sweeps.simulation.synthetic import Model, grid_info, synthetic
from sweeps.simulation.tune import SimulatedTrial, Verdicts
from sweeps.stopping.spec import RAY_RULES, SchedulerSpec
from tests.sweeps.fakes import PARTS, make_info, make_plan, trained
from tests.sweeps.test_scheduler import curves_of


def test_asha_sees_evaluations_only_and_past_trials_first():
    curves, verdicts = curves_of(["u0", "u1"]), Verdicts()
    asha = build_scheduler(SchedulerSpec(use="asha", reduction_factor=2), curves.info, None, verdicts)
    asha.join(curves.info.trials)
    asha.replay("u0-0", 10, {"cmmd": 1.0})
    asha.settled("u0-0")
    trial = SimulatedTrial(curves.curves[1], status="RUNNING")
    asha.on_trial_add(None, trial)
    assert asha.on_trial_result(None, trial, {"step": 5}) == TrialScheduler.CONTINUE
    assert asha.on_trial_result(None, trial, {"step": 10, "cmmd": 2.0}) == TrialScheduler.STOP
    assert verdicts.ended == {"u1-0": ("pruned", "asha at step 10: cmmd 2 behind those that came before")}


def test_a_trial_that_will_report_again_is_not_counted_twice():
    curves, verdicts = curves_of(["u0", "u1"]), Verdicts()
    asha = build_scheduler(SchedulerSpec(use="asha", reduction_factor=2), curves.info, None, verdicts)
    asha.join(curves.info.trials)
    asha.replay("u0-0", 10, {"cmmd": 1.0})
    assert [rung for _, rung in asha.rule._brackets[0]._rungs] == [{}, {}, {}]


def test_order_decides_for_ashas_survivors_and_not_for_ours():
    """2,000 shuffles of the same nine trials: from 1 to 9 pass ASHA's first rung; ours are one and the same set."""
    curves = curves_of([f"u{i}" for i in range(9)])
    found = {"asha": set(), "halving": set()}
    for seed in range(2000):
        arrival = Arrival(1 + seed % 9, 1.0 if seed % 2 else 0.0, seed)
        for use, seen in found.items():
            spec = SchedulerSpec(use=use, noise_aware=False, grace_steps=20, reduction_factor=3)
            seen.add(simulate(curves, spec, arrival).survivors)
    assert found["halving"] == {("u0", "u1", "u2")}
    assert {len(survivors) for survivors in found["asha"]} == set(range(1, 10))


@pytest.mark.parametrize("use", RAY_RULES)
def test_nobody_waits_for_ever(use):
    """Random curves, orders, workers and failures, also at points where Ray's bracket stops listening."""
    pruned = 0
    for case in range(150):
        rng = random.Random(case)
        info = grid_info(rng.randint(1, 12), rng.randint(1, 2), 90, 10)
        curves = synthetic(info, Model(noise=0.3), np.random.default_rng(case))
        failing = [
            type(c)(c.info, c.values, c.step_seconds, rng.choice([1, 11, 31, 61]) if rng.random() < 0.3 else None)
            for c in curves.curves
        ]
        spec = SchedulerSpec(use=use, grace_steps=10)
        outcome = simulate(curves.of(failing), spec, Arrival(rng.randint(1, 6), 1.0, case))
        assert all(end.state in ("complete", "pruned", "failed") for end in outcome.trials.values())
        pruned += sum(end.state == "pruned" for end in outcome.trials.values())
    assert pruned > 100


def test_hyperband_compares_within_brackets_however_few_workers_there_are():
    """Brackets of 3, 3 and 4: the first compares nobody, the second halves at 20 steps, the third at 10 and 20."""
    curves = curves_of([f"u{i}" for i in (7, 1, 6, 2, 5, 3, 4, 0, 9, 8)])
    spec = SchedulerSpec(use="hyperband", grace_steps=10, reduction_factor=2)
    outcomes = {simulate(curves, spec, Arrival(workers, 0.0, shuffled=False)).survivors for workers in range(1, 11)}
    assert outcomes == {("u0", "u1", "u2", "u3", "u6", "u7")}


@pytest.mark.slow
def test_hyperband_on_a_real_tune(ray_here, tmp_path):
    """Seven trials on two workers: pauses end, the loser is stopped with a reason, and nothing is trained twice."""
    names = [f"good-{i}" for i in (7, 1, 6, 2, 5, 3, 4)]
    plan = make_plan(*names, scheduler="{use: hyperband, grace_steps: 10, reduction_factor: 2}")
    outcome = run_sweep(plan, store=tmp_path, max_concurrent=2, parts=PARTS)
    assert outcome.exit_code == 0
    states = {trial.cell.name: read_state(outcome.folder.trial(trial.trial_id)) for trial in plan.trials}
    pruned = {name: state.reason for name, state in states.items() if state.state == "pruned"}
    assert pruned == {"good-5": "hyperband at step 20: cmmd 5.05 behind the others of its bracket"}
    assert {state.state for name, state in states.items() if name not in pruned} == {"complete"}
    for trial in plan.trials:
        steps = trained(outcome.folder.trial(trial.trial_id))
        assert steps == list(range(1, len(steps) + 1))


def test_the_rules_are_told_of_every_trial_once():
    info = make_info("good-1", "good-2", seeds=(0, 1))
    verdicts = Verdicts()
    for use in RAY_RULES:
        scheduler = build_scheduler(SchedulerSpec(use=use), info, None, verdicts)
        scheduler.join(info.trials)
        assert not scheduler.replays_all
