"""Whether a ranking depends on the sampling settings: planted swaps are found, noise is called noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sweeps.analysis.alternatives import alternatives, labels
from sweeps.analysis.observations import error_column, observe
from tests.sweeps.simulated import also_measured, cells_of, frame_of, info_of

AXES = {"alignment": ["none", "repa_dinov2", "repa_dinov3"], "tokenizer": ["flux", "repa_e"]}
CELLS = cells_of(AXES)
LABEL = "guidance_scale=2"
PULL = {"repa_dinov2": -0.2, "repa_dinov3": -0.1, "repa_e": -0.3}


def truth(levels):
    return 1.0 + sum(PULL.get(level, 0.0) for level in levels.values())


def turned(levels):
    """Under the other settings DINOv3 helps more than DINOv2; nothing else changes its place."""
    return truth(levels) - (0.15 if levels["alignment"] == "repa_dinov3" else 0.0)


def swaps_of(own, other, seeds=range(3), noise=0.005, se=0.005, seed_noise=0.0):
    info = info_of(CELLS, seeds)
    frame = frame_of(info, own, noise=noise, se=se, seed_noise=seed_noise)
    (found,) = alternatives(also_measured(frame, LABEL, other, noise=noise, se=se), info, "cmmd", "min")
    return found


def test_planted_swaps_are_found_and_others_are_not():
    found = swaps_of(truth, turned)
    sure = {(swap.first, swap.second) for swap in found.swaps if swap.found}
    assert sure == {("repa_dinov2", "repa_dinov3"), ("repa_dinov2 · repa_e", "repa_dinov3 · repa_e")}
    assert found.num_pairs == 15
    assert found.leaders == ("repa_dinov2 · repa_e", "repa_dinov3 · repa_e")
    best = next(swap for swap in found.swaps if swap.first == "repa_dinov2")
    assert (best.before, best.after) == (pytest.approx(-0.1, abs=0.02), pytest.approx(0.05, abs=0.02))


def test_one_seed_is_judged_by_the_samples_noise():
    assert {swap.found for swap in swaps_of(truth, turned, seeds=[0], noise=0.0, se=0.005).swaps} == {True}
    unsure = swaps_of(truth, turned, seeds=[0], noise=0.0, se=0.05)
    assert ({swap.found for swap in unsure.swaps}, unsure.basis) == ({False}, "samples")


def test_without_standard_errors_no_swap_is_sure():
    found = swaps_of(truth, turned, seeds=[0], noise=0.0, se=math.nan)
    assert (found.basis, [swap.found for swap in found.swaps]) == ("none", [False, False])


def test_what_all_cells_share_changes_no_order():
    found = swaps_of(truth, lambda levels: truth(levels) / 2, noise=0.0, seed_noise=1.0)
    assert (found.swaps, found.num_better) == ((), 6)


@pytest.mark.parametrize("own", [lambda levels: 1.0, lambda levels: 10 * truth(levels)])
def test_noise_alone_makes_no_sure_swap_more_often_than_it_may(own):
    """All cells are alike under the other settings, and alike or far apart under their own: no swap is true."""
    info, swapped, wrong = info_of(CELLS, range(3)), 0, 0
    for random in range(300):
        frame = frame_of(info, own, noise=0.1, random=random)
        frame = also_measured(frame, LABEL, lambda levels: 1.0, noise=0.1, random=1000 + random)
        (found,) = alternatives(frame, info, "cmmd", "min")
        swapped += bool(found.swaps)
        wrong += any(swap.found for swap in found.swaps)
    assert swapped > 250
    assert wrong <= 300 * 0.05


def test_only_cells_measured_under_both_settings_are_compared():
    info = info_of(CELLS, range(2))
    frame = also_measured(frame_of(info, truth), LABEL, turned)
    frame.loc[frame["name"] == "repa_e", f"cmmd@{LABEL}"] = np.nan
    (found,) = alternatives(frame, info, "cmmd", "min")
    assert [cell.name for cell in found.own.cells] == [cell.name for cell in found.other.cells]
    assert "repa_e" not in [cell.name for cell in found.own.cells]
    assert found.num_pairs == 10


def test_settings_are_listed_as_the_columns_name_them():
    frame = also_measured(frame_of(info_of(CELLS), truth), LABEL, truth)
    frame["cmmd@weights=ema"] = np.nan
    assert labels(frame, "cmmd") == [LABEL]
    assert error_column("cmmd") == "cmmd_se"
    assert error_column("cmmd@weights=ema") == "cmmd_se@weights=ema"
    observed = observe(frame, info_of(CELLS), f"cmmd@{LABEL}", "min")
    assert set(observed.se) == {0.05}
    assert alternatives(frame_of(info_of(CELLS), truth), info_of(CELLS), "cmmd", "min") == ()
