"""Whether the order of cells depends on how their pictures were drawn.

A finished run may be measured again under other sampling settings (`evaluation.also`): another guidance scale, EMA
weights. Two cells change places for sure if the first is better under the sweep's own settings and the second under
the others, each beyond the noise. The p-value of that is the larger of the two (intersection-union: Berger, 1982,
Technometrics 24; it needs no assumption on how the two figures of one model hang together), Holm's over all pairs of
cells and all settings, for the pairs are not chosen before the figures are seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from sweeps.analysis.cell_means import CellMeans, standings_of
from sweeps.analysis.intervals import ALPHA, holm, p_values
from sweeps.analysis.observations import Floats, Ints, Observations, observe, only
from sweeps.results import SweepInfo

if TYPE_CHECKING:
    import pandas as pd

Basis = Literal["seeds", "samples", "none"]
BASES: tuple[Basis, ...] = ("seeds", "samples", "none")
MOST_CELLS = 200
"""Cells whose pairs are compared: the best under the sweep's own settings."""


@dataclass(frozen=True)
class Swap:
    """Two cells in another order: `before` and `after` are first minus second, under own and other settings."""

    first: str
    second: str
    before: float
    after: float
    p: float
    p_adjusted: float = 1.0

    @property
    def found(self) -> bool:
        """Say whether both differences are beyond the noise, everything that was looked at considered."""
        return self.p_adjusted < ALPHA


@dataclass(frozen=True)
class Alternative:
    """One other setting. `own` and `other` hold the same cells; `swaps` come surest first, of `num_pairs` pairs."""

    label: str
    own: Observations
    other: Observations
    swaps: tuple[Swap, ...]
    num_pairs: int
    basis: Basis

    def order(self, observed: Observations) -> list[str]:
        """Name the cells, the best first."""
        standings = observed.sign * standings_of(observed)
        return [observed.cells[i].name for i in np.argsort(standings, kind="stable")]

    @property
    def leaders(self) -> tuple[str, str]:
        """Name the best cell under the own settings, and under the others."""
        return self.order(self.own)[0], self.order(self.other)[0]

    @property
    def num_better(self) -> int:
        """Count the cells whose figure is better under the other settings."""
        return int((self.own.sign * (standings_of(self.other) - standings_of(self.own)) < 0).sum())


def labels(frame: pd.DataFrame, metric: str) -> list[str]:
    """List the other settings under which a metric was measured, in the order of the columns."""
    columns = [name for name in frame.columns if name.startswith(f"{metric}@")]
    return [name.partition("@")[2] for name in columns if frame[name].notna().any()]


def alternatives(frame: pd.DataFrame, info: SweepInfo, metric: str, better: str) -> tuple[Alternative, ...]:
    """Compare the cells under every other setting; those count that were measured under both."""
    found = []
    for label in labels(frame, metric):
        own = observe(frame, info, metric, better)
        other = observe(frame, info, f"{metric}@{label}", better)
        both = [cell.cell_id for cell in own.cells if other.index(cell.cell_id) is not None]
        if len(both) > 1:
            found.append(_alternative(label, _these(own, both), _these(other, both)))
    return _corrected(found)


def _these(observed: Observations, cell_ids: list[str]) -> Observations:
    return only(observed, [i for i, cell in enumerate(observed.cells) if cell.cell_id in set(cell_ids)])


class _Compared:
    """Cells under one setting, and how far two of them lie apart.

    The noise is one for all cells where several seeds tell it, else that of each cell's samples.
    """

    def __init__(self, observed: Observations) -> None:
        self.observed = observed
        self.model = CellMeans(observed.cell, observed.seed, len(observed.cells))
        effects, residuals = self.model.effects(observed.value[:, None])
        self.figures, self._left = effects[:, 0], float((residuals**2).sum())
        self.errors = np.array([observed.error(i) for i in range(len(observed.cells))])

    @property
    def basis(self) -> Basis:
        if self.model.df > 0:
            return "seeds"
        return "samples" if np.isfinite(self.errors).all() else "none"

    def p(self, pairs: Ints) -> Floats:
        """Give the p-value of first = second for every pair. Shapes: [K, 2] -> [K]."""
        contrasts = np.zeros((len(pairs), len(self.figures)))
        contrasts[np.arange(len(pairs)), pairs[:, 0]] += 1.0
        contrasts[np.arange(len(pairs)), pairs[:, 1]] -= 1.0
        gaps = contrasts @ self.figures
        if self.basis == "seeds":
            factor, estimable = self.model.variance(contrasts)
            p = p_values(gaps, np.sqrt(factor * self._left / self.model.df), self.model.df)
            return np.where(estimable, p, 1.0)
        if self.basis == "samples":
            return p_values(gaps, np.sqrt(contrasts**2 @ self.errors**2), math.inf)
        return np.ones(len(pairs))


def _alternative(label: str, own: Observations, other: Observations) -> Alternative:
    one, two, sign = _Compared(own), _Compared(other), own.sign
    best = np.argsort(sign * one.figures, kind="stable")[:MOST_CELLS]
    first, second = (best[index] for index in np.triu_indices(len(best), 1))  # `first` is ahead, or level
    before, after = one.figures[first] - one.figures[second], two.figures[first] - two.figures[second]
    swapped = (sign * before < 0) & (sign * after > 0)
    pairs = np.stack([first[swapped], second[swapped]], axis=1)
    p = np.maximum(one.p(pairs), two.p(pairs))
    found = zip(pairs.tolist(), before[swapped].tolist(), after[swapped].tolist(), p.tolist(), strict=True)
    swaps = [Swap(own.cells[a].name, own.cells[b].name, *rest) for (a, b), *rest in found]
    surest = tuple(sorted(swaps, key=lambda swap: swap.p))
    return Alternative(label, own, other, surest, len(first), max(one.basis, two.basis, key=BASES.index))


def _corrected(found: list[Alternative]) -> tuple[Alternative, ...]:
    """Adjust for all pairs under all settings: those that kept their order are no findings, but were looked at."""
    asked = sum(one.num_pairs for one in found)
    p = np.ones(asked)
    swaps = [swap for one in found for swap in one.swaps]
    p[: len(swaps)] = [swap.p for swap in swaps]
    adjusted = iter(holm(p)[: len(swaps)].tolist()) if asked else iter(())
    return tuple(
        replace(one, swaps=tuple(replace(swap, p_adjusted=next(adjusted)) for swap in one.swaps)) for one in found
    )
