"""The cells under other sampling settings than the sweep's own, for people: figures with their ranks, and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from sweeps.analysis.alternatives import Alternative, alternatives
from sweeps.analysis.cell_means import standings_of
from sweeps.analysis.observations import Observations
from sweeps.leaderboard import Estimate
from sweeps.metrics import METRICS
from sweeps.results import SweepInfo

if TYPE_CHECKING:
    import pandas as pd

NAMED = 2
"""Swapped pairs that a sentence names; the others are counted."""

OWN = "the sweep's own settings"


@dataclass(frozen=True)
class Ranked:
    """A figure, and its place among the cells measured alike."""

    estimate: Estimate
    rank: int

    def __str__(self) -> str:
        return f"{self.estimate} ({self.rank})"


@dataclass(frozen=True)
class Row:
    """A cell under its own settings and then under each other one, None where it was not measured; and the best."""

    cell_id: str
    name: str
    figures: tuple[Ranked | None, ...]
    best: str


@dataclass(frozen=True)
class OtherSettings:
    """A metric under several settings; `found` says what becomes of the ranking under each."""

    metric: str
    found: tuple[Alternative, ...]
    rows: tuple[Row, ...]

    @property
    def labels(self) -> list[str]:
        """Name the settings, the sweep's own first."""
        return [OWN, *(one.label for one in self.found)]


def other_settings(frame: pd.DataFrame, info: SweepInfo, metric: str) -> OtherSettings | None:
    """Lay a metric out under every setting it was measured with; None where that is one."""
    if not len(frame):
        return None
    found = alternatives(frame, info, metric, METRICS[metric].better)
    return OtherSettings(metric, found, tuple(_rows(found))) if found else None


def _rows(found: Sequence[Alternative]) -> Iterator[Row]:
    """Order the cells as they rank under their own settings, among all that were measured under another one too."""
    widest = max((one.own for one in found), key=lambda own: len(own.cells))
    tables = [_ranked(widest), *(_ranked(one.other) for one in found)]
    names = [OWN, *(one.label for one in found)]
    for cell_id, _ in sorted(tables[0].items(), key=lambda item: item[1].rank):
        figures = tuple(table.get(cell_id) for table in tables)
        known = [(figure.estimate.value * widest.sign, i) for i, figure in enumerate(figures) if figure is not None]
        name = next(cell.name for cell in widest.cells if cell.cell_id == cell_id)
        yield Row(cell_id, name, figures, names[min(known)[1]])


def _ranked(observed: Observations) -> dict[str, Ranked]:
    means = [float(observed.value[observed.cell == i].mean()) for i in range(len(observed.cells))]
    order = np.argsort(observed.sign * standings_of(observed), kind="stable").tolist()
    return {
        cell.cell_id: Ranked(Estimate(means[i], _error(observed, i)), order.index(i) + 1)
        for i, cell in enumerate(observed.cells)
    }


def _error(observed: Observations, position: int) -> float | None:
    """Give the standard error of a cell's mean as the leaderboard does: between seeds, else the metric's own."""
    values = observed.value[observed.cell == position]
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else observed.error(position)
    return float(error) if np.isfinite(error) else None


def sentences(shown: OtherSettings, heading: str) -> list[str]:
    """Say whether the ranking depends on the sampling settings, and how surely; the same at each cell's best."""
    said = [_sentence(one, heading) for one in shown.found]
    best = min(shown.rows, key=lambda row: _best_value(row, shown))
    first = shown.rows[0]
    if best is not first:
        said.append(f"With each cell at the best of its settings {best.name} leads ({best.best}), not {first.name}.")
    else:
        said.append(f"With each cell at the best of its settings {best.name} still leads.")
    return said


def _best_value(row: Row, shown: OtherSettings) -> float:
    sign = shown.found[0].own.sign
    return min(sign * figure.estimate.value for figure in row.figures if figure is not None)


def _sentence(one: Alternative, heading: str) -> str:
    count = len(one.own.cells)
    average = f"{one.num_better} of {count} cells have a better {heading} there"
    if not one.swaps:
        return f"With {one.label}, the {count} cells rank the same; {average}."
    if not any(swap.found for swap in one.swaps):
        pairs = f"{len(one.swaps)} of {one.num_pairs} pairs"
        return f"With {one.label}, {pairs} change places, {_unsure(one)}{_leader(one)}; {average}."
    once = "" if one.basis == "seeds" else " in one training of each"
    return (
        f"The ranking by {heading} depends on the sampling settings{once}: with {one.label}, {_named(one)}, both "
        f"beyond the noise; {average}."
    )


def _named(one: Alternative) -> str:
    """Name the sure swaps of the cells that rank highest, and count the others."""
    before, after = one.order(one.own), one.order(one.other)
    sure = [swap for swap in one.swaps if swap.found]
    sure.sort(key=lambda swap: (before.index(swap.first), after.index(swap.second)))
    named = [
        f"{swap.second} beats {swap.first} by {abs(swap.after):.2g}, but trails it by {abs(swap.before):.2g} with {OWN}"
        for swap in sure[:NAMED]
    ]
    more = len(sure) - NAMED
    return "; ".join(named) + (f" (and {more} more pair{'s' if more > 1 else ''} as surely)" if more > 0 else "")


def _unsure(one: Alternative) -> str:
    return "of which nothing is known for want of standard errors" if one.basis == "none" else "none beyond the noise"


def _leader(one: Alternative) -> str:
    before, after = one.leaders
    return "" if before == after else f" ({after} leads instead of {before})"


def render_other_settings(shown: OtherSettings, heading: str) -> Table:
    """Draw the figures with their ranks for a terminal."""
    table = Table(
        title=f"{heading} under other sampling settings (rank)", title_justify="left", title_style="bold",
        box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    table.add_column("Method", overflow="fold")
    for label in shown.labels:
        table.add_column(Text(label), justify="right", overflow="fold")
    for row in shown.rows:
        table.add_row(Text(row.name), *("-" if figure is None else str(figure) for figure in row.figures))
    return table
