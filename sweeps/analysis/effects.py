"""Main effects and two-way interactions, each with an interval and a p-value corrected for how many there are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sweeps.analysis.cell_means import CellMeans
from sweeps.analysis.factors import Factors, Question, Term
from sweeps.analysis.intervals import ALPHA, holm, p_values, quantile
from sweeps.analysis.observations import Floats, Observations, design_only

Basis = Literal["seeds", "cells", "samples", "none"]
ENOUGH_DF = 4
"""Degrees of freedom from which on what the two-way model leaves over is used as noise."""

BASIS = {
    "seeds": "noise from repeating cells with several seeds: covers training and sampling",
    "cells": "one seed: noise is what main effects and two-way interactions leave unexplained between cells",
    "samples": "one seed: intervals cover the samples drawn, not the noise of training again with another seed",
    "none": "one seed and no standard errors: nothing is known of the noise",
}


@dataclass(frozen=True)
class Noise:
    """Where standard errors come from. `sigma` is one trial's standard deviation, NaN where it varies or is unknown."""

    basis: Basis
    df: float
    sigma: float

    @property
    def words(self) -> str:
        """Say it."""
        return BASIS[self.basis]


@dataclass(frozen=True)
class Effect:
    """One estimated term, in the metric's own unit; `low` to `high` holds it with 95 %.

    `wide_low` to `wide_high` hold together with 95 % for all terms of its kind. `p_adjusted` is Holm's over them.
    """

    term: Term
    estimate: float
    se: float
    low: float
    high: float
    wide_low: float
    wide_high: float
    p: float
    p_adjusted: float
    contexts: int
    aliases: tuple[str, ...]

    @property
    def found(self) -> bool:
        """Say whether it differs from 0 beyond the noise, all terms of its kind considered."""
        return self.p_adjusted < ALPHA

    @property
    def name(self) -> str:
        """Name it."""
        return " with ".join(level for _, level in self.term)


@dataclass(frozen=True)
class NotEstimable:
    """A term that these cells cannot tell, and why."""

    term: Term
    reason: str

    @property
    def name(self) -> str:
        """Name it."""
        return " with ".join(level for _, level in self.term)


@dataclass(frozen=True)
class Effects:
    """What an analysis of effects found."""

    mains: tuple[Effect, ...]
    interactions: tuple[Effect, ...]
    missing_mains: tuple[NotEstimable, ...]
    missing_interactions: tuple[NotEstimable, ...]
    noise: Noise


@dataclass(frozen=True)
class Fit:
    """Estimates of R results at once. Shapes: `estimate`, `se`, `p`, `p_adjusted` [K, R]."""

    questions: tuple[Question, ...]
    estimate: Floats
    se: Floats
    p: Floats
    p_adjusted: Floats


class EffectsModel:
    """The terms of a set of observations; what is fitted may be their values or simulated ones."""

    def __init__(self, observed: Observations) -> None:
        self.observed, self.factors = observed, Factors(observed)
        self.means = CellMeans(observed.cell, observed.seed, len(observed.cells))
        self.mains, self.lost_mains = self._answerable(self.factors.mains())
        self.interactions, self.lost_interactions = self._answerable(self.factors.interactions())
        self.basis, self.df = self._basis()

    def _answerable(self, asked: list[Question]) -> tuple[list[Question], list[NotEstimable]]:
        """Keep those whose cells share seeds."""
        lost = [NotEstimable(q.term, q.reason) for q in asked if q.weights is None]
        open_ = [q for q in asked if q.weights is not None]
        if not open_:
            return [], lost
        _, estimable = self.means.variance(_stacked(open_))
        apart = "its cells were trained with different seeds"
        lost += [NotEstimable(q.term, apart) for q, good in zip(open_, estimable, strict=True) if not good]
        return [q for q, good in zip(open_, estimable, strict=True) if good], lost

    def _basis(self) -> tuple[Basis, float]:
        if self.means.df > 0:
            return "seeds", float(self.means.df)
        regression = self.factors.regression
        if regression.axes and regression.tractable:
            left = regression.num_cells - regression.rank
            if left >= ENOUGH_DF:
                return "cells", float(left)
        known = bool(len(self.observed.se)) and bool(np.isfinite(self.observed.se).all())
        return ("samples", math.inf) if known else ("none", math.inf)

    def sigma2(self, y: Floats) -> Floats:
        """Give one trial's variance for each result; NaN where it is not one number. Shapes: [n, R] -> [R]."""
        cells, residuals = self.means.effects(y)
        if self.basis == "seeds":
            return np.asarray((residuals**2).sum(axis=0) / self.df)
        if self.basis == "cells":
            return self.factors.regression.residual_variance(cells)
        return np.full(y.shape[1], np.nan)

    def fit(self, questions: list[Question], y: Floats) -> Fit:
        """Estimate terms. Shapes: y [n, R]."""
        contrasts = _stacked(questions)
        estimate = contrasts @ self.means.effects(y)[0]
        if self.basis in ("seeds", "cells"):
            factor, _ = self.means.variance(contrasts)
            se = np.sqrt(factor[:, None] * self.sigma2(y)[None, :])
        else:  # one seed: a row is a cell
            order = np.argsort(self.observed.cell)
            variance = (contrasts**2) @ (self.observed.se[order] ** 2)
            se = np.broadcast_to(np.sqrt(variance)[:, None], estimate.shape)
        p = p_values(estimate, se, self.df) if self.basis != "none" else np.ones_like(estimate)
        return Fit(tuple(questions), estimate, se, p, holm(p))

    def effects(self, questions: list[Question]) -> tuple[Effect, ...]:
        """Estimate terms from the observed values."""
        if not questions:
            return ()
        fit = self.fit(questions, self.observed.value[:, None])
        one, all_ = quantile(self.df), quantile(self.df, len(questions))
        columns = (column[:, 0].tolist() for column in (fit.estimate, fit.se, fit.p, fit.p_adjusted))
        return tuple(
            Effect(
                q.term, e, s, e - one * s, e + one * s, e - all_ * s, e + all_ * s, p, adjusted, q.contexts, q.aliases
            )
            for q, e, s, p, adjusted in zip(questions, *columns, strict=True)
        )


def _stacked(questions: list[Question]) -> Floats:
    return np.array([question.weights for question in questions])


def estimate_effects(observed: Observations) -> Effects:
    """Estimate every main effect and two-way interaction that the observations of the design's cells allow."""
    observed = design_only(observed)
    if not len(observed.cells):
        return Effects((), (), (), (), Noise("none", math.inf, math.nan))
    model = EffectsModel(observed)
    sigma = float(np.sqrt(model.sigma2(observed.value[:, None])[0]))
    return Effects(
        model.effects(model.mains),
        model.effects(model.interactions),
        tuple(model.lost_mains),
        tuple(model.lost_interactions),
        Noise(model.basis, model.df, sigma),
    )
