"""Differences between cells, and how large one has to be to mean anything.

Trials of one seed see the same images, noise and timesteps in training and the same prompts and noise when they
are measured, so two cells are compared seed by seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

SHARED = 0.5
"""Correlation assumed between the measurement errors of two trials of one seed.

They share prompts, noise and references, so their errors are not independent. At one half and with equal errors,
the error of the difference is the error of one value, which is the one-standard-error rule of Breiman et al. 1984
(Classification and Regression Trees). Used with one seed only: from two seeds on the spread of the differences
itself is measured.
"""


@dataclass(frozen=True)
class Score:
    """A measured value, turned so that less is better, and its standard error."""

    value: float
    se: float


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, its standard error, and how many differences beyond one it comes from.

    `freedom` is 0 where the error comes from the metric's own, for want of a second seed.
    """

    mean: float
    se: float
    freedom: int

    def noise(self, errors: float) -> float:
        """Give the size below which the difference is no more than noise.

        Args:
            errors: In standard errors of a well-known spread; few seeds know theirs badly, so that the same
                level takes more of them (Student's t).
        """
        return self.se * (student(errors, self.freedom) if self.freedom else errors)


@lru_cache(maxsize=4096)
def student(errors: float, freedom: int) -> float:
    """Give Student's t for the level that so many standard errors have under the normal distribution."""
    from scipy.stats import norm, t

    return float(t.isf(norm.sf(errors), freedom))


def measurement_error(one: Score, other: Score) -> float:
    """Give the standard error of the difference of two values that share half of theirs."""
    shared = 2 * SHARED * one.se * other.se
    return math.sqrt(max(0.0, one.se**2 + other.se**2 - shared))


def difference(one: Mapping[int, Score], other: Mapping[int, Score]) -> Difference | None:
    """Compare two cells over the seeds that both have; None where there is no such seed.

    Args:
        one: Seed -> score of the cell whose excess is asked for.
        other: Seed -> score of the cell it is compared with.
    """
    seeds = sorted(one.keys() & other.keys())
    if not seeds:
        return None
    found = [one[seed].value - other[seed].value for seed in seeds]
    mean = math.fsum(found) / len(found)
    if len(found) == 1:
        return Difference(mean, measurement_error(one[seeds[0]], other[seeds[0]]), 0)
    variance = math.fsum((value - mean) ** 2 for value in found) / (len(found) - 1)
    return Difference(mean, math.sqrt(variance / len(found)), len(found) - 1)


def standings(scores: Mapping[str, Mapping[int, Score]]) -> dict[str, float]:
    """Give every cell a value to rank by: the mean of its seeds, each against the seed's own level.

    A cell that lost an unlucky seed does not gain by it. A seed's level is its mean over the cells that have
    every seed, where there are any.
    """
    seeds = {seed for found in scores.values() for seed in found}
    whole = [found for found in scores.values() if len(found) == len(seeds)] or list(scores.values())
    level = {seed: _mean([f[seed].value for f in whole if seed in f]) for seed in seeds}
    return {
        name: _mean([score.value - level[seed] for seed, score in found.items()]) for name, found in scores.items()
    }


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
