"""Planted effects come back, noise stays noise, and what a design cannot tell is said."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from sweeps.analysis.effects import EffectsModel, estimate_effects
from sweeps.analysis.intervals import quantile
from sweeps.analysis.observations import observe
from tests.sweeps.simulated import GRID, cells_of, frame_of, info_of, without_end

MAIN = {"repa_dinov2": -0.10, "repa_dinov3": -0.15, "contrastive": 0.0, "x_prediction": 0.2, "repa_e": -0.12}
TOGETHER = -0.08


def truth(levels):
    """Main effects, and one interaction: REPA with DINOv2 and the REPA-E tokenizer give more than their sum."""
    both = levels["alignment"] == "repa_dinov2" and levels["tokenizer"] == "repa_e"
    return 1.0 + sum(MAIN.get(level, 0.0) for level in levels.values()) + (TOGETHER if both else 0.0)


def observed_of(cells, seeds=range(5), *, noise=0.0, frame=None, random=0, se=0.05):
    info = info_of(cells, seeds)
    frame = frame_of(info, truth, noise=noise, seed_noise=0.3, random=random, se=se) if frame is None else frame
    return observe(frame, info, "cmmd", "min")


def named(effects):
    return {effect.name: effect for effect in effects}


def test_planted_effects_are_recovered_exactly_without_noise_whatever_the_seeds_do():
    found = estimate_effects(observed_of(cells_of()))
    mains, pairs = named(found.mains), named(found.interactions)
    # Averaged over the tokenizers, one of three of which has the interaction.
    assert mains["repa_dinov2"].estimate == pytest.approx(-0.10 + TOGETHER / 3)
    assert mains["repa_dinov3"].estimate == pytest.approx(-0.15)
    assert mains["x_prediction"].estimate == pytest.approx(0.2)
    assert mains["contrastive"].estimate == pytest.approx(0.0, abs=1e-9)
    assert pairs["repa_dinov2 with repa_e"].estimate == pytest.approx(TOGETHER)
    others = [effect.estimate for name, effect in pairs.items() if name != "repa_dinov2 with repa_e"]
    assert others == pytest.approx([0.0] * 11, abs=1e-9)
    assert {effect.contexts for effect in found.mains} == {9}
    assert {effect.contexts for effect in found.interactions} == {3}


def test_planted_effects_are_found_in_noise_and_only_they():
    found = estimate_effects(observed_of(cells_of(), noise=0.03))
    assert {e.name for e in found.mains if e.found} == {"repa_dinov2", "repa_dinov3", "x_prediction", "repa_e"}
    assert {e.name for e in found.interactions if e.found} == {"repa_dinov2 with repa_e"}
    assert found.noise.basis == "seeds"
    assert found.noise.df == 26 * 4
    assert found.noise.sigma == pytest.approx(0.03, rel=0.2)


def test_a_full_grid_agrees_with_the_difference_of_marginal_means():
    observed = observed_of(cells_of(), noise=0.1)
    table = pd.DataFrame([observed.cells[i].levels for i in observed.cell]).assign(y=observed.value)
    means = table.groupby("tokenizer")["y"].mean()
    effect = named(estimate_effects(observed).mains)["flux2"]
    assert effect.estimate == pytest.approx(means["flux2"] - means["flux"])
    assert effect.se == pytest.approx(estimate_effects(observed).noise.sigma * math.sqrt(2 / 45))


@pytest.fixture(scope="module")
def noise_only():
    """A 3 x 3 x 3 grid with five seeds, and 1,000 results of it that are nothing but noise."""
    observed = observed_of(cells_of())
    rng = np.random.default_rng(1)
    seeds = rng.standard_normal((5, 1000))
    return EffectsModel(observed), seeds[observed.seed] + rng.standard_normal((len(observed.value), 1000))


@pytest.mark.parametrize("kind", ["mains", "interactions"])
def test_pure_noise_gives_a_false_finding_as_rarely_as_stated(noise_only, kind):
    model, y = noise_only
    fit = model.fit(getattr(model, kind), y)
    families = (fit.p_adjusted < 0.05).any(axis=0).mean()
    assert 0.02 < families < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)
    single = (fit.p < 0.05).mean()
    assert single == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("kind", ["mains", "interactions"])
def test_intervals_cover_as_often_as_they_say(noise_only, kind):
    model, noise = noise_only
    questions = getattr(model, kind)
    truths = np.array([truth(cell.levels) for cell in model.observed.cells])
    fit = model.fit(questions, noise + truths[model.observed.cell][:, None])
    real = np.array([question.weights @ truths for question in questions])[:, None]
    one, together = (np.abs(fit.estimate - real) < quantile(model.df, m) * fit.se for m in (1, len(questions)))
    assert one.mean() == pytest.approx(0.95, abs=0.01)
    assert together.all(axis=0).mean() > 0.95 - 3 * math.sqrt(0.05 * 0.95 / 1000)


def test_power_is_what_the_noncentral_t_says(noise_only):
    from scipy import stats

    model, noise = noise_only
    question = [next(q for q in model.mains if q.term == (("tokenizer", "flux2"),))]
    planted = np.array([0.6 * (cell.levels["tokenizer"] == "flux2") for cell in model.observed.cells])
    fit = model.fit(question, noise + planted[model.observed.cell][:, None])
    shift = 0.6 / math.sqrt(2 / 45)
    expected = stats.nct.sf(stats.t.ppf(0.975, model.df), model.df, shift)
    assert (fit.p < 0.05).mean() == pytest.approx(expected, abs=0.04)


def test_one_seed_takes_its_noise_from_what_two_way_effects_leave():
    found = estimate_effects(observed_of(cells_of(), seeds=[0], noise=0.03))
    assert (found.noise.basis, found.noise.df) == ("cells", 8)
    assert {"repa_dinov3", "x_prediction"} <= {e.name for e in found.mains if e.found}


def test_one_seed_and_pure_noise_keep_the_stated_rate():
    model = EffectsModel(observed_of(cells_of(), seeds=[0]))
    y = np.random.default_rng(2).standard_normal((27, 1000))
    rate = (model.fit(model.mains, y).p_adjusted < 0.05).any(axis=0).mean()
    assert 0.02 < rate < 0.07


def test_one_at_a_time_with_one_seed_says_that_training_noise_is_not_covered():
    base = cells_of()[0]
    cells = [base, *({**base, axis: level} for axis in GRID for level in GRID[axis][1:])]
    found = estimate_effects(observed_of(cells, seeds=[0], se=0.04))
    assert found.noise.basis == "samples"
    assert "not the noise of training" in found.noise.words
    effect = named(found.mains)["repa_dinov3"]
    assert (effect.estimate, effect.se) == (pytest.approx(-0.15), pytest.approx(0.04 * math.sqrt(2)))
    assert effect.contexts == 1
    assert found.interactions == ()
    assert {lost.reason for lost in found.missing_interactions} == {"no cell with both has reached full length"}


def test_without_seeds_and_errors_nothing_is_found():
    base = cells_of()[0]
    found = estimate_effects(observed_of([base, {**base, "tokenizer": "flux2"}], seeds=[0], se=math.nan))
    assert found.noise.basis == "none"
    assert [(e.found, math.isnan(e.se)) for e in found.mains] == [(False, True)]


def test_holes_are_left_out_of_the_average_and_what_they_hide_is_said():
    info = info_of(cells_of(), range(3))
    frame = frame_of(info, truth, seed_noise=0.2)
    lost = [
        t.trial_id for t in info.trials if t.levels["alignment"] == "repa_dinov2" and t.levels["tokenizer"] == "flux2"
    ]
    observed = observe(without_end(frame, lost), info, "cmmd", "min")
    found = estimate_effects(observed)
    effect = named(found.mains)["repa_dinov2"]
    assert effect.contexts == 6  # three objectives with each of two tokenizers
    assert effect.estimate == pytest.approx(-0.10 + TOGETHER / 2)
    assert [lost.name for lost in found.missing_interactions] == ["repa_dinov2 with flux2"]
    assert set(observed.left_out.values()) == {"pruned at step 100 of 300"}


def test_figures_of_cells_that_were_stopped_early_never_enter():
    info = info_of(cells_of(), range(2))
    frame = frame_of(info, truth)
    early = without_end(frame, [t.trial_id for t in info.trials if t.levels["objective"] == "x_prediction"])
    observed = observe(early, info, "cmmd", "min")
    assert max(observed.value) < 1.3  # at step 100 figures are three times as large
    assert "x_prediction" not in named(estimate_effects(observed).mains)


def test_unequal_seeds_are_balanced_by_their_blocks():
    """A seed that only the contenders have, and that is worse for all, must not make the contenders look worse."""
    info = info_of(cells_of(), range(3))
    frame = frame_of(info, truth)
    frame.loc[frame["seed"] == 2, "cmmd"] += 5.0
    frame = frame[(frame["seed"] < 2) | frame["alignment"].isin(["repa_dinov3"])]
    found = estimate_effects(observe(frame, info, "cmmd", "min"))
    assert named(found.mains)["repa_dinov3"].estimate == pytest.approx(-0.15)


def test_cells_that_share_no_seed_cannot_be_compared():
    base = cells_of()[0]
    info = info_of([base, {**base, "tokenizer": "flux2"}], [0, 1])
    frame = frame_of(info, truth)
    apart = frame[(frame["seed"] == 0) == frame["is_baseline"]]
    found = estimate_effects(observe(apart, info, "cmmd", "min"))
    assert found.mains == ()
    assert [lost.reason for lost in found.missing_mains] == ["its cells were trained with different seeds"]


def test_two_identical_cells_in_ten_thousand_take_no_dense_inverse():
    """Ten thousand cells: the block elimination's matrices are seeds by seeds."""
    from sweeps.analysis.cell_means import CellMeans

    cell, seed = np.repeat(np.arange(10_000), 2), np.tile(np.arange(2), 10_000)
    y = np.random.default_rng(0).standard_normal((20_000, 1))
    means = CellMeans(cell, seed, 10_000)
    effects, _ = means.effects(y)
    assert means.df == 9_999
    assert effects[:, 0] == pytest.approx(y[:, 0].reshape(-1, 2).mean(axis=1))
