"""Squared maximum mean discrepancy with a Gaussian kernel: both estimators and their standard error, in float64.

Shape letters: n samples of x, m samples of y, d embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.arrays import CHUNK, Embeddings, checked_pair

SIGMA = 10.0
SCALE = 1000.0
MIN_SAMPLES = 4
"""Samples of each set below which nothing can be said of an MMD's standard error."""


@dataclass(frozen=True)
class MmdResult:
    """Both estimators and the standard error that they share: they differ by a term that hardly varies."""

    biased: float
    unbiased: float
    se: float


@dataclass(frozen=True)
class KernelRows:
    """All that the estimators and their error need of a kernel, less a constant: sums by row, and of squares.

    Shapes: within_x [n] and within_y [m] leave out the diagonal; between_x [n] and between_y [m] sum over the other
    set. `squares` holds the sums over x-x and y-y pairs of different samples, and over x-y pairs.
    """

    within_x: Tensor
    within_y: Tensor
    between_x: Tensor
    between_y: Tensor
    squares: tuple[float, float, float]

    def variance(self) -> float:
        """Estimate the variance of the U-statistic.

        The jackknife counts what pairs add on top of single samples twice, and is therefore too wide near zero, as
        the bootstrap is; that part is estimated by itself and taken off once. It remains as the lower end.

        Raises: ValueError for fewer than four samples in a set.
        Source: Hoeffding 1948; the variance of two-sample statistics as in Serfling 1980, chapter 5; unbiased
            estimates of what pairs add by U-centring, Szekely and Rizzo 2014 (Annals of Statistics 42).
        """
        n, m = len(self.within_x), len(self.within_y)
        if min(n, m) < MIN_SAMPLES:
            raise ValueError(f"mmd: a standard error needs at least {MIN_SAMPLES} samples of each, got {n} and {m}")
        influence_x = self.within_x / (n - 1) - self.between_x / m
        influence_y = self.within_y / (m - 1) - self.between_y / n
        singles = 4 * float(influence_x.var()) / n + 4 * float(influence_y.var()) / m
        square_x, square_y, square_between = self.squares
        pairs = 2 * _within_pairs(self.within_x, square_x) / (n * (n - 1))
        pairs += 2 * _within_pairs(self.within_y, square_y) / (m * (m - 1))
        pairs += 4 * _between_pairs(self.between_x, self.between_y, square_between) / (n * m)
        return max(singles - pairs, pairs, 0.0)


def _within_pairs(rows: Tensor, squares: float) -> float:
    """Estimate the variance of k(x, x') that neither x nor x' explains alone."""
    n, total = len(rows), float(rows.sum())
    centred = squares - 2 * float(rows.square().sum()) / (n - 2) + total**2 / ((n - 1) * (n - 2))
    return centred / (n * (n - 3))


def _between_pairs(rows: Tensor, columns: Tensor, squares: float) -> float:
    n, m, total = len(rows), len(columns), float(rows.sum())
    centred = squares - float(rows.square().sum()) / m - float(columns.square().sum()) / n + total**2 / (n * m)
    return centred / ((n - 1) * (m - 1))


def mmd(
    x: Embeddings,
    y: Embeddings,
    *,
    sigma: float = SIGMA,
    scale: float = SCALE,
    biased: bool = True,
    chunk: int = CHUNK,
) -> float:
    """Return scale times the squared MMD between two sets of embeddings.

    `biased=True` is the V-statistic over all pairs, diagonals included, as CMMD is published; `biased=False`
    is the U-statistic over pairs of different samples, which may be negative. Memory grows with `chunk`, not
    n * m.

    Shapes: x [n, d], y [m, d].
    Raises: ValueError for fewer than two samples, unequal widths, or values that are not finite.
    Source: Gretton et al. 2012 (JMLR 13), lemma 6; kernel and constants of Jayasumana et al. 2023, arXiv
        2401.09603.
    """
    x, y = checked_pair("mmd", x, y)
    return estimates(kernel_rows(x, y, sigma=sigma, chunk=chunk), scale)[0 if biased else 1]


def mmd_result(
    x: Embeddings, y: Embeddings, *, sigma: float = SIGMA, scale: float = SCALE, chunk: int = CHUNK
) -> MmdResult:
    """Return both estimators and their standard error from one pass over the kernel.

    Shapes: x [n, d], y [m, d].
    Raises: ValueError as `mmd` does, and for fewer than four samples.
    """
    x, y = checked_pair("mmd", x, y)
    rows = kernel_rows(x, y, sigma=sigma, chunk=chunk)
    return MmdResult(*estimates(rows, scale), se=scale * math.sqrt(rows.variance()))


def estimates(rows: KernelRows, scale: float) -> tuple[float, float]:
    """Give the V-statistic and the U-statistic.

    The sums hold k - 1: the ones cancel in both estimators, and the diagonals are zero.
    """
    n, m = len(rows.within_x), len(rows.within_y)
    within_x, within_y, between = (float(part.sum()) for part in (rows.within_x, rows.within_y, rows.between_x))
    biased = scale * (within_x / n**2 + within_y / m**2 - 2 * between / (n * m))
    unbiased = scale * (within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * between / (n * m))
    return max(0.0, biased), unbiased


def kernel_rows(x: Tensor, y: Tensor, *, sigma: float, chunk: int) -> KernelRows:
    """Sum k - 1 by row within x, within y and between, a block of at most chunk x chunk at a time."""
    gamma = checked_gamma(sigma, chunk)
    within_x, square_x = _within(x, gamma, chunk)
    within_y, square_y = _within(y, gamma, chunk)
    between_x, between_y = zeros(x), zeros(y)
    squares = 0.0
    for a in blocks(x, chunk):
        for b in blocks(y, chunk):
            kernel = kernel_minus_one(x[a].double(), y[b].double(), gamma)
            between_x[a] += kernel.sum(dim=1)
            between_y[b] += kernel.sum(dim=0)
            squares += float(kernel.square_().sum())
    return KernelRows(within_x, within_y, between_x, between_y, (square_x, square_y, squares))


def _within(rows: Tensor, gamma: float, chunk: int) -> tuple[Tensor, float]:
    found, squares = zeros(rows), 0.0
    for a in blocks(rows, chunk):
        for b in blocks(rows, chunk, start=a.start):
            kernel = kernel_minus_one(rows[a].double(), rows[b].double(), gamma)
            if a == b:
                # A sample is at distance zero from itself; rounding would leave a crumb here.
                kernel.fill_diagonal_(0.0)
            else:
                found[b] += kernel.sum(dim=0)
            found[a] += kernel.sum(dim=1)
            squares += (1 if a == b else 2) * float(kernel.square_().sum())
    return found, squares


def checked_gamma(sigma: float, chunk: int) -> float:
    """Return 1 / (2 sigma²), or say which setting is wrong."""
    if not sigma > 0:
        raise ValueError(f"mmd: sigma must be positive, got {sigma}")
    if chunk < 1:
        raise ValueError(f"mmd: chunk must be at least 1, got {chunk}")
    return 1.0 / (2.0 * sigma**2)


def blocks(rows: Tensor, chunk: int, start: int = 0) -> Iterator[slice]:
    """Cut rows into blocks, from one of them on."""
    for first in range(start, len(rows), chunk):
        yield slice(first, min(first + chunk, len(rows)))


def zeros(rows: Tensor) -> Tensor:
    """Make a sum for every row."""
    return torch.zeros(len(rows), dtype=torch.float64, device=rows.device)


def kernel_minus_one(a: Tensor, b: Tensor, gamma: float) -> Tensor:
    """Compute exp(-gamma |a - b|²) - 1 without losing the digits of kernels near 1."""
    squares = (a @ b.T).mul_(-2.0)
    squares += a.square().sum(dim=1)[:, None]
    squares += b.square().sum(dim=1)[None, :]
    return squares.clamp_(min=0.0).mul_(-gamma).expm1_()
