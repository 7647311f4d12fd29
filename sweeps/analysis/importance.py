"""Which searched setting moved the metric: Optuna's PED-ANOVA on the recorded points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sweeps.results import SweepInfo

if TYPE_CHECKING:
    import pandas as pd
    from optuna.distributions import BaseDistribution

FEWEST = 10
"""Points below which a share of variance is not worth its name."""


@dataclass(frozen=True)
class Importance:
    """A setting, and its share among the settings searched in the same points; shares of a group sum to 1."""

    path: str
    share: float
    points: int


def importances(points: Sequence[Mapping[str, Any]], scores: Sequence[float], better: str) -> tuple[Importance, ...]:
    """Rank settings by how far the better half of the points is concentrated in them.

    PED-ANOVA compares each setting's density among the better points with its density among all. A setting that is
    absent from some points (conditional) is compared within those points that have it. What fewer than ten points
    had, and what never varied, is left out.

    Args:
        points: Value of each searched path, for each point.
        scores: The metric of each point.

    Source: Watanabe, Bansal, Hutter, 2023 (arXiv:2304.10255), as implemented by Optuna.
    """
    groups: dict[frozenset[str], list[str]] = {}
    paths = sorted({path for point in points for path in point})
    good = [i for i, score in enumerate(scores) if math.isfinite(score)]
    having = {path: frozenset(i for i in good if points[i].get(path) is not None) for path in paths}
    for path in paths:
        values = {points[i][path] for i in having[path]}
        if len(having[path]) >= FEWEST and len(values) > 1:
            groups.setdefault(frozenset(map(str, sorted(having[path]))), []).append(path)
    found: list[Importance] = []
    for together in groups.values():
        rows = sorted(having[together[0]])
        shares = _ped_anova([{p: points[i][p] for p in together} for i in rows], [scores[i] for i in rows], better)
        found += [Importance(path, share, len(rows)) for path, share in shares.items()]
    return tuple(sorted(found, key=lambda one: -one.share))


def searched_importances(frame: pd.DataFrame, info: SweepInfo, metric: str, better: str) -> tuple[Importance, ...]:
    """Rank the settings that a search moved, over the trials at full length.

    A score is the difference to the mean of the trials with the same levels and seed, so that what a level or a seed
    does is not taken for what a setting does.
    """
    if not info.searched or metric not in frame or not len(frame):
        return ()
    values = {trial.trial_id: trial.values for trial in info.trials}
    rows = frame[(frame["step"] == info.steps) & frame[metric].notna()]
    alike = [*info.axes, "seed"]
    scores = rows[metric] - rows.groupby(alike, dropna=False)[metric].transform("mean")
    points = [values[trial_id] for trial_id in rows["trial_id"]]
    return importances(points, scores.tolist(), better)


def _ped_anova(points: Sequence[Mapping[str, Any]], scores: Sequence[float], better: str) -> dict[str, float]:
    import optuna

    study = optuna.create_study(direction="minimize" if better == "min" else "maximize")
    spaces = {path: _distribution([point[path] for point in points]) for path in points[0]}
    for point, score in zip(points, scores, strict=True):
        shown = {path: str(v) if _categorical(spaces[path]) else float(v) for path, v in point.items()}
        study.add_trial(optuna.trial.create_trial(params=shown, distributions=spaces, value=score))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _categorical(distribution: BaseDistribution) -> bool:
    from optuna.distributions import CategoricalDistribution

    return isinstance(distribution, CategoricalDistribution)


def _distribution(values: Sequence[Any]) -> BaseDistribution:
    """Take the range that the points span; a logarithmic one where they span more than a factor of ten."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return CategoricalDistribution(sorted({str(value) for value in values}))
    low, high = float(min(values)), float(max(values))
    return FloatDistribution(low, high, log=low > 0 and high / low > 10)
