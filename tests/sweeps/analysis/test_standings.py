"""Ranking cells that lack seeds, and when a leader is a winner."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sweeps.analysis.cell_means import standings
from sweeps.analysis.differences import to_baseline
from sweeps.analysis.observations import observe
from sweeps.analysis.verdict import verdict
from sweeps.conclusion import conclusion
from sweeps.leaderboard import UNEVEN, leading_trial, notes, ranking
from tests.sweeps.simulated import frame_of, info_of

CELLS = [{"tokenizer": name} for name in ("flux", "flux2", "repa_e", "dc_ae")]
INFO = info_of(CELLS, range(3))


def table(figures, info=INFO):
    """Make results of cell -> figure of each seed; None where a seed is missing."""
    frame = frame_of(info, lambda levels: 1.0)
    by_trial = {f"{i}-{seed}": value for i, values in enumerate(figures) for seed, value in enumerate(values)}
    frame["cmmd"] = frame["trial_id"].map(by_trial)
    return frame[frame["trial_id"].isin([trial_id for trial_id, value in by_trial.items() if value is not None])]


def judged(figures, info=INFO):
    return verdict(observe(table(figures, info), info, "cmmd", "min"))


def sentence(figures):
    return conclusion(judged(figures), "CMMD", 300, ended=True)


def test_with_every_seed_a_standing_is_the_mean_to_the_last_digit():
    rng = np.random.default_rng(0)
    value = rng.standard_normal((5, 3))
    cell, seed = np.repeat(np.arange(5), 3), np.tile(np.arange(3), 5)
    assert standings(cell, seed, value.ravel(), 5).tolist() == pytest.approx(value.mean(axis=1), rel=1e-15)
    twins = np.tile(value[0], 5)
    assert len(set(standings(cell, seed, twins, 5).tolist())) == 1


def test_without_some_seeds_it_is_the_least_squares_fit():
    rng = np.random.default_rng(1)
    kept = np.flatnonzero(rng.random(20) < 0.7)
    cell, seed = np.repeat(np.arange(5), 4)[kept], np.tile(np.arange(4), 5)[kept]
    value = rng.standard_normal(len(kept))
    columns = np.hstack([np.eye(5)[cell], np.eye(4)[seed]])
    fit = np.linalg.lstsq(columns, value, rcond=None)[0]
    expected = fit[:5] + fit[5:].mean()
    assert standings(cell, seed, value, 5).tolist() == pytest.approx(expected.tolist())


def test_an_easy_seed_alone_leads_nobody():
    easy_first = [[0.5, 1.0, 1.0], [0.4, 0.9, 0.91], [0.6, None, None], [0.7, 1.2, 1.21]]
    assert judged(easy_first).leader == "flux2"
    order = [result.name for result in ranking(table(easy_first), INFO)]
    assert order == ["flux2", "baseline", "repa_e", "dc_ae"]
    assert UNEVEN in notes(table(easy_first), ranking(table(easy_first), INFO), INFO)
    whole = [[0.5, 1.0, 1.0], [0.4, 0.9, 0.91], [0.6, 1.1, 1.1], [0.7, 1.2, 1.21]]
    assert UNEVEN not in notes(table(whole), ranking(table(whole), INFO), INFO)


def test_one_seed_in_common_is_judged_by_the_noise_that_other_cells_show():
    info = info_of(CELLS, range(4))
    hits, rng = [], np.random.default_rng(0)
    for _ in range(400):
        figures = (1.0 + rng.standard_normal(4) + 0.2 * rng.standard_normal((4, 4))).tolist()
        figures[3] = [figures[3][0], None, None, None]
        found = {one.name: one for one in to_baseline(observe(table(figures, info), info, "cmmd", "min"))}
        assert (found["dc_ae"].basis, found["flux2"].basis) == ("pooled", "seeds")
        hits.append(found["dc_ae"].low <= 0.0 <= found["dc_ae"].high)
    assert np.mean(hits) == pytest.approx(0.95, abs=0.035)


def test_a_winner_is_told_from_every_cell_not_only_from_the_runner_up():
    third_is_noisy = [[2.0, 2.1, 1.9], [0.1, 0.2, 0.3], [0.21, 0.3, 0.41], [0.0, 0.5, 0.2]]
    found = judged(third_is_noisy)
    assert (found.leader, found.rival, found.separable) == ("flux2", "dc_ae", False)
    assert sentence(third_is_noisy).startswith("No winner: flux2 leads dc_ae by 0.033 CMMD, within the noise.")
    clear = [[2.0, 2.1, 1.9], [0.1, 0.2, 0.3], [0.21, 0.3, 0.41], [0.5, 0.61, 0.7]]
    assert sentence(clear) == "flux2 wins: 0.11 CMMD ahead of repa_e, beyond the noise between 3 seeds."


def test_cells_that_lack_seeds_never_make_a_winner_of_one_that_is_behind():
    behind = [[1.0, 1.0, 1.0], [0.0, 0.5, None], [None, 0.4, 1.0], [1.2, 1.2, 1.21]]
    found = judged(behind)
    assert (found.leader, found.rival, found.ahead, found.separable) == ("flux2", "repa_e", False, False)
    expected = "No winner: flux2 ranks first, but in the seed they share repa_e is ahead of it by 0.1 CMMD."
    assert sentence(behind) == expected
    apart = [[0.2, None, None], [None, 0.3, None], [None, None, 0.5], [None, None, 0.6]]
    assert sentence(apart) == "No winner: baseline ranks first, but shares no seed with flux2."


def test_equal_cells_have_a_winner_less_often_than_the_level():
    info = info_of([{"tokenizer": str(i)} for i in range(8)], range(3))
    rng, won = np.random.default_rng(0), 0
    observed = observe(frame_of(info, lambda levels: 1.0), info, "cmmd", "min")
    for _ in range(1000):
        figures = rng.standard_normal((3, 1)) + 0.1 * rng.standard_normal((3, 8))
        won += verdict(replace(observed, value=figures.ravel())).separable
    assert won / 1000 < 0.05


def test_the_leading_cell_is_taken_away_not_the_luckiest_trial():
    lucky = [[1.0, 1.0, 1.0], [0.5, 0.4, 0.6], [0.1, 0.9, 0.9], [1.2, None, None]]
    assert leading_trial(table(lucky), INFO, "cmmd") == "1-1"
    assert leading_trial(table(lucky), INFO, "fid") is None
    failed = table(lucky)
    failed.loc[failed["cell_id"] == "1", "state"] = "failed"
    assert leading_trial(failed, INFO, "cmmd") == "2-0"


def test_more_is_better_the_other_way_round():
    info = replace(INFO, mode="max")
    frame = table([[0.5, 1.0, 1.0], [0.4, 0.9, 0.91], [0.6, None, None], [0.3, 0.8, 0.8]])
    found = verdict(observe(frame, info, "cmmd", "max"))
    assert (found.leader, found.rival) == ("repa_e", "baseline")
