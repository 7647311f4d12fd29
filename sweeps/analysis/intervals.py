"""Intervals and corrected p-values."""

from __future__ import annotations

from functools import cache

import numpy as np

from sweeps.analysis.observations import Floats

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE


@cache
def quantile(df: float, count: int = 1) -> float:
    """Give the two-sided quantile of Student's t (the normal's for infinite df), for `count` intervals at once.

    With count m the interval is at level 1 - 0.05/m (Bonferroni), so all m hold together with 95 %.
    """
    from scipy import stats

    tail = 1 - ALPHA / count / 2
    return float(stats.norm.ppf(tail) if np.isinf(df) else stats.t.ppf(tail, df))


def p_values(estimate: Floats, se: Floats, df: float) -> Floats:
    """Give the two-sided p-value of estimate = 0; a standard error of 0 decides by the estimate alone."""
    from scipy import special

    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(se > 0, np.abs(estimate) / se, np.where(estimate == 0, 0.0, np.inf))
    found = 2 * (special.ndtr(-ratio) if np.isinf(df) else special.stdtr(df, -ratio))
    return np.asarray(found, dtype=np.float64)


def holm(p: Floats) -> Floats:
    """Adjust p-values so that the chance of even one false finding among them is at most the level.

    Sorted p_(1) <= ... <= p_(m): adjusted p_(i) = max over j <= i of min(1, (m - j + 1) p_(j)). Chosen over
    Benjamini-Hochberg because one false finding costs a training run of days while a sweep asks tens of questions,
    not thousands, and because it needs no assumption on how the estimates depend on each other: all of a sweep's
    share its baseline.

    Shapes: [K] or [K, R], adjusted along the first axis. Source: Holm, 1979.
    """
    order = np.argsort(p, axis=0)
    count = len(p)
    factor = np.arange(count, 0, -1, dtype=np.float64).reshape(-1, *([1] * (p.ndim - 1)))
    raised = np.maximum.accumulate(np.minimum(1.0, np.take_along_axis(p, order, axis=0) * factor), axis=0)
    adjusted = np.empty_like(raised)
    np.put_along_axis(adjusted, order, raised, axis=0)
    return adjusted
