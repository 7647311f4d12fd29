"""The linear model of a sweep's figures: y = cell + seed + noise, and linear contrasts of its cells.

With incidence N (cells x seeds, 1 where that trial is there), row sums r and column sums k, eliminating the cells
from the normal equations leaves the seeds' own:

    S b = q,   S = diag(k) - N' diag(1/r) N,   q = seed sums of y - N' (cell means of y)
    cell effects  t = cell means - diag(1/r) N b
    var(c't) / sigma^2 = c' diag(1/r) c + u' S^+ u,   u = N' diag(1/r) c

(randomised blocks with any cells missing: Searle, Linear Models, 1971, chapter 7). A contrast can be estimated
exactly if u lies in the range of S: if trials of common seeds connect its cells. The work grows with
cells x seeds^2, so ten thousand cells are no burden.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from sweeps.analysis.observations import Bools, Floats, Ints, Observations

TOLERANCE = 1e-9


def standings(cell: Ints, seed: Ints, value: Floats, num_cells: int) -> Floats:
    """Give the figure that each cell would have with every seed, to rank by: its mean where all have the same seeds.

    A cell that lacks a seed is ranked neither up nor down by how high that seed lies for everyone (least-squares
    means: Searle, Speed and Milliken, 1980, The American Statistician 34). Cells whose seeds nothing connects are
    compared by their plain means.

    Args:
        cell: Position of each row's cell, [n]; every cell has a row.
        seed: [n].
        value: [n].
    """
    model = CellMeans(cell, seed, num_cells)
    if (model.incidence == model.incidence[:1]).all():  # equal figures stay equal to the last digit
        return np.bincount(cell, value, num_cells) / model.rows
    return np.asarray(model.effects(value[:, None])[0][:, 0])


def standings_of(observed: Observations) -> Floats:
    """Give `standings` of observed cells, [cells]."""
    return standings(observed.cell, observed.seed, observed.value, len(observed.cells))


class CellMeans:
    """Cells in blocks of seeds.

    Shapes: `cell` and `seed` int64 [n]; every cell from 0 to `num_cells` - 1 has at least one row.
    """

    def __init__(self, cell: Ints, seed: Ints, num_cells: int) -> None:
        seeds, block = np.unique(seed, return_inverse=True)
        self.cell, self.block, self.num_cells, self.num_seeds = cell, block, num_cells, len(seeds)
        self.incidence = np.zeros((num_cells, self.num_seeds))
        np.add.at(self.incidence, (cell, block), 1.0)
        self.rows = self.incidence.sum(axis=1)
        assert self.rows.all(), "a cell without a row has no mean"

    @cached_property
    def _reduced(self) -> Floats:
        return np.diag(self.incidence.sum(axis=0)) - self.incidence.T @ (self.incidence / self.rows[:, None])

    @cached_property
    def _inverse(self) -> Floats:
        return np.asarray(np.linalg.pinv(self._reduced, hermitian=True, rcond=TOLERANCE), dtype=np.float64)

    @property
    def df(self) -> int:
        """Degrees of freedom of the noise: what repeating cells with several seeds leaves over."""
        rank = self.num_cells + int(np.linalg.matrix_rank(self._reduced, tol=TOLERANCE, hermitian=True))
        return len(self.cell) - rank

    def effects(self, y: Floats) -> tuple[Floats, Floats]:
        """Give the cells' effects and the residuals.

        Shapes: y [n, R] -> [cells, R], [n, R]; R results are fitted at once.
        """
        means = np.zeros((self.num_cells, y.shape[1]))
        np.add.at(means, self.cell, y)
        means /= self.rows[:, None]
        within = np.zeros((self.num_seeds, y.shape[1]))
        np.add.at(within, self.block, y - means[self.cell])
        seeds = self._inverse @ within
        cells = means - (self.incidence @ seeds) / self.rows[:, None]
        return cells, y - cells[self.cell] - seeds[self.block]

    def variance(self, contrasts: Floats) -> tuple[Floats, Bools]:
        """Give var(c't) / sigma^2 of each contrast, and whether it can be estimated. Shapes: [K, cells] -> [K], [K]."""
        through = (contrasts / self.rows) @ self.incidence
        weights = through @ self._inverse
        estimable = np.abs(weights @ self._reduced - through).max(axis=1, initial=0.0) < 1e-7
        return (contrasts**2 / self.rows).sum(axis=1) + (weights * through).sum(axis=1), estimable
