"""What a store has recorded of a plan's cells, in whichever sweep: pace, and how much seeds differ."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.plan import Plan
from sweeps.results import read_results

if TYPE_CHECKING:
    import pandas as pd


def recorded(plan: Plan, store: Path) -> list[pd.DataFrame]:
    """Read the rows of all sweeps of a store that are of this plan's cells."""
    cells = {cell.cell_id for cell in plan.cells}
    found = []
    for path in sorted((store / "sweeps").glob("*/results.parquet")):
        frame = read_results(path)
        mine = frame[frame["cell_id"].isin(cells)]
        if len(mine):
            found.append(mine)
    return found


def seconds_a_step(frames: list[pd.DataFrame]) -> dict[str, float]:
    """Give, for each cell on record, the seconds a step of its longest trial, evaluations included."""
    longest: dict[str, tuple[int, float]] = {}
    for frame in frames:
        trained = frame[frame["step"] > 0]
        for cell, step, seconds in zip(trained["cell_id"], trained["step"], trained["wall_seconds"], strict=True):
            if step > longest.get(cell, (0, 0.0))[0]:
                longest[cell] = (int(step), float(seconds))
    return {cell: seconds / step for cell, (step, seconds) in longest.items()}


def values_by_seed(frames: list[pd.DataFrame], metric: str, step: int) -> dict[str, list[float]]:
    """Give a metric at a step under every seed, cell by cell; a trial in two sweeps counts once."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for frame in frames:
        if metric not in frame:
            continue
        rows = frame[(frame["step"] == step) & frame[metric].notna()]
        for cell, seed, value in zip(rows["cell_id"], rows["seed"], rows[metric], strict=True):
            found[cell][int(seed)] = float(value)
    return {cell: [seeds[seed] for seed in sorted(seeds)] for cell, seeds in found.items()}
