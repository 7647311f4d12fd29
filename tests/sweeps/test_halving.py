"""Cohort halving: order-invariant, noise-aware, never losing the baseline."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from sweeps.halving import Cohort, Unit
from sweeps.stopping.paired import SHARED


def cohort_of(units, rungs, *, protected=(), **options):
    """Make a cohort from unit -> seeds."""
    made = {unit: Unit(tuple(seeds), protected=unit in protected) for unit, seeds in units.items()}
    return Cohort(made, rungs, **{"factor": 2, **options})


def out(cohort):
    return {unit: reason for unit in cohort.units if (reason := cohort.reason(unit)) is not None}


def play(reports, units, rungs, **options):
    """Feed reports in order, holding back those of units that are out, as a scheduler would."""
    cohort = cohort_of(units, rungs, **options)
    decisions = []
    waiting = list(reports)
    while waiting:
        left = []
        for unit, seed, step, value, se in waiting:
            if cohort.reason(unit):
                continue
            if cohort.rung is not None and step > cohort.rung:
                left.append((unit, seed, step, value, se))
                continue
            decisions += cohort.record(unit, seed, step, value, se)
        if len(left) == len(waiting):
            break
        waiting = left
    return cohort, decisions


def test_survivors_do_not_depend_on_arrival():
    """Nine units, three rungs, 2,000 orders: one and the same set of survivors at every rung."""
    rng = random.Random(0)
    units = {f"u{i}": (0,) for i in range(9)}
    reports = [
        (unit, 0, step, rng.random() + i * 0.05, 0.01)
        for i, unit in enumerate(units)
        for step in (100, 300, 900)
    ]
    outcomes = set()
    for _ in range(2000):
        order = reports[:]
        rng.shuffle(order)
        _, decisions = play(order, units, (100, 300, 900), factor=3, noise_errors=0)
        outcomes.add(
            tuple((d.rung, tuple(sorted(d.survivors)), tuple(sorted(d.losers.items()))) for d in decisions)
        )
    assert len(outcomes) == 1
    assert [len(survivors) for _, survivors, _ in outcomes.pop()] == [3, 1, 1]


def test_every_order_of_failures_gives_the_same_survivors():
    units = dict.fromkeys("abcde", (0,))
    values = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    outcomes = set()
    for order in itertools.permutations("abcde"):
        cohort = cohort_of(units, (10,), factor=2)
        decisions = []
        for name in order:
            decisions += cohort.record(name, 0, 10, values[name]) if name in values else cohort.leave(name, 0)
        assert len(decisions) == 1
        outcomes.add(decisions[0].survivors)
    assert outcomes == {("a", "b")}


def noise(one, other):
    """The variance of a difference of two correlated values."""
    return math.sqrt(one**2 + other**2 - 2 * SHARED * one * other)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_against_brute_force(mode):
    rng = random.Random(1)
    for _ in range(300):
        count, factor = rng.randint(1, 12), rng.choice([2, 3, 4])
        values = {f"u{i}": rng.choice([rng.random(), 0.5]) for i in range(count)}
        errors = {unit: rng.random() * 0.1 for unit in values}
        cohort = cohort_of(dict.fromkeys(values, (0,)), (5,), factor=factor, mode=mode, protected={"u0"})
        decisions = [d for unit in values for d in cohort.record(unit, 0, 5, values[unit], errors[unit])]
        sign = 1 if mode == "min" else -1
        ranked = sorted(values, key=lambda unit: (sign * values[unit], unit))
        worst = ranked[math.ceil(count / factor) - 1]
        expected = {
            unit
            for unit in values
            if unit == "u0"
            or ranked.index(unit) <= ranked.index(worst)
            or sign * (values[unit] - values[worst]) <= noise(errors[unit], errors[worst])
        }
        assert set(decisions[0].survivors) == expected
        assert set(decisions[0].losers) == set(values) - expected


def test_no_decision_before_the_last_member():
    cohort = cohort_of({"a": (0,), "b": (0,), "c": (0,)}, (10,), factor=3)
    assert cohort.record("a", 0, 10, 1.0) == []
    assert cohort.record("b", 0, 10, 2.0) == []
    assert cohort.waits("a", 10, 10) == "waits at rung 10"
    assert cohort.waits("a", 5, 5) is None
    assert cohort.missing == {("c", 0)}
    (decision,) = cohort.record("c", 0, 10, 3.0)
    assert decision.survivors == ("a",)
    assert cohort.waits("a", 10, 10) is None
    assert cohort.waits("c", 10, 10) == "in reserve after rung 10: cmmd 3 behind 1 (kept best 1 of 3)"
    assert out(cohort) == {}
    assert cohort.leave("a", 0, "finished") == []
    assert out(cohort)["c"] == "rung 10: cmmd 3 behind 1 (kept best 1 of 3)"
    assert set(out(cohort)) == {"b", "c"}


def test_seeds_are_judged_together():
    """By single seeds `b` would win seed 1; by means `a` wins."""
    cohort = cohort_of({"a": (0, 1), "b": (0, 1)}, (10,), factor=2, noise_errors=0)
    for unit, seed, value in [("a", 0, 1.0), ("b", 0, 3.0), ("a", 1, 2.0)]:
        assert cohort.record(unit, seed, 10, value) == []
    (decision,) = cohort.record("b", 1, 10, 1.5)
    assert decision.survivors == ("a",)
    assert decision.losers["b"] == "rung 10: cmmd 2.25 behind 1.5 (kept best 1 of 2)"


def test_noise_is_the_spread_of_paired_differences():
    """Both cells move with the seed by far more than they differ; their difference hardly moves."""
    levels = {0: 1.0, 1: 5.0, 2: 3.0}
    for wobble, survivors in [(0.01, ("a",)), (0.2, ("a", "b"))]:
        cohort = cohort_of({"a": (0, 1, 2), "b": (0, 1, 2)}, (10,))
        found = []
        for seed, level in levels.items():
            found += cohort.record("a", seed, 10, level, 9.0)
            found += cohort.record("b", seed, 10, level + 0.05 + wobble * (seed - 1), 9.0)
        assert found[0].survivors == survivors


def test_one_seed_goes_by_the_metrics_own_errors():
    for se, survivors in [(0.99, ("a",)), (1.01, ("a", "b"))]:
        cohort = cohort_of({"a": (0,), "b": (0,)}, (10,))
        cohort.record("a", 0, 10, 1.0, se)
        (decision,) = cohort.record("b", 0, 10, 2.0, se)
        assert decision.survivors == survivors


def test_the_baseline_is_never_taken_out():
    cohort = cohort_of({"base": (0,), "a": (0,), "b": (0,)}, (10, 20), factor=3, protected={"base"})
    found = [d for unit, v in [("base", 9.0), ("a", 1.0), ("b", 2.0)] for d in cohort.record(unit, 0, 10, v)]
    assert found[0].survivors == ("a", "base")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_a_number_is_a_failure(value):
    cohort = cohort_of({"a": (0,), "b": (0,), "c": (0,)}, (10,), factor=2)
    cohort.record("a", 0, 10, value)
    cohort.record("b", 0, 10, 2.0)
    (decision,) = cohort.record("c", 0, 10, 3.0)
    assert decision.survivors == ("b",)
    assert decision.losers == {"c": "rung 10: cmmd 3 behind 2 (kept best 1 of 2)"}


def test_a_failed_seed_leaves_the_others_to_speak():
    cohort = cohort_of({"a": (0, 1), "b": (0, 1)}, (10,), factor=2, noise_errors=0)
    cohort.leave("a", 1)
    cohort.record("a", 0, 10, 1.0)
    cohort.record("b", 0, 10, 3.0)
    (decision,) = cohort.record("b", 1, 10, 3.0)
    assert decision.survivors == ("a",)


def test_replay_ahead_of_time_decides_rung_after_rung():
    cohort = cohort_of({"a": (0,), "b": (0,)}, (10, 20), factor=2, noise_errors=0)
    cohort.record("a", 0, 10, 1.0)
    cohort.record("a", 0, 20, 1.0)
    decisions = cohort.record("b", 0, 10, 2.0)
    assert [(d.rung, d.survivors) for d in decisions] == [(10, ("a",)), (20, ("a",))]


def test_a_cohort_that_all_left_blocks_nobody():
    cohort = cohort_of({"a": (0,), "b": (0,)}, (10,))
    cohort.leave("a", 0)
    cohort.leave("b", 0)
    assert cohort.rung is None
    assert cohort.missing == frozenset()
    assert out(cohort) == {}
