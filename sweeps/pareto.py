"""The cells that no other beats on both of a sweep's two objectives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sweeps.analysis.observations import Observations, observe
from sweeps.analysis.pareto import front
from sweeps.results import SweepInfo

if TYPE_CHECKING:
    import pandas as pd


def not_dominated(frame: pd.DataFrame, info: SweepInfo) -> list[str]:
    """Name the cells on the front of two objectives, the best by the first of them first; seeds are averaged.

    Only cells at full length compete, with a figure for both.
    """
    one, two = (observe(frame, info, name, mode) for name, mode in info.objectives.items())
    both = [i for i, cell in enumerate(one.cells) if two.index(cell.cell_id) is not None]
    if not both:
        return []
    costs = one.sign * np.array([_mean(one, i) for i in both])
    values = np.array([_mean(two, two.index(one.cells[i].cell_id)) for i in both])
    marked = front(costs, values, two.sign)
    names = [one.cells[i].name for i in both]
    return [names[i] for i in np.argsort(costs, kind="stable") if marked[i]]


def sentence(names: Sequence[str], info: SweepInfo) -> str:
    """Say which cells these are."""
    goals = " and ".join(f"{name} ({mode})" for name, mode in info.objectives.items())
    return f"Not beaten on both {goals} by any other cell: {'; '.join(names) or 'none at full length yet'}."


def _mean(observed: Observations, cell: int | None) -> float:
    return float(observed.value[observed.cell == cell].mean())
