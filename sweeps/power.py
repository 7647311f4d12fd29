"""What a number of seeds can tell apart, given how much a metric moves when the same cell is trained again.

The noise of retraining is a coefficient of variation (CoV): a cell's metric under another seed is its mean times
1 + CoV * z. Seeds pair trials, but how much of the noise a pair shares is not known beforehand, so none is assumed:
the difference of two cells under one seed has a deviation of CoV * sqrt(2).
Source: "The FID Lottery", arXiv 2606.20536 (CoV of FID, 1-2 %).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import optimize, stats

ASSUMED_COV = 0.013
LEVEL, POWER = 0.05, 0.80
GAP = 0.01
MOST_SEEDS = 1000
NODES = 400


@dataclass(frozen=True)
class Noise:
    """The CoV of retraining, and where it comes from: `freedom` is 0 where it is assumed."""

    cov: float
    cells: int = 0
    freedom: int = 0


ASSUMED = Noise(ASSUMED_COV)


def power(gap: float, cov: float, seeds: int, level: float = LEVEL) -> float:
    """Give the probability that a paired two-sided t test finds a relative gap between two cells.

    Args:
        gap: True difference, relative to the metric.
        seeds: Pairs; at least 2, because one leaves nothing to estimate the noise from.
    """
    freedom = seeds - 1
    shift = gap / (cov * math.sqrt(2 / seeds))
    critical = float(stats.t.ppf(1 - level / 2, freedom))
    # The noncentral t distribution as a mean over the estimated deviation: scipy's own overflows at few seeds.
    points, weights = _quadrature()
    threshold = critical * np.sqrt(stats.chi2.ppf(points, freedom) / freedom)
    return float(weights @ (stats.norm.sf(threshold - shift) + stats.norm.cdf(-threshold - shift)))


@cache
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    points, weights = np.polynomial.legendre.leggauss(NODES)
    return (points + 1) / 2, weights / 2


def detectable(
    cov: float, seeds: int, comparisons: int = 1, level: float = LEVEL, wanted: float = POWER
) -> float | None:
    """Give the smallest relative gap found with the wanted power; None for one seed, which has no interval.

    Args:
        comparisons: Number of cells compared with the baseline; the level is divided by it (Bonferroni).
    """
    if seeds < 2:
        return None
    each = level / comparisons
    # Four times the critical value: there the power is beyond any that is asked for.
    most = cov * math.sqrt(2 / seeds) * 4 * float(stats.t.ppf(1 - each / 2, seeds - 1))
    return float(optimize.brentq(lambda gap: power(gap, cov, seeds, each) - wanted, 1e-12, most, xtol=cov * 1e-6))


def seeds_for(gap: float, cov: float, comparisons: int = 1) -> int | None:
    """Give the fewest seeds that tell a relative gap apart; None beyond `MOST_SEEDS`."""
    each = LEVEL / comparisons
    low, high = 1, 2
    while power(gap, cov, high, each) < POWER:
        low, high = high, 2 * high
        if low > MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(gap, cov, middle, each) >= POWER else (middle, high)
    return high


def backwards(gap: float, cov: float, seeds: int) -> float:
    """Give the probability that the means over the seeds rank two cells with a true relative gap the wrong way."""
    return float(stats.norm.sf(gap / (cov * math.sqrt(2 / seeds))))


def measured(values: Mapping[str, Sequence[float]]) -> Noise:
    """Pool the CoV of cells trained under several seeds; assumed where there is none.

    Args:
        values: Cell -> its metric under each seed.
    """
    found = {cell: list(each) for cell, each in values.items() if len(each) > 1 and math.fsum(each) != 0}
    freedom = sum(len(each) - 1 for each in found.values())
    if not freedom:
        return ASSUMED
    squares = math.fsum(_squares(each) for each in found.values())
    return Noise(math.sqrt(squares / freedom), len(found), freedom) if squares else ASSUMED


def _squares(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value / mean - 1) ** 2 for value in values)
