"""The cells that no other beats on both of a sweep's two objectives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sweeps.analysis.cell_means import standings_of
from sweeps.analysis.observations import observe
from sweeps.analysis.pareto import front
from sweeps.results import SweepInfo

if TYPE_CHECKING:
    import pandas as pd


def not_dominated(frame: pd.DataFrame, info: SweepInfo) -> list[str]:
    """Name the cells on the front of two objectives, the best by the first of them first; seeds are averaged.

    Only cells at full length compete, with a figure for both.
    """
    one, two = (observe(frame, info, name, mode) for name, mode in info.objectives.items())
    position = {cell.cell_id: i for i, cell in enumerate(two.cells)}
    both = [i for i, cell in enumerate(one.cells) if cell.cell_id in position]
    if not both:
        return []
    costs = one.sign * standings_of(one)[both]
    values = standings_of(two)[[position[one.cells[i].cell_id] for i in both]]
    marked = front(costs, values, two.sign)
    names = [one.cells[i].name for i in both]
    return [names[i] for i in np.argsort(costs, kind="stable") if marked[i]]


def sentence(names: Sequence[str], info: SweepInfo) -> str:
    """Say which cells these are."""
    goals = " and ".join(f"{name} ({mode})" for name, mode in info.objectives.items())
    return f"Not beaten on both {goals} by any other cell: {'; '.join(names) or 'none at full length yet'}."
