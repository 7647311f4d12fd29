"""Learning curves recorded by a sweep that stopped nobody."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from prx.errors import UserError
from prx.registry import choices
from sweeps.metrics import METRICS, QUALITY
from sweeps.results import SweepInfo, TrialInfo

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Curve:
    """What one trial measures when nobody stops it.

    Args:
        values: Step -> (metric, its standard error).
        step_seconds: Device-seconds a training step takes.
        fails_at: The trial fails on the way to this step.
    """

    info: TrialInfo
    values: Mapping[int, tuple[float, float]]
    step_seconds: float = 1.0
    fails_at: int | None = None


@dataclass(frozen=True)
class CurveSet:
    """The curves of a sweep, and what the sweep is."""

    info: SweepInfo
    curves: tuple[Curve, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, ascending."""
        return tuple(sorted({curve.info.seed for curve in self.curves}))

    def of_seeds(self, seeds: Sequence[int]) -> CurveSet:
        """Keep the trials of some seeds."""
        return self.of([curve for curve in self.curves if curve.info.seed in seeds])

    def with_pace(self, infos: Mapping[str, TrialInfo]) -> CurveSet:
        """Take batch sizes and schedules over from a plan, by trial."""
        return self.of([replace(curve, info=infos.get(curve.info.trial_id, curve.info)) for curve in self.curves])

    def of(self, curves: Sequence[Curve]) -> CurveSet:
        """Put other curves into the same sweep."""
        return CurveSet(replace(self.info, trials=tuple(curve.info for curve in curves)), tuple(curves))


def recorded(frame: pd.DataFrame, metric: str, source: str, seeds: Sequence[int] = ()) -> CurveSet:
    """Read curves from a table of results.

    Args:
        frame: Rows as in results.parquet.
        source: Name of the table, for messages.
        seeds: Only these; all unless told.

    Raises:
        UserError: A column is missing, there are no trials of a seed, the metric was not measured, or a trial
            neither ended nor failed.
    """
    if metric not in QUALITY:
        raise UserError(f"--metric: {choices(metric, list(QUALITY))}")
    needed = ["trial_id", "cell_id", "name", "is_baseline", "seed", "step", "state", metric, f"{metric}_se"]
    missing = [column for column in needed if column not in frame.columns]
    if missing:
        raise UserError(f"{source}: must be a table of results, but has no column {', '.join(missing)}")
    known = sorted(int(seed) for seed in frame["seed"].unique())
    for seed in seeds:
        if seed not in known:
            raise UserError(f"--seeds: must be among {', '.join(map(str, known))}, got {seed}")
    rows = frame[(frame["step"] > 0) & frame["seed"].isin(seeds or known)]
    if rows.empty or rows[metric].isna().any():
        raise UserError(f"{source}: {metric} must be measured at every boundary")
    steps, every = int(rows["step"].max()), int(rows["step"].min())
    groups = rows.groupby("trial_id", sort=False)
    curves = tuple(_recorded(trial, found, metric, steps, source) for trial, found in groups)
    trials = tuple(curve.info for curve in curves)
    return CurveSet(SweepInfo(source, metric, METRICS[metric].better, steps, every, (), trials), curves)


def _recorded(trial_id: Any, rows: pd.DataFrame, metric: str, steps: int, source: str) -> Curve:
    rows = rows.sort_values("step")
    first, last = rows.iloc[0], rows.iloc[-1]
    if last["step"] < steps and last["state"] != "failed":
        who = f"trial {trial_id} ({first['name']}, seed {first['seed']})"
        raise UserError(
            f"{source}: {who} ends at step {last['step']} of {steps} ({last['state']}); "
            "curves are whole where a sweep ran to its end with scheduler.use none"
        )
    errors = rows[f"{metric}_se"].fillna(0.0)
    values = {int(s): (float(v), float(e)) for s, v, e in zip(rows["step"], rows[metric], errors, strict=True)}
    identity = str(trial_id), str(first["cell_id"]), str(first["name"]), bool(first["is_baseline"]), int(first["seed"])
    seconds = float(last.get("device_seconds", math.nan)) / float(last["step"])
    fails_at = None if last["step"] == steps else int(last["step"]) + 1
    known = math.isfinite(seconds) and seconds > 0
    return Curve(TrialInfo(*identity, {}), values, seconds if known else 1.0, fails_at)
