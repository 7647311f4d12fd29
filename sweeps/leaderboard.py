"""The table of a sweep in the article's form, and whether its winner can be told from the runner-up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from sweeps.measured_with import lines, own, words
from sweeps.metrics import METRICS
from sweeps.pareto import not_dominated, sentence
from sweeps.results import FINISHED, SweepInfo

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
"""A row of the table of results."""

WIDE = 105
"""Columns from which on every figure is shown with its standard error."""

HEADINGS = {
    "fid": "FID",
    "cmmd": "CMMD",
    "dino_mmd": "DINO-MMD",
    "adherence": "adherence",
    "batches_per_second": "batches/s",
}
UNEVEN = (
    "Not every cell has every seed: rows are ranked by what each would have with all of them, not by the means shown."
)
RANK = {"complete": 0, "running": 1, "paused": 1, "pending": 1, "pruned": 2, "failed": 3}
STYLE = {"complete": "green", "pruned": "dim", "failed": "red"}


def heading(metric: str) -> str:
    """Write a metric's name the way the field does; what it was measured with stays as it is."""
    name, at, settings = metric.partition("@")
    return HEADINGS.get(name, name.replace("_", " ")) + at + settings


def figure(value: float, digits: int) -> str:
    """Write a number with so many significant digits, and never as a power of ten where it is large."""
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error, None where unknown."""

    value: float
    se: float | None

    def __str__(self) -> str:
        return figure(self.value, 3) + (f" ± {figure(self.se, 1)}" if self.se is not None else "")


@dataclass(frozen=True)
class CellResult:
    """A cell at the last step that all its counted seeds reached.

    `standings` are the figures it is ranked by, `sweeps.analysis.cell_means.standings` of the cells at full length;
    unlike `metrics` where cells have different seeds. `device_hours` is what one of its trials costs, mean over
    them, None where that was not measured.
    """

    name: str
    state: str
    step: int
    seeds: int
    metrics: dict[str, Estimate]
    device_hours: float | None = None
    standings: dict[str, float] = field(default_factory=dict)


class Leaderboard:
    """The table and what may be concluded from it; a narrow terminal shows fewer standard errors."""

    def __init__(self, frame: pd.DataFrame, info: SweepInfo) -> None:
        from sweeps.other_settings import other_settings

        self.info, self.results, self._frame = info, ranking(frame, info), frame
        self._own = {name: words(settings) for name, settings in own(info).items()}
        self.others = other_settings(frame, info, info.metric)
        # The figures of the front come from the table itself: a metric may have no column here.
        self.front = sentence(not_dominated(frame, info), info) if len(info.objectives) == 2 else None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw for the width there is."""
        yield self._table(options.max_width >= WIDE)
        for line in lines(self.info):
            yield Text(line)
        if self.info.price_per_device_hour is not None:
            yield Text(f"Cost: of one trial of the cell, at {self.info.price_per_device_hour:g} a device-hour.")
        for line in notes(self._frame, self.results, self.info):
            yield Text(line)
        if self.front is not None:
            yield Text(self.front)
        yield from self._others()

    def _others(self) -> Iterator[RenderableType]:
        from sweeps.other_settings import render_other_settings, sentences

        if self.others is not None:
            yield render_other_settings(self.others, heading(self.info.metric))
            yield from map(Text, sentences(self.others, heading(self.info.metric)))

    def _table(self, wide: bool) -> Table:
        table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
        table.add_column("Method", overflow="fold")
        wanted = dict.fromkeys([*HEADINGS, self.info.metric])
        shown = [name for name in wanted if any(name in result.metrics for result in self.results)]
        for name in shown:
            arrow = {"min": " ↓", "max": " ↑"}[METRICS[name].better] if wide else ""
            table.add_column(heading(name) + arrow, justify="right", no_wrap=True)
        price = self.info.price_per_device_hour
        if price is not None:
            table.add_column("cost", justify="right", no_wrap=True)
        table.add_column("steps", justify="right", no_wrap=True)
        table.add_column("state", no_wrap=True)
        best = {name: _best(name, self.results, self.info) for name in shown}
        for result in self.results:
            cells = [
                _cell(result.metrics.get(name), result is best[name], wide or name == self.info.metric)
                for name in shown
            ]
            if price is not None:
                cells.append(Text("-" if result.device_hours is None else figure(result.device_hours * price, 3)))
            state = Text(result.state, style=STYLE.get(result.state, "cyan"))
            table.add_row(Text(_method(result, self._own.get(result.name))), *cells, str(result.step), state)
        return table


def render_leaderboard(frame: pd.DataFrame, info: SweepInfo) -> Leaderboard:
    """Draw the table, best first: complete cells by the metric, then those stopped early, then failed."""
    return Leaderboard(frame, info)


def ranking(frame: pd.DataFrame, info: SweepInfo) -> list[CellResult]:
    """Aggregate seeds and sort cells. Planned cells without a boundary come as they stand."""
    counted = _counted(frame)
    standings = _standings(counted[(counted["step"] == info.steps) & (counted["state"] != "failed")], info)
    cells: dict[str, list[Row]] = {}
    for row in counted.to_dict("records"):
        cells.setdefault(row["cell_id"], []).append(row)
    results = [_cell_result(rows, info, standings) for rows in cells.values()]
    sign = 1.0 if info.mode == "min" else -1.0

    def key(result: CellResult) -> tuple[Any, ...]:
        value = sign * result.standings.get(info.metric, sign * math.inf)
        return RANK[result.state], -result.step, value, result.name

    return sorted(results, key=key)


def _counted(frame: pd.DataFrame) -> pd.DataFrame:
    """Take each seed of a cell at its last boundary; seeds that got further than others count, the others do not.

    Those that failed count only in a cell in which all did.
    """
    last = frame.sort_values("step", kind="stable").groupby("trial_id", sort=False).tail(1)
    good = last["state"] != "failed"
    furthest = last["cell_id"].map(last[good].groupby("cell_id")["step"].max())
    return last[(good & (last["step"] == furthest)) | furthest.isna()]


def leading_trial(frame: pd.DataFrame, info: SweepInfo, metric: str) -> str | None:
    """Give the best trial of the cell that leads by a metric at full length; None before there is one.

    Not the best of all trials: with several seeds that is the luckiest one, of whatever cell.
    """
    full = frame[(frame["step"] == info.steps) & (frame["state"] != "failed")]
    found = _standing(full, metric) if metric in full else {}
    if not found:
        return None
    sign = 1.0 if METRICS[metric].better == "min" else -1.0
    leader = min(found, key=lambda cell_id: sign * found[cell_id])
    values = full[full["cell_id"] == leader].set_index("trial_id")[metric].dropna()
    return str((sign * values).idxmin())


def _standings(full: pd.DataFrame, info: SweepInfo) -> Mapping[str, Mapping[str, float]]:
    """Give what cells at full length are ranked by: metric -> cell -> figure."""
    return {name: _standing(full, name) for name in METRICS if name in full and name not in info.axes}


def _standing(full: pd.DataFrame, name: str) -> dict[str, float]:
    import pandas as pd

    from sweeps.analysis.cell_means import standings

    known = full[full[name].notna()]
    cells, cell_ids = pd.factorize(known["cell_id"])
    values = standings(cells, known["seed"].to_numpy(), known[name].to_numpy(dtype=float), len(cell_ids))
    return dict(zip(cell_ids, values.tolist(), strict=True))


def _cell_result(rows: Sequence[Row], info: SweepInfo, standings: Mapping[str, Mapping[str, float]]) -> CellResult:
    # Seeds still on their way make the cell unfinished; otherwise the best end counts.
    state = min((row["state"] for row in rows), key=lambda state: (state in FINISHED, RANK[state]))
    names = [name for name in METRICS if name not in info.axes] if state != "failed" else []
    metrics = {name: e for name in names if (e := _estimate(rows, name)) is not None}
    first = rows[0]
    cell_id, step = first["cell_id"], int(first["step"])
    ranked_by = {n: standings[n][cell_id] if step == info.steps else e.value for n, e in metrics.items()}
    hours = math.fsum(row["device_seconds"] for row in rows) / len(rows) / 3600 if "device_seconds" in first else None
    return CellResult(first["name"], state, step, len(rows), metrics, hours, ranked_by)


def _estimate(rows: Sequence[Row], name: str) -> Estimate | None:
    values = _known(rows, name)
    if not values:
        return None
    count = len(values)
    mean = math.fsum(values) / count
    if count > 1:
        spread = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
        return Estimate(mean, math.sqrt(spread / count))
    errors = _known(rows, f"{name}_se")
    return Estimate(mean, errors[0] if errors else None)


def _known(rows: Sequence[Row], name: str) -> list[float]:
    found = (row.get(name) for row in rows)
    return [float(value) for value in found if value is not None and not math.isnan(value)]


def _best(name: str, results: Iterable[CellResult], info: SweepInfo) -> CellResult | None:
    """Only cells at full length compete: early figures are figures of another length."""
    full = [result for result in results if result.step == info.steps and name in result.metrics]
    sign = 1.0 if METRICS[name].better == "min" else -1.0
    return min(full, key=lambda result: sign * result.standings[name]) if len(full) > 1 else None


def _cell(estimate: Estimate | None, best: bool, with_error: bool) -> Text:
    shown = "-" if estimate is None else str(estimate if with_error else Estimate(estimate.value, None))
    return Text(shown, style="bold green" if best else "")


def _method(result: CellResult, measured: str | None) -> str:
    beside = [f"{result.seeds} seeds"] if result.seeds > 1 else []
    beside += [f"measured with {measured}"] if measured else []
    return f"{result.name} ({'; '.join(beside)})" if beside else result.name


def notes(frame: pd.DataFrame, results: Sequence[CellResult], info: SweepInfo) -> list[str]:
    """Say in words what may be concluded, and what may not."""
    lines = [verdict(frame, results, info)]
    if uneven(results, info):
        lines.append(UNEVEN)
    if any(result.state == "pruned" for result in results):
        shown = heading(info.metric)
        lines.append(f"Pruned cells stopped early: their figures, {shown} included, are at fewer steps.")
    return lines


def uneven(results: Iterable[CellResult], info: SweepInfo) -> bool:
    """Say whether cells at full length differ in how many seeds they have there."""
    full = (result for result in results if result.step == info.steps and info.metric in result.metrics)
    return len({result.seeds for result in full}) > 1


def verdict(frame: pd.DataFrame, results: Sequence[CellResult], info: SweepInfo) -> str:
    """Say what the report says: whether the leader of the cells at full length is a winner."""
    from sweeps.analysis import observations
    from sweeps.analysis import verdict as judge
    from sweeps.conclusion import conclusion

    ended = all(result.state in FINISHED for result in results)
    found = judge.verdict(observations.observe(frame, info, info.metric, METRICS[info.metric].better))
    return conclusion(found, heading(info.metric), info.steps, ended=ended)
