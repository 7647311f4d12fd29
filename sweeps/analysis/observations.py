"""The figures of one metric that may be compared with each other, and what was left out and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sweeps.cells import SEPARATOR
from sweeps.results import SweepInfo, TrialInfo

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class CellKey:
    """A cell as the analysis knows it. `point` says that a search chose settings of it beside its levels."""

    cell_id: str
    name: str
    levels: Mapping[str, str]
    is_baseline: bool
    point: bool = False


@dataclass(frozen=True)
class Observations:
    """One metric at one step. Row i is cell `cells[cell[i]]` trained with seed `seed[i]`.

    Shapes: `cell`, `seed` int64 [n]; `value`, `se` float64 [n]. `se` is the metric's own standard error (from
    the samples of one trained model), NaN where it was not measured. `left_out` maps a cell's name to the
    reason why none of its figures is here.
    """

    metric: str
    better: str
    step: int
    cells: tuple[CellKey, ...]
    baseline: Mapping[str, str]
    cell: Ints
    seed: Ints
    value: Floats
    se: Floats
    left_out: Mapping[str, str]

    @property
    def sign(self) -> float:
        """Give 1 where less is better, -1 where more is."""
        return 1.0 if self.better == "min" else -1.0

    @property
    def num_seeds(self) -> int:
        """Count the distinct seeds."""
        return len(np.unique(self.seed))

    def index(self, cell_id: str) -> int | None:
        """Find a cell's position."""
        return next((i for i, cell in enumerate(self.cells) if cell.cell_id == cell_id), None)

    def by_seed(self, position: int) -> dict[int, float]:
        """Give a cell's value for each of its seeds."""
        rows = self.cell == position
        return dict(zip(self.seed[rows].tolist(), self.value[rows].tolist(), strict=True))

    def error(self, position: int) -> float:
        """Give the root mean square of a cell's own standard errors, NaN where it has none."""
        found = self.se[self.cell == position]
        return float(np.sqrt(np.mean(found**2))) if len(found) else math.nan


def cell_keys(info: SweepInfo) -> tuple[CellKey, ...]:
    """List the planned cells, in the plan's order."""
    baseline = baseline_levels(info)
    found = {
        t.cell_id: CellKey(t.cell_id, t.name, t.levels, t.is_baseline, bool(info.searched) and not _plain(t, baseline))
        for t in info.trials
    }
    return tuple(found.values())


def _plain(trial: TrialInfo, baseline: Mapping[str, str]) -> bool:
    """Say whether a trial's name has its levels only: a point of a search adds the values it has."""
    levels = [level for axis, level in trial.levels.items() if level != baseline.get(axis)]
    return trial.is_baseline or trial.name == SEPARATOR.join(levels)


def design_only(observed: Observations) -> Observations:
    """Leave out the points of a search: they differ from their combination's cell in more than levels."""
    kept = [i for i, cell in enumerate(observed.cells) if not cell.point]
    if len(kept) == len(observed.cells):
        return observed
    return only(observed, kept)


def only(observed: Observations, kept: Sequence[int]) -> Observations:
    """Keep some cells, by their positions, in that order."""
    position = {old: new for new, old in enumerate(kept)}
    rows = np.isin(observed.cell, kept)
    return replace(
        observed,
        cells=tuple(observed.cells[i] for i in kept),
        cell=np.array([position[i] for i in observed.cell[rows].tolist()], dtype=np.int64),
        seed=observed.seed[rows],
        value=observed.value[rows],
        se=observed.se[rows],
    )


def error_column(metric: str) -> str:
    """Name the column of a metric's standard error: `cmmd_se`, and `cmmd_se@guidance_scale=2`."""
    name, at, settings = metric.partition("@")
    return f"{name}_se{at}{settings}"


def baseline_levels(info: SweepInfo) -> Mapping[str, str]:
    """Give the baseline's levels; it is planned in every sweep, whether or not it came through."""
    return next((trial.levels for trial in info.trials if trial.is_baseline), {})


def observe(frame: pd.DataFrame, info: SweepInfo, metric: str, better: str, step: int | None = None) -> Observations:
    """Take the rows at one step (default: the full length) that hold a finite figure.

    A cell that ended earlier has no figure there: what it had at fewer steps is another quantity, and is never
    mixed in. A failed trial's last figure stands where it had reached the step before it failed.
    """
    step = info.steps if step is None else step
    planned = cell_keys(info)
    rows = frame[frame["step"] == step] if len(frame) else frame
    rows = rows[np.isfinite(rows[metric].astype(float))] if metric in rows else rows[:0]
    there = set(rows["cell_id"]) if len(rows) else set()
    kept = [cell for cell in planned if cell.cell_id in there]
    position = {cell.cell_id: i for i, cell in enumerate(kept)}
    rows = rows[rows["cell_id"].isin(position)] if len(rows) else rows
    error = error_column(metric)
    errors = rows[error].astype(float) if error in rows else [math.nan] * len(rows)
    return Observations(
        metric, better, step, tuple(kept), baseline_levels(info),
        np.array([position[cell_id] for cell_id in rows["cell_id"]], dtype=np.int64) if len(rows) else _none(),
        np.asarray(rows["seed"], dtype=np.int64) if len(rows) else _none(),
        np.asarray(rows[metric], dtype=np.float64) if len(rows) else np.empty(0),
        np.asarray(errors, dtype=np.float64),
        _left_out(frame, [cell for cell in planned if cell.cell_id not in position], step, metric),
    )  # fmt: skip


def _none() -> Ints:
    return np.empty(0, dtype=np.int64)


def _left_out(frame: pd.DataFrame, cells: Sequence[CellKey], step: int, metric: str) -> dict[str, str]:
    """Say for each cell why it has no figure at a step."""
    last = frame.sort_values("step", kind="stable").groupby("cell_id").tail(1) if cells and len(frame) else frame
    ended = {str(row["cell_id"]): row for row in last.to_dict("records")} if cells else {}
    return {cell.name: _why(ended.get(cell.cell_id), step, metric) for cell in cells}


def _why(last: Mapping[str, Any] | None, step: int, metric: str) -> str:
    if last is None:
        return "no boundary reached yet"
    if last["step"] >= step:
        return f"no finite {metric} at step {step}"
    return f"{last['state']} at step {last['step']} of {step}"
