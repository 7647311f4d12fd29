"""Differences to the baseline, the verdict, Pareto fronts, time to quality, importance."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from sweeps.analysis.differences import Comparison, stopped_early, to_baseline
from sweeps.analysis.effects import estimate_effects
from sweeps.analysis.importance import importances, searched_importances
from sweeps.analysis.intervals import holm
from sweeps.analysis.observations import observe
from sweeps.analysis.pareto import front, quality_price
from sweeps.analysis.speed import arrival, time_to_quality
from sweeps.analysis.verdict import seeds_needed, verdict
from sweeps.results import TrialInfo
from tests.sweeps.simulated import cells_of, frame_of, info_of, without_end

PAIR = [{"tokenizer": "flux"}, {"tokenizer": "flux2"}]


def truth(levels):
    return {"flux": 1.0, "flux2": 0.8, "repa_e": 0.9}[levels["tokenizer"]]


def observed_of(cells=PAIR, seeds=range(5), **noise):
    info = info_of(cells, seeds)
    return observe(frame_of(info, truth, **noise), info, "cmmd", "min")


def test_paired_differences_are_the_paired_t_tests():
    observed = observed_of(noise=0.1, seed_noise=1.0)
    found = to_baseline(observed)[0]
    base, other = (np.array(list(observed.by_seed(i).values())) for i in (0, 1))
    reference = stats.ttest_rel(other, base)
    interval = reference.confidence_interval(0.95)
    assert (found.seeds, found.basis) == (5, "seeds")
    assert found.p == pytest.approx(reference.pvalue)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_differences_cover_as_often_as_they_say():
    hits = []
    for random in range(400):
        found = to_baseline(observed_of(seeds=range(3), noise=0.2, seed_noise=1.0, random=random))[0]
        hits.append(found.low <= -0.2 <= found.high)
    assert np.mean(hits) == pytest.approx(0.95, abs=0.035)


def test_with_one_seed_the_metrics_own_errors_count_and_are_named():
    found = to_baseline(observed_of(seeds=[0], se=0.03))[0]
    assert (found.seeds, found.basis) == (1, "samples")
    assert found.high - found.low == pytest.approx(2 * 1.959964 * 0.03 * math.sqrt(2), rel=1e-6)


def test_without_errors_there_is_no_interval_and_no_finding():
    found = to_baseline(observed_of(seeds=[0], se=math.nan))[0]
    assert (found.basis, found.found) == ("none", False)
    assert math.isnan(found.low)
    assert found.estimate == pytest.approx(-0.2)


def test_only_common_seeds_pair():
    info = info_of(PAIR, range(4))
    frame = frame_of(info, truth, seed_noise=1.0)
    frame = frame[frame["is_baseline"] | (frame["seed"] < 2)]
    observed = observe(frame, info, "cmmd", "min")
    assert to_baseline(observed)[0].seeds == 2
    observed = observe(frame[frame["is_baseline"] == (frame["seed"] >= 2)], info, "cmmd", "min")
    assert Comparison(observed).difference(1, 0) is None
    assert to_baseline(observed) == ()


def test_more_is_better_for_some_metrics():
    info = info_of(PAIR, range(5))
    frame = frame_of(info, truth, noise=0.01)
    assert verdict(observe(frame, info, "cmmd", "min")).leader == "flux2"
    assert verdict(observe(frame, info, "cmmd", "max")).leader == "baseline"


def test_pruned_cells_are_compared_where_they_stopped():
    info = info_of([*PAIR, {"tokenizer": "repa_e"}], range(2))
    frame = frame_of(info, truth)
    gone = [trial.trial_id for trial in info.trials if trial.name == "repa_e"]
    early = stopped_early(without_end(frame, gone), info, "cmmd", "min")
    assert [(one.name, one.step, one.seeds) for one in early] == [("repa_e", 100, 2)]
    assert early[0].estimate == pytest.approx(3 * -0.1)  # three times the final figures, both
    assert stopped_early(frame, info, "cmmd", "min") == ()


def test_holm_is_the_step_down_of_bonferroni():
    assert holm(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])
    assert holm(np.array([0.6, 0.9])) == pytest.approx([1.0, 1.0])
    both = holm(np.array([[0.01, 0.5], [0.04, 0.001]]))
    assert both[:, 1] == pytest.approx([0.5, 0.002])


def test_a_clear_winner_is_named_and_a_tie_says_how_many_seeds_would_tell():
    clear = verdict(observed_of(noise=0.01))
    assert (clear.leader, clear.rival, clear.separable, clear.seeds_needed) == ("flux2", "baseline", True, None)
    close = verdict(observed_of(noise=0.3))
    assert not close.separable
    assert close.seeds_needed > 5


def test_one_cell_has_no_runner_up_and_one_seed_promises_no_number_of_seeds():
    assert verdict(observed_of(PAIR[:1])).rival is None
    found = verdict(observed_of(seeds=[0], se=1.0))
    assert (found.separable, found.seeds_needed) == (False, None)


def test_the_number_of_seeds_gives_the_power_it_promises():
    gap, spread = 0.5, 0.6
    count = seeds_needed(gap, spread)
    draws = np.random.default_rng(0).normal(gap, spread, (20_000, count))
    p = stats.ttest_1samp(draws, 0.0, axis=1).pvalue
    assert (p < 0.05).mean() >= 0.79
    fewer = np.random.default_rng(0).normal(gap, spread, (20_000, count - 1))
    assert (stats.ttest_1samp(fewer, 0.0, axis=1).pvalue < 0.05).mean() < 0.81
    assert seeds_needed(1.0, 0.01) == 2
    assert seeds_needed(1e-6, 1.0) is None


def test_fronts_agree_with_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(300):
        cost, values = rng.integers(0, 6, (2, rng.integers(1, 12))).astype(float)
        for sign in (1.0, -1.0):
            beaten = [
                any(
                    c2 <= c and sign * v2 <= sign * v and (c2 < c or sign * v2 < sign * v)
                    for c2, v2 in zip(cost, values, strict=True)
                )
                for c, v in zip(cost, values, strict=True)
            ]
            assert front(cost, values, sign).tolist() == [not lost for lost in beaten]


def test_cells_are_priced_in_device_hours_of_one_trial():
    info = info_of(PAIR, range(2))
    frame = frame_of(info, truth)
    frame.loc[frame["tokenizer"] == "flux2", "device_seconds"] *= 4
    points = quality_price(frame, observe(frame, info, "cmmd", "min"))
    assert [(p.name, p.on_front) for p in points] == [("baseline", True), ("flux2", True)]
    assert points[1].device_hours == pytest.approx(600 / 3600)


def test_arrival_interpolates_where_a_curve_crosses_for_good():
    times = [10.0, 20.0, 30.0]
    assert arrival(times, [3.0, 1.0, 0.5], 2.0) == arrival(times, [-3.0, -1.0, -0.5], -2.0, -1.0)
    found = arrival(times, [3.0, 1.0, 0.5], 2.0)
    assert (found.seconds, found.bound) == (15.0, "exact")
    assert arrival(times, [1.0, 1.0, 0.5], 2.0).bound == "at_most"
    assert arrival(times, [3.0, 2.5, 2.1], 2.0).bound == "not_reached"
    lucky = arrival(times, [1.5, 3.0, 1.0], 2.0)  # a dip that did not last
    assert (lucky.seconds, lucky.bound) == (25.0, "exact")
    assert arrival(times, [3.0, 2.5, 2.0], 2.0).seconds == 30.0


def test_time_to_quality_of_known_curves():
    """Curves are 3, 1.5 and 1 times the final figure at 50, 100 and 150 s; a better cell crosses 1 before its end."""
    cells = [*PAIR, {"tokenizer": "repa_e"}]
    info = info_of(cells, range(3))
    frame = frame_of(info, lambda levels: {"flux": 1.0, "flux2": 0.8, "repa_e": 1.2}[levels["tokenizer"]])
    found = {one.name: one for one in time_to_quality(frame, info, "cmmd", "min")}
    assert found["flux2"].hours * 3600 == pytest.approx(100 + 50 * (1.2 - 1.0) / (1.2 - 0.8))
    assert found["flux2"].speedup == pytest.approx(150 / 125)
    assert (found["flux2"].low, found["flux2"].high) == (pytest.approx(1.2), pytest.approx(1.2))
    assert found["baseline"].speedup == pytest.approx(1.0)
    late = found["repa_e"]
    assert (late.num_reached, late.num_seeds, math.isnan(late.low)) == (0, 3, True)
    assert list(found) == ["flux2", "baseline", "repa_e"]


def test_time_to_quality_needs_a_finished_baseline():
    info = info_of(PAIR, [0, 1])
    frame = without_end(frame_of(info, truth), ["0-0", "0-1"], state="running")
    assert time_to_quality(frame, info, "cmmd", "min") == ()
    frame = without_end(frame_of(info, truth), ["0-1"], state="running")
    assert {one.num_seeds for one in time_to_quality(frame, info, "cmmd", "min")} == {1}


def test_importance_finds_the_setting_that_matters_and_keeps_conditional_ones_apart():
    rng = np.random.default_rng(0)
    points, scores = [], []
    for i in range(80):
        weight, layer, teacher = float(10 ** rng.uniform(-2, 1)), float(rng.uniform(0, 1)), i % 2 == 0
        points.append({"weight": weight, "layer": layer} | ({"stop": float(rng.uniform())} if teacher else {}))
        scores.append(abs(math.log10(weight)) + 0.05 * rng.standard_normal())
    found = {one.path: one for one in importances(points, scores, "min")}
    assert found["weight"].share > 0.8
    assert found["weight"].share + found["layer"].share == pytest.approx(1.0)
    assert (found["stop"].points, found["weight"].points) == (40, 80)


def test_importance_of_too_few_or_constant_points_is_not_claimed():
    assert importances([{"w": float(i)} for i in range(9)], list(range(9)), "min") == ()
    assert importances([{"w": 1.0}] * 20, list(range(20)), "min") == ()
    assert importances([{"w": float(i)} for i in range(20)], [math.nan] * 20, "min") == ()


def test_nothing_yet_is_no_error():
    import pandas as pd

    info = info_of(cells_of()[:2])
    observed = observe(pd.DataFrame(), info, "cmmd", "min")
    assert (observed.cells, verdict(observed), to_baseline(observed)) == ((), None, ())
    assert set(observed.left_out.values()) == {"no boundary reached yet"}
    assert time_to_quality(pd.DataFrame(), info, "cmmd", "min") == ()
    assert quality_price(pd.DataFrame(), observed) == ()


def test_points_of_a_search_rank_with_the_cells_but_enter_no_effect():
    cells = [{"tokenizer": "flux"}, {"tokenizer": "flux2"}]
    info = info_of(cells, [0])
    rng = np.random.default_rng(0)
    points = [
        TrialInfo(f"p{i}", f"p{i}", f"{name} · w={w:.3g}", False, 0, cell, {"w": w, "layer": int(layer)})
        for i, (name, cell, w, layer) in enumerate(
            ("baseline" if k % 2 else "flux2", cells[1 - k % 2], float(rng.uniform(0, 1)), rng.integers(0, 9))
            for k in range(60)
        )
    ]
    design = [replace(trial, values={"w": 0.5, "layer": 3}) for trial in info.trials]
    info = replace(info, trials=(*design, *points), searched={"w": True, "layer": True})
    frame = frame_of(info, truth)
    for trial in points:
        frame.loc[frame["trial_id"] == trial.trial_id, "cmmd"] += trial.values["w"] - 0.5
    observed = observe(frame, info, "cmmd", "min")
    assert len(observed.cells) == 62
    assert verdict(observed).leader.startswith("flux2 · w=0.0")
    (effect,) = estimate_effects(observed).mains
    assert (effect.name, effect.estimate) == ("flux2", pytest.approx(-0.2))
    found = searched_importances(frame, info, "cmmd", "min")
    assert (found[0].path, found[0].points) == ("w", 62)
    assert found[0].share > 0.8
    assert searched_importances(frame, replace(info, searched={}), "cmmd", "min") == ()
