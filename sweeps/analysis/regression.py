"""Main effects and interactions of a design whose cells do not pair up, such as a fraction of a grid.

Levels are coded to sum to zero (two levels: -1 for the baseline's, +1), so a main effect is an average over the
other axes' levels and an interaction is what is left over. With X the columns a model has, X^+ its pseudo-inverse
and r a row that asks for one difference, r can be estimated if r X^+ X = r, and is then estimated by r X^+. The
columns Z of the terms that the model leaves out enter that estimate as r X^+ Z: where this is not 0 they are
aliased with it (Box and Hunter, 1961).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import combinations

import numpy as np

from sweeps.analysis.observations import CellKey, Floats

Pair = tuple[str, str]
TOLERANCE = 1e-7
LIMIT = 2_000
"""Cells or columns above which no regression is tried."""


class Regression:
    """The columns of a design. `axes` maps each axis to its levels, the baseline's first."""

    def __init__(self, cells: Sequence[CellKey], axes: Mapping[str, Sequence[str]]) -> None:
        self.axes = {axis: list(levels) for axis, levels in axes.items() if len(levels) > 1}
        self.columns = {
            axis: np.array([_code(levels, cell.levels[axis]) for cell in cells]).reshape(len(cells), -1)
            for axis, levels in self.axes.items()
        }
        self.num_cells = len(cells)

    @property
    def pairs(self) -> list[Pair]:
        """List the pairs of axes."""
        return list(combinations(self.axes, 2))

    @property
    def tractable(self) -> bool:
        """Say whether the design is small enough."""
        sizes = [len(levels) - 1 for levels in self.axes.values()]
        return self.num_cells <= LIMIT and 1 + sum(sizes) + sum(a * b for a, b in combinations(sizes, 2)) <= LIMIT

    def block(self, pair: Pair) -> Floats:
        """Give the columns of a pair's interaction."""
        one, two = self.columns[pair[0]], self.columns[pair[1]]
        return np.einsum("ni,nj->nij", one, two).reshape(self.num_cells, -1)

    @cached_property
    def additive(self) -> Floats:
        """The columns of the mean and the main effects."""
        return np.hstack([np.ones((self.num_cells, 1)), *self.columns.values()])

    @cached_property
    def two_way(self) -> Floats:
        """Those columns and every pair's."""
        return np.hstack([self.additive, *(self.block(pair) for pair in self.pairs)])

    @cached_property
    def _additive_inverse(self) -> Floats:
        return np.asarray(np.linalg.pinv(self.additive, rcond=TOLERANCE), dtype=np.float64)

    @cached_property
    def _two_way_inverse(self) -> Floats:
        return np.asarray(np.linalg.pinv(self.two_way, rcond=TOLERANCE), dtype=np.float64)

    @cached_property
    def rank(self) -> int:
        """Independent columns of the two-way model."""
        return int(np.linalg.matrix_rank(self.two_way, tol=TOLERANCE))

    def residual_variance(self, effects: Floats) -> Floats:
        """Give the mean square that the two-way model leaves of the cells' effects. Shapes: [cells, R] -> [R]."""
        left = effects - self.two_way @ (self._two_way_inverse @ effects)
        return np.asarray((left**2).sum(axis=0) / (self.num_cells - self.rank))

    def main(self, axis: str, level: str) -> tuple[Floats | None, tuple[Pair, ...]]:
        """Give the weights of the cells that estimate a level against the baseline's, and what is aliased with it."""
        ask = np.zeros(self.two_way.shape[1])
        start = 1 + sum(self.columns[name].shape[1] for name in list(self.axes)[: list(self.axes).index(axis)])
        row = self._row(axis, level)
        ask[start : start + len(row)] = row
        found = _weights(ask, self.two_way, self._two_way_inverse)
        if found is not None:
            return found, ()
        found = _weights(ask[: self.additive.shape[1]], self.additive, self._additive_inverse)
        if found is None:
            return None, ()
        aliased = [pair for pair in self.pairs if np.abs(found @ self.block(pair)).max() > TOLERANCE]
        return found, tuple(aliased)

    def interaction(self, pair: Pair, levels: Pair) -> Floats | None:
        """Give the weights of the cells that estimate an interaction against the baseline's levels."""
        ask = np.zeros(self.two_way.shape[1])
        start = self.additive.shape[1]
        for other in self.pairs:
            size = self.columns[other[0]].shape[1] * self.columns[other[1]].shape[1]
            if other == pair:
                rows = [self._row(axis, level) for axis, level in zip(pair, levels, strict=True)]
                ask[start : start + size] = np.outer(*rows).ravel()
            start += size
        return _weights(ask, self.two_way, self._two_way_inverse)

    def aliases(self, pair: Pair) -> Iterator[str]:
        """Name the axes and pairs whose columns depend linearly on a pair's, taken one at a time."""
        own = self.block(pair)
        others = {axis: self.columns[axis] for axis in self.axes if axis not in pair}
        others |= {" × ".join(other): self.block(other) for other in self.pairs if other != pair}
        for name, columns in others.items():
            if _rank(own) + _rank(columns) > _rank(np.hstack([own, columns])):
                yield name

    def _row(self, axis: str, level: str) -> Floats:
        levels = self.axes[axis]
        return _code(levels, level) - _code(levels, levels[0])


def _code(levels: Sequence[str], level: str) -> Floats:
    """Code a level: -1 everywhere for the baseline's, else a 1 in its own column."""
    position = levels.index(level)
    return -np.ones(len(levels) - 1) if position == 0 else np.eye(len(levels) - 1)[position - 1]


def _weights(ask: Floats, columns: Floats, inverse: Floats) -> Floats | None:
    found = ask @ inverse
    return found if np.abs(found @ columns - ask).max() < TOLERANCE else None


def _rank(columns: Floats) -> int:
    """Count independent columns beside the mean."""
    return int(np.linalg.matrix_rank(columns - columns.mean(axis=0), tol=TOLERANCE)) if columns.any() else 0
