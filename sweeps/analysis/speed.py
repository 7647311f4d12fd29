"""Time to quality: the device-hours a cell needs to be as good as the baseline is at its end.

For each seed the target is the baseline's final figure of that seed. A trial has reached it at the time from which
on no later boundary is worse; between the last boundary that is worse and the next, (device-seconds, figure) is
interpolated linearly. One that is as good at its first boundary already gets that boundary's time as an upper
bound; one whose last boundary is worse has not reached it (censored): its whole time is a lower bound. The same
rule gives the baseline's own time, so that a curve which is flat or noisy near its end favours nobody.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from sweeps.analysis.intervals import quantile
from sweeps.analysis.observations import cell_keys
from sweeps.analysis.pareto import SECONDS_PER_HOUR
from sweeps.results import SweepInfo

if TYPE_CHECKING:
    import pandas as pd

Bound = Literal["exact", "at_most", "not_reached"]


@dataclass(frozen=True)
class Arrival:
    """When a trial reached the target: device-seconds, exact or a bound."""

    seconds: float
    bound: Bound


@dataclass(frozen=True)
class TimeToQuality:
    """A cell's device-hours to the baseline's final figure, and how many times fewer than the baseline's own.

    `hours` and `speedup` are geometric means over the seeds that count (see `num_reached` of `num_seeds`); `low` to
    `high` holds the speed-up with 95 %, NaN with fewer than two seeds or where any is censored. `at_most` says
    that the hours are an upper bound (and the speed-up a lower one).
    """

    cell_id: str
    name: str
    num_seeds: int
    num_reached: int
    hours: float
    speedup: float
    low: float
    high: float
    at_most: bool


def arrival(seconds: Sequence[float], values: Sequence[float], target: float, sign: float = 1.0) -> Arrival:
    """Find when a curve has reached a target for good. Curves are in the order of time; `sign` as in `front`."""
    gaps = [sign * (value - target) for value in values]
    worse = [i for i, gap in enumerate(gaps) if gap > 0]
    if not worse:
        return Arrival(seconds[0], "at_most")
    last = worse[-1]
    if last == len(gaps) - 1:
        return Arrival(seconds[-1], "not_reached")
    share = gaps[last] / (gaps[last] - gaps[last + 1])
    return Arrival(seconds[last] + share * (seconds[last + 1] - seconds[last]), "exact")


def time_to_quality(frame: pd.DataFrame, info: SweepInfo, metric: str, better: str) -> tuple[TimeToQuality, ...]:
    """Compare every cell with the baseline, the fastest first; seeds without a finished baseline do not count."""
    sign = 1.0 if better == "min" else -1.0
    curves = _curves(frame, metric)
    base = next((cell for cell in cell_keys(info) if cell.is_baseline), None)
    if base is None:
        return ()
    targets = {
        seed: (curve, curve[2][-1])
        for (cell_id, seed), curve in curves.items()
        if cell_id == base.cell_id and curve[0][-1] == info.steps
    }
    found = []
    for cell in cell_keys(info):
        pairs = [
            (_arrive(curves[cell.cell_id, seed], target, sign), _arrive(own, target, sign))
            for seed, (own, target) in targets.items()
            if (cell.cell_id, seed) in curves
        ]
        if pairs:
            found.append(_summary(cell.cell_id, cell.name, pairs))
    return tuple(sorted(found, key=lambda one: (-one.num_reached / one.num_seeds, one.hours)))


Curve = tuple[list[int], list[float], list[float]]


def _curves(frame: pd.DataFrame, metric: str) -> Mapping[tuple[str, int], Curve]:
    if metric not in frame or not len(frame):
        return {}
    rows = frame[np.isfinite(frame[metric].astype(float)) & (frame["step"] > 0)].sort_values("step")
    return {
        (str(cell_id), int(seed)): (
            group["step"].tolist(), group["device_seconds"].astype(float).tolist(), group[metric].tolist(),
        )
        for (cell_id, seed), group in rows.groupby(["cell_id", "seed"], sort=False)
    }  # fmt: skip


def _arrive(curve: Curve, target: float, sign: float) -> Arrival:
    return arrival(curve[1], curve[2], target, sign)


def _summary(cell_id: str, name: str, pairs: Sequence[tuple[Arrival, Arrival]]) -> TimeToQuality:
    reached = [(own, base) for own, base in pairs if own.bound != "not_reached"]
    counted = reached or pairs
    ratios = np.log([base.seconds / own.seconds for own, base in counted])
    hours = math.exp(float(np.mean(np.log([own.seconds for own, _ in counted])))) / SECONDS_PER_HOUR
    mean, low, high = float(ratios.mean()), math.nan, math.nan
    exact = all(own.bound == base.bound == "exact" for own, base in pairs)
    if exact and len(ratios) > 1:
        half = quantile(len(ratios) - 1) * float(ratios.std(ddof=1)) / math.sqrt(len(ratios))
        low, high = math.exp(mean - half), math.exp(mean + half)
    at_most = any(own.bound == "at_most" for own, _ in counted)
    return TimeToQuality(cell_id, name, len(pairs), len(reached), hours, math.exp(mean), low, high, at_most)
