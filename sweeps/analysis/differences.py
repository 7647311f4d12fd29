"""Every cell against the baseline, paired by seed: trials of one seed share images, noise and timesteps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from sweeps.analysis.cell_means import CellMeans
from sweeps.analysis.intervals import ALPHA, holm, p_values, quantile
from sweeps.analysis.observations import Floats, Observations, observe
from sweeps.results import SweepInfo

if TYPE_CHECKING:
    import pandas as pd


Basis = Literal["seeds", "pooled", "samples", "none"]


@dataclass(frozen=True)
class Difference:
    """Cell minus reference at one step, over the seeds both have.

    With n >= 2 seeds: mean(d) +- t(n-1) sd(d)/sqrt(n). With one: d +- t(df) sigma sqrt(2), where other cells were
    trained with several seeds and so tell one trial's deviation sigma (`basis` "pooled"; see
    `sweeps.analysis.cell_means`). Where none was: d +- 1.96 sqrt(se_cell^2 + se_reference^2), from the metric's own
    standard errors, which know the samples but not the noise of training ("samples"). Standard error and interval
    are NaN where nothing is known of the noise.
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
    basis: Basis

    @property
    def repeated(self) -> bool:
        """Say whether the noise of training is known, from several seeds."""
        return self.basis in ("seeds", "pooled")

    @property
    def found(self) -> bool:
        """Say whether the cells differ beyond the noise, all cells compared considered."""
        return self.p_adjusted < ALPHA


class Comparison:
    """Any two cells of a set of observations, by their positions."""

    def __init__(self, observed: Observations) -> None:
        self.observed = observed
        rows = np.argsort(observed.cell, kind="stable")
        ends = np.cumsum(np.bincount(observed.cell, minlength=len(observed.cells)))[:-1]
        columns = (np.split(column[rows], ends) for column in (observed.seed, observed.value))
        self._by_seed = [dict(zip(s.tolist(), v.tolist(), strict=True)) for s, v in zip(*columns, strict=True)]

    @cached_property
    def _pooled(self) -> tuple[float, float]:
        """The standard deviation of one trial and its degrees of freedom; 0 of these where no cell was repeated."""
        model = CellMeans(self.observed.cell, self.observed.seed, len(self.observed.cells))
        if not model.df:
            return math.nan, 0.0
        _, residuals = model.effects(self.observed.value[:, None])
        return math.sqrt(float((residuals**2).sum()) / model.df), float(model.df)

    def difference(self, cell: int, reference: int) -> Difference | None:
        """Compare two cells; None where they share no seed."""
        here, there = self._by_seed[cell], self._by_seed[reference]
        pairs = np.array([here[seed] - there[seed] for seed in here if seed in there])
        if not len(pairs):
            return None
        mean, count = float(pairs.mean()), len(pairs)
        se, df, basis = self._noise(cell, reference, pairs)
        key, step = self.observed.cells[cell], self.observed.step
        if math.isnan(se):
            return Difference(key.cell_id, key.name, step, count, mean, se, math.nan, math.nan, 1.0, 1.0, "none")
        half, p = quantile(df) * se, float(p_values(np.array([mean]), np.array([se]), df)[0])
        return Difference(key.cell_id, key.name, step, count, mean, se, mean - half, mean + half, p, p, basis)

    def _noise(self, cell: int, reference: int, pairs: Floats) -> tuple[float, float, Basis]:
        """Give the standard error of the mean of the pairs, its degrees of freedom, and where it comes from."""
        if len(pairs) > 1:
            return float(pairs.std(ddof=1)) / math.sqrt(len(pairs)), float(len(pairs) - 1), "seeds"
        sigma, df = self._pooled
        if df:
            return sigma * math.sqrt(2), df, "pooled"
        own = (self.observed.error(cell), self.observed.error(reference))
        return math.hypot(*own), math.inf, "samples"


def to_baseline(observed: Observations) -> tuple[Difference, ...]:
    """Compare every cell with the baseline; p-values are Holm's over all of them."""
    return _corrected(_against_baseline(observed, range(len(observed.cells))))


def stopped_early(frame: pd.DataFrame, info: SweepInfo, metric: str, better: str) -> tuple[Difference, ...]:
    """Compare each cell that was pruned with the baseline at the last step that cell reached.

    A comparison of its own: at fewer steps, under another correction, and never part of the effects.
    """
    if not len(frame):
        return ()
    ended = frame.groupby("cell_id", sort=False)["step"].max()
    reached = frame[frame["state"] == "pruned"].groupby("cell_id", sort=False)["step"].max()
    reached = reached[ended[reached.index] < info.steps]
    found: dict[str, Difference] = {}
    for step, cell_ids in reached.groupby(reached).groups.items():
        observed = observe(frame, info, metric, better, int(step))
        wanted = set(cell_ids)
        cells = [i for i, cell in enumerate(observed.cells) if cell.cell_id in wanted]
        found |= {one.cell_id: one for one in _against_baseline(observed, cells)}
    return _corrected([found[cell_id] for cell_id in reached.index if cell_id in found])


def _against_baseline(observed: Observations, cells: Iterable[int]) -> list[Difference]:
    reference = next((i for i, cell in enumerate(observed.cells) if cell.is_baseline), None)
    if reference is None:
        return []
    compared = Comparison(observed)
    found = (compared.difference(i, reference) for i in cells if i != reference)
    return [one for one in found if one is not None]


def _corrected(found: Sequence[Difference]) -> tuple[Difference, ...]:
    if not found:
        return ()
    adjusted = holm(np.array([one.p for one in found]))
    return tuple(replace(one, p_adjusted=float(p)) for one, p in zip(found, adjusted, strict=True))
