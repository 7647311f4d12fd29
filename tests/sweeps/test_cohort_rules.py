"""What a cohort does beyond ranking: reserves, schedules, clocks, ties, and how often noise decides."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from sweeps.halving import Cohort, Unit
from sweeps.stopping.paired import Score, difference, standings, student


def one_seed(names, **settings):
    return {name: Unit((0,), **settings) for name in names}


def report_all(cohort, values, step=10):
    return [d for name, value in values.items() for d in cohort.record(name, 0, step, value)]


def out(cohort):
    return {unit for unit in cohort.units if cohort.reason(unit) is not None}


def test_the_best_of_the_reserve_takes_the_place_of_a_survivor_that_failed():
    cohort = Cohort(one_seed("abcdef"), (10, 20), factor=3, noise_errors=0)
    (decision,) = report_all(cohort, dict(zip("abcdef", range(6), strict=True)))
    assert decision.survivors == ("a", "b")
    assert cohort.waits("c", 10, 10).startswith("in reserve after rung 10")
    assert cohort.leave("a", 0, "failed") == []
    assert cohort.waits("c", 10, 10) is None
    assert cohort.waits("d", 10, 10) is not None
    assert cohort.missing == {("b", 0), ("c", 0)}
    assert out(cohort) == set()
    cohort.record("b", 0, 20, 1.0)
    (decision,) = cohort.record("c", 0, 20, 0.5)
    assert decision.survivors == ("c",)
    assert out(cohort) == {"d", "e", "f"}  # the next rung is decided: no place of the first one can come free
    assert cohort.leave("c", 0, "failed") == []
    assert cohort.waits("b", 20, 20) is None
    cohort.leave("b", 0, "finished")
    assert out(cohort) == {"d", "e", "f"}


def test_only_failures_free_a_place():
    for how, promoted in [("failed", True), ("finished", False), ("withdrawn", False)]:
        cohort = Cohort(one_seed("abcd"), (10,), factor=2, noise_errors=0)
        report_all(cohort, {"a": 1, "b": 2, "c": 3, "d": 4})
        cohort.leave("a", 0, how)
        assert (cohort.waits("c", 10, 10) is None) == promoted


def test_the_place_of_a_baseline_that_lost_is_no_place():
    units = one_seed("abc") | {"base": Unit((0,), protected=True)}
    cohort = Cohort(units, (10,), factor=4, noise_errors=0)
    (decision,) = report_all(cohort, {"base": 9, "a": 1, "b": 2, "c": 3})
    assert decision.survivors == ("a", "base")
    cohort.leave("a", 0, "failed")
    assert cohort.waits("b", 10, 10) is None
    assert cohort.waits("c", 10, 10) is not None


def test_promotion_does_not_depend_on_when_survivors_fail():
    """Two of three survivors fail on the way to the second rung, in every order of all events."""
    units, values = "abcdefghi", dict(zip("abcdefghi", range(9), strict=True))
    outcomes = set()
    for events in itertools.permutations(["a fails", "b reports", "c fails", "d reports", "e reports"]):
        cohort = Cohort(one_seed(units), (10, 20), factor=3, noise_errors=0)
        report_all(cohort, values)
        waiting = list(events)
        while waiting:
            event = next(e for e in waiting if cohort.waits(e[0], 10, 10) is None)
            waiting.remove(event)
            if event.endswith("fails"):
                decided = cohort.leave(event[0], 0, "failed")
            else:
                decided = cohort.record(event[0], 0, 20, values[event[0]])
        outcomes.add((decided[0].survivors, tuple(decided[0].losers)))
    assert outcomes == {(("b",), ("d", "e"))}


def test_a_technique_is_not_compared_before_its_scheduled_stop():
    """`late` stops its teacher at step 30: at rung 20 it neither is compared nor takes a place, at rung 40 it is."""
    units = one_seed("abcd") | {"late": Unit((0,), judged_from=30)}
    cohort = Cohort(units, (20, 40), factor=2, noise_errors=0)
    assert ("late", 0) not in cohort.missing
    assert cohort.waits("late", 20, 20) is None
    (decision,) = report_all(cohort, {"a": 1, "b": 2, "c": 3, "d": 4}, step=20)
    assert decision.survivors == ("a", "b")
    assert decision.uncompared == ("late",)
    assert cohort.missing == {("a", 0), ("b", 0), ("late", 0)}
    cohort.record("late", 0, 20, 99.0)
    assert cohort.waits("late", 40, 40) == "waits at rung 40"
    cohort.record("late", 0, 40, 0.5)
    (decision,) = [*cohort.record("a", 0, 40, 1), *cohort.record("b", 0, 40, 2)]
    assert decision.survivors == ("late", "a")


def test_rungs_in_images_come_at_other_steps_for_other_batch_sizes():
    units = {"small": Unit((0,), pace=8, every=10), "large": Unit((0,), pace=32, every=10)}
    cohort = Cohort(units, (600,), factor=2, noise_errors=0, clock="images")
    assert [unit.step_at(600) for unit in units.values()] == [80, 20]
    cohort.record("small", 0, 70, 5.0)
    cohort.record("large", 0, 10, 9.0)
    assert cohort.missing == {("small", 0), ("large", 0)}
    cohort.record("large", 0, 20, 4.0)
    assert cohort.waits("large", 20, 640) == "waits at rung 600 images"
    (decision,) = cohort.record("small", 0, 80, 3.0)
    assert decision.losers == {"large": "rung 600 images: cmmd 4 behind 3 (kept best 1 of 2)"}


def test_rungs_in_device_seconds_are_reached_at_the_first_evaluation_beyond():
    """One that ended before the rung stands with its last value."""
    units = {name: Unit((0,), pace=None) for name in ("quick", "slow", "done")}
    cohort = Cohort(units, (60, 180), factor=3, noise_errors=0, clock="device_seconds")
    cohort.record("quick", 0, 10, 8.0, position=50.0)
    cohort.record("quick", 0, 20, 2.0, position=100.0)
    cohort.record("slow", 0, 10, 3.0, position=61.0)
    cohort.record("done", 0, 10, 9.0, position=30.0)
    cohort.record("done", 0, 20, 1.0, position=55.0)
    (decision,) = cohort.leave("done", 0, "finished")
    assert decision.survivors == ("done",)
    assert decision.losers["quick"] == "rung 60 device-seconds: cmmd 2 behind 1 (kept best 1 of 3)"


def test_ties_are_compared_again_and_only_while_there_are_any():
    units = one_seed("abcd")
    cohort = Cohort(units, (10, 40), factor=4, rechecks=(10, 20, 30, 40))
    for name, value in {"a": 1.0, "b": 1.05, "c": 3.0, "d": 4.0}.items():
        cohort.record(name, 0, 10, value, 0.1)
    assert cohort.rung == 20  # `b` tied with `a`
    cohort.record("a", 0, 20, 0.5, 0.1)
    (decision,) = cohort.record("b", 0, 20, 0.9, 0.1)
    assert decision.survivors == ("a",)
    assert decision.losers == {"b": "rung 20: cmmd 0.9 behind 0.5 (kept best 1 of 2)"}
    assert cohort.rung == 40
    assert out(cohort) == set()  # all three stay in reserve, the latest loser first
    cohort.leave("a", 0, "failed")
    assert cohort.waits("b", 20, 20) is None
    assert cohort.waits("c", 10, 10) is not None


def test_a_lost_seed_is_no_advantage():
    """`b` is the worse one in every seed that both have, and lost the seed in which everything is bad."""
    scores = {"a": {0: Score(1.0, 0), 1: Score(9.0, 0)}, "b": {0: Score(1.5, 0)}}
    found = standings(scores | {"c": {0: Score(1.2, 0), 1: Score(9.2, 0)}})
    assert found["a"] < found["c"] < found["b"]
    assert difference(scores["b"], scores["a"]).mean == 0.5
    assert difference({0: Score(1, 0)}, {1: Score(1, 0)}) is None


def test_few_seeds_know_their_spread_badly():
    assert student(1.0, 1) == pytest.approx(1.8373, abs=1e-3)
    assert student(1.0, 4) == pytest.approx(1.1416, abs=1e-3)
    assert student(1.0, 1000) == pytest.approx(1.0, abs=1e-2)
    scores = {seed: Score(value, 0.0) for seed, value in enumerate([1.0, 2.0, 4.0])}
    gap = difference(scores, {seed: Score(0.0, 0.0) for seed in scores})
    assert (gap.mean, gap.se, gap.freedom) == (pytest.approx(7 / 3), pytest.approx(math.sqrt(7 / 9)), 2)


def pruned_share(errors, seeds, worse=0.0, rounds=400):
    """Let eight cells of equal worth, and one that is worse, meet once; give the shares pruned of both kinds."""
    rng = np.random.default_rng(0)
    equal = bad = 0
    names = [f"u{i}" for i in range(9)]
    for _ in range(rounds):
        cohort = Cohort({n: Unit(tuple(range(seeds))) for n in names}, (10,), factor=3, noise_errors=errors)
        level = rng.normal(size=seeds)
        for index, name in enumerate(names):
            for seed in range(seeds):
                value = 5 + level[seed] + rng.normal(scale=0.1) + worse * (index == 8)
                decided = cohort.record(name, seed, 10, float(value), 0.1 * math.sqrt(2))
        equal += sum(name in decided[0].losers for name in names[:8])
        bad += names[8] in decided[0].losers
    return equal / rounds / 8, bad / rounds


@pytest.mark.parametrize("seeds", [1, 5])
def test_cells_of_equal_worth_are_rarely_pruned_and_a_clearly_worse_one_always(seeds):
    """The error reported is that of a difference of two independent values, as it is here."""
    equal, bad = pruned_share(2.0, seeds, worse=1.0)
    assert equal < 0.05
    assert bad == 1.0
    equal, bad = pruned_share(1.0, seeds, worse=1.0)
    assert 0.05 < equal < 0.3
    assert bad == 1.0
    assert pruned_share(0.0, seeds)[0] > 0.6


def test_random_seeds_clocks_and_failures_never_leave_anybody_waiting():
    """Whatever fails or finishes early, some trial may always go on until the cohort is over."""
    for trial in range(500):
        rng = random.Random(trial)
        units = {
            f"u{i}": Unit(tuple(range(rng.randint(1, 3))), rng.random() < 0.1, rng.choice([0, 0, 25, 55]),
                          rng.choice([None, 1.0]), 10)
            for i in range(rng.randint(1, 9))
        }  # fmt: skip
        cohort = Cohort(units, (10, 30), factor=rng.choice([2, 3]), rechecks=(10, 20, 30, 40, 50))
        living = {(unit, seed): 0 for unit in units for seed in units[unit].seeds}
        while living:
            ready = [k for k, step in living.items() if cohort.waits(k[0], step, step) is None]
            assert ready, f"case {trial}: {sorted(living)} wait at {cohort.rung}"
            key = rng.choice(ready)
            living[key] += 10
            if rng.random() < 0.1:
                cohort.leave(*key, rng.choice(["failed", "withdrawn", "finished"]))
                del living[key]
            else:
                cohort.record(*key, living[key], rng.random(), 0.1, float(living[key]))
                if living[key] == 60:
                    cohort.leave(*key, "finished")
                    del living[key]
            living = {k: step for k, step in living.items() if cohort.reason(k[0]) is None}
        assert cohort.rung is None
