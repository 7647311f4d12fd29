"""Quality against price: the cells that no other cell beats on both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sweeps.analysis.cell_means import standings_of
from sweeps.analysis.observations import Bools, Floats, Observations

if TYPE_CHECKING:
    import pandas as pd

SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class Point:
    """A cell at full length: mean device-hours of one of its trials, and its standing (see `cell_means`)."""

    cell_id: str
    name: str
    device_hours: float
    value: float
    on_front: bool


def front(costs: Floats, values: Floats, sign: float = 1.0) -> Bools:
    """Mark the points that no other beats: none is at most as dear and at least as good, and better in one.

    Args:
        costs: Less is better, [n].
        values: Less is better with `sign` 1, more with -1, [n].
    """
    order = np.lexsort((sign * values, costs))
    marked = np.zeros(len(costs), dtype=bool)
    best, best_cost = np.inf, np.nan
    for i in order:
        value = sign * values[i]
        # An exact twin of a point on the front beats it in nothing, so both stay.
        if value < best or (value == best and costs[i] == best_cost):
            marked[i], best, best_cost = True, value, costs[i]
    return marked


def quality_price(frame: pd.DataFrame, observed: Observations) -> tuple[Point, ...]:
    """Give every cell at full length with its price, the cheapest first."""
    if not len(observed.cells):
        return ()
    at = frame[frame["step"] == observed.step].groupby("cell_id")["device_seconds"].mean() / SECONDS_PER_HOUR
    hours, values = at[[cell.cell_id for cell in observed.cells]].to_numpy(dtype=float), standings_of(observed)
    marks = front(hours, values, observed.sign)
    found = zip(observed.cells, hours.tolist(), values.tolist(), marks.tolist(), strict=True)
    points = [Point(cell.cell_id, cell.name, *rest) for cell, *rest in found]
    return tuple(sorted(points, key=lambda point: (point.device_hours, point.value)))
