"""Every cell against the baseline, paired by seed: trials of one seed share images, noise and timesteps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from sweeps.analysis.intervals import ALPHA, holm, p_values, quantile
from sweeps.analysis.observations import Observations, observe
from sweeps.results import SweepInfo

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Difference:
    """Cell minus reference at one step, over the seeds both have.

    With n >= 2 seeds: mean(d) +- t(n-1) sd(d)/sqrt(n). With one: d +- 1.96 sqrt(se_cell^2 + se_reference^2), from
    the metric's own standard errors, which know the samples but not the noise of training (`basis` "samples").
    Standard error and interval are NaN where nothing is known of the noise.
    """

    cell_id: str
    name: str
    step: int
    seeds: int
    estimate: float
    se: float
    low: float
    high: float
    p: float
    p_adjusted: float
    basis: Literal["seeds", "samples", "none"]

    @property
    def found(self) -> bool:
        """Say whether the cells differ beyond the noise, all cells compared considered."""
        return self.p_adjusted < ALPHA


def difference(observed: Observations, cell: int, reference: int) -> Difference | None:
    """Compare two cells by their positions; None where they share no seed."""
    here, there = observed.by_seed(cell), observed.by_seed(reference)
    pairs = np.array([here[seed] - there[seed] for seed in here if seed in there])
    if not len(pairs):
        return None
    mean, count = float(pairs.mean()), len(pairs)
    if count > 1:
        se, df, basis = float(pairs.std(ddof=1)) / math.sqrt(count), float(count - 1), "seeds"
    else:
        se, df, basis = math.hypot(observed.error(cell), observed.error(reference)), math.inf, "samples"
    key = observed.cells[cell]
    made = Difference(key.cell_id, key.name, observed.step, count, mean, se, math.nan, math.nan, 1.0, 1.0, "none")
    if math.isnan(se):
        return made
    half, p = quantile(df) * se, float(p_values(np.array([mean]), np.array([se]), df)[0])
    return replace(made, low=mean - half, high=mean + half, p=p, p_adjusted=p, basis=basis)  # type: ignore[arg-type]


def to_baseline(observed: Observations) -> tuple[Difference, ...]:
    """Compare every cell with the baseline; p-values are Holm's over all of them."""
    reference = next((i for i, cell in enumerate(observed.cells) if cell.is_baseline), None)
    if reference is None:
        return ()
    found = [difference(observed, i, reference) for i in range(len(observed.cells)) if i != reference]
    return _corrected([one for one in found if one is not None])


def stopped_early(frame: pd.DataFrame, info: SweepInfo, metric: str, better: str) -> tuple[Difference, ...]:
    """Compare each cell that was pruned with the baseline at the last step that cell reached.

    A comparison of its own: at fewer steps, under another correction, and never part of the effects.
    """
    pruned = frame[frame["state"] == "pruned"] if len(frame) else frame
    found = []
    for cell_id, rows in pruned.groupby("cell_id", sort=False):
        step = int(rows["step"].max())
        observed = observe(frame, info, metric, better, step)
        reference = next((i for i, cell in enumerate(observed.cells) if cell.is_baseline), None)
        here = observed.index(str(cell_id))
        full = (frame["cell_id"] == cell_id) & (frame["step"] == info.steps)
        if here is not None and reference is not None and not full.any():
            found.append(difference(observed, here, reference))
    return _corrected([one for one in found if one is not None])


def _corrected(found: Sequence[Difference]) -> tuple[Difference, ...]:
    if not found:
        return ()
    adjusted = holm(np.array([one.p for one in found]))
    return tuple(replace(one, p_adjusted=float(p)) for one, p in zip(found, adjusted, strict=True))
