"""Charts as plain records in the coordinates of their drawing; the templates turn them into SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sweeps.analysis.cell_means import standings_of
from sweeps.analysis.effects import Effect
from sweeps.analysis.observations import Observations
from sweeps.costs import hours_text, per_hour
from sweeps.pareto import not_dominated
from sweeps.report.scales import Scale, scale_of

if TYPE_CHECKING:
    import pandas as pd

    from sweeps.report.gather import Material

WIDTH, HEIGHT = 420.0, 280.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 408.0, 10.0, 244.0
COLOURS = 7
MOST_LINES = 300
ARROWS = {"min": "↓", "max": "↑"}


@dataclass(frozen=True)
class Axes:
    """Ticks as (position, label), and what the axes show."""

    x: list[tuple[float, str]]
    y: list[tuple[float, str]]
    x_label: str
    y_label: str


@dataclass(frozen=True)
class Line:
    """A cell's curve: `points` and `band` for SVG, where it ends, and `colour` 0..7, 7 being the background's grey."""

    cell_id: str
    name: str
    points: str
    band: str
    end: tuple[float, float]
    state: str
    colour: int
    note: str


@dataclass(frozen=True)
class Curves:
    """Learning curves; the background's first, so that the others lie over them."""

    axes: Axes
    lines: tuple[Line, ...]
    hidden: int


def curves(material: Material) -> Curves | None:
    """Draw the deciding metric over the steps: mean of the seeds, and their range behind it."""
    frame = material.frame
    if material.metric not in frame or not len(frame):
        return None
    rows = frame[np.isfinite(frame[material.metric].astype(float)) & (frame["step"] > 0)]
    if not len(rows):
        return None
    first, last = float(rows["step"].min()), float(material.info.steps)
    x = Scale(first if first < last else 0.0, last, LEFT, RIGHT)
    y = scale_of(rows[material.metric].astype(float), BOTTOM, TOP, log=True)
    baseline = next((cell.name for cell in material.cells if cell.is_baseline), "")
    order = [result.name for result in material.ranked]
    front = [baseline, *(name for name in order if name != baseline)][:COLOURS]
    states = {result.name: result.state for result in material.ranked}
    by_name = dict(list(rows.groupby("name", sort=False)))
    shown = [name for name in order if name in by_name][:MOST_LINES]
    lines = [
        _line(name, by_name[name], material, x, y, front.index(name) if name in front else COLOURS, states[name])
        for name in shown
    ]
    lines.sort(key=lambda line: -line.colour)
    label = f"{material.full_name}{' (logarithmic)' if y.log else ''}"
    return Curves(Axes(x.ticks(), y.ticks(), "training steps", label), tuple(lines), len(by_name) - len(shown))


def _line(
    name: str, rows: pd.DataFrame, material: Material, x: Scale, y: Scale, colour: int, state: str
) -> Line:  # fmt: skip
    table = rows.groupby("step")[material.metric].agg(["mean", "min", "max"]).sort_index()
    xs = [x(float(step)) for step in table.index]
    mean, low, high = ([y(v) for v in table[column]] for column in ("mean", "min", "max"))
    points = " ".join(f"{a},{b}" for a, b in zip(xs, mean, strict=True))
    several = rows["seed"].nunique() > 1 and colour < COLOURS
    outline = [*zip(xs, high, strict=True), *reversed(list(zip(xs, low, strict=True)))]
    band = " ".join(f"{a},{b}" for a, b in outline) if several else ""
    note = f"{name}: {table['mean'].iloc[-1]:.3g} at step {table.index[-1]}, {state}"
    return Line(str(rows["cell_id"].iloc[0]), name, points, band, (xs[-1], mean[-1]), state, colour, note)


@dataclass(frozen=True)
class Dot:
    """A cell in a scatter plot; `number` only on the front."""

    cell_id: str
    name: str
    x: float
    y: float
    on_front: bool
    baseline: bool
    number: int | None
    note: str


@dataclass(frozen=True)
class Scatter:
    """Quality against price, with the front as a staircase; `money` is a second scale below, empty without a price."""

    axes: Axes
    dots: tuple[Dot, ...]
    front: str
    money: list[tuple[float, str]]
    money_label: str


def pareto(material: Material) -> Scatter | None:
    """Draw every cell at full length: device-hours of a trial against the metric."""
    points = material.points
    if len(points) < 2:
        return None
    x = scale_of([point.device_hours for point in points], LEFT, RIGHT)
    y = scale_of([point.value for point in points], BOTTOM, TOP, log=True)
    baseline = next((cell.cell_id for cell in material.cells if cell.is_baseline), "")
    number = 0
    dots, corners = [], []
    for point in points:
        if point.on_front:
            number += 1
            corners.append((x(point.device_hours), y(point.value)))
        note = f"{point.name}: {point.value:.3g} for {hours_text(point.device_hours, material.price)}"
        dots.append(
            Dot(point.cell_id, point.name, x(point.device_hours), y(point.value), point.on_front,
                point.cell_id == baseline, number if point.on_front else None, note)
        )  # fmt: skip
    path = " ".join(f"{'L' if i else 'M'}{a},{b}" if not i else f"H{a} V{b}" for i, (a, b) in enumerate(corners))
    axes = Axes(x.ticks(4), y.ticks(), "device-hours of one trial", material.full_name)
    price = material.price
    paid = Scale(x.low * price, x.high * price, x.start, x.end).ticks(4) if price else []
    return Scatter(axes, tuple(dots), path, paid, f"money, {per_hour(price)}" if price else "")


def goals(material: Material) -> Scatter | None:
    """Draw the two objectives of a sweep against each other, the first upwards; None with one."""
    info = material.info
    if len(info.objectives) != 2:
        return None
    across, up = (material.observed_metric(name) for name in reversed(info.objectives))
    here, there = ({c.cell_id: v for c, v in zip(o.cells, standings_of(o), strict=True)} for o in (across, up))
    cells = [cell for cell in up.cells if cell.cell_id in here]
    if len(cells) < 2:
        return None
    values = [(float(here[cell.cell_id]), float(there[cell.cell_id])) for cell in cells]
    x, y = scale_of([v for v, _ in values], LEFT, RIGHT), scale_of([v for _, v in values], BOTTOM, TOP)
    order = not_dominated(material.frame, info)
    dots = [
        Dot(cell.cell_id, cell.name, x(a), y(b), cell.name in order, cell.is_baseline,
            order.index(cell.name) + 1 if cell.name in order else None, f"{cell.name}: {b:.3g}, {a:.3g}")
        for cell, (a, b) in zip(cells, values, strict=True)
    ]  # fmt: skip
    names = [f"{material.heading(name)} {ARROWS[mode]}" for name, mode in info.objectives.items()]
    return Scatter(Axes(x.ticks(4), y.ticks(), names[1], names[0]), tuple(dots), "", [], "")


@dataclass(frozen=True)
class ForestRow:
    """An estimate in percent of the chart's width: `left`, `width` the 95 % interval, `far_left`, `far_width` all's."""

    name: str
    detail: str
    position: float
    left: float
    width: float
    far_left: float
    far_width: float
    verdict: str
    text: str


@dataclass(frozen=True)
class Forest:
    """Estimates below each other on one axis, `zero` being no difference."""

    rows: tuple[ForestRow, ...]
    zero: float
    ticks: list[tuple[float, str]]


def forest(effects: Sequence[Effect], sign: float, details: Sequence[str], texts: Sequence[str]) -> Forest | None:
    """Draw effects on one axis; what has no interval is drawn as its estimate alone."""
    if not effects:
        return None
    ends = [v for e in effects for v in (e.estimate, e.wide_low, e.wide_high) if math.isfinite(v)]
    x = scale_of([0.0, *ends], 0.0, 100.0)
    rows = []
    for effect, detail, text in zip(effects, details, texts, strict=True):
        verdict = ("helps" if sign * effect.estimate < 0 else "hurts") if effect.found else "unclear"
        rows.append(
            ForestRow(effect.name, detail, x(effect.estimate), *_span(x, effect.low, effect.high),
                      *_span(x, effect.wide_low, effect.wide_high), verdict, text)
        )  # fmt: skip
    return Forest(tuple(rows), x(0.0), x.ticks(4))


def _span(x: Scale, low: float, high: float) -> tuple[float, float]:
    if not (math.isfinite(low) and math.isfinite(high)):
        return x(0.0), 0.0
    return x(low), round(x(high) - x(low), 2)


@dataclass(frozen=True)
class Crossing:
    """An interaction plot: a line for each level of one axis over the levels of another."""

    title: str
    x: list[tuple[float, str]]
    y: list[tuple[float, str]]
    y_label: str
    lines: tuple[tuple[str, int, str, tuple[tuple[float, float], ...]], ...]


def crossing(observed: Observations, one: str, two: str, heading: str) -> Crossing | None:
    """Draw mean figures over the levels of `two`, a line for each level of `one`; parallel lines: no interaction."""
    cells = _fullest(observed, one, two)
    firsts = list(dict.fromkeys([observed.baseline[one], *(observed.cells[i].levels[one] for i in cells)]))
    seconds = list(dict.fromkeys([observed.baseline[two], *(observed.cells[i].levels[two] for i in cells)]))
    means = {(a, b): _mean_of(observed, cells, {one: a, two: b}) for a in firsts for b in seconds}
    values = [value for value in means.values() if value is not None]
    if not values:
        return None
    y = scale_of(values, BOTTOM - 14, TOP, log=True)
    x = Scale(0.0, max(1.0, len(seconds) - 1.0), LEFT + 40, RIGHT - 40)
    lines = []
    for i, a in enumerate(firsts):
        dots = tuple((x(float(j)), y(v)) for j, b in enumerate(seconds) if (v := means[a, b]) is not None)
        lines.append((a, min(i, COLOURS), " ".join(f"{p},{q}" for p, q in dots), dots))
    ticks = [(x(float(j)), b) for j, b in enumerate(seconds)]
    return Crossing(f"{one} × {two}", ticks, y.ticks(), heading, tuple(lines))


def _fullest(observed: Observations, one: str, two: str) -> list[int]:
    """Give the cells of those combinations of the other axes in which most of a pair's levels were trained.

    A mean over cells that differ in the other axes as well would show their differences as an interaction.
    """
    contexts: dict[tuple[str, ...], list[int]] = {}
    for i, cell in enumerate(observed.cells):
        others = tuple(level for axis, level in cell.levels.items() if axis not in (one, two))
        contexts.setdefault(others, []).append(i)
    most = max(len(cells) for cells in contexts.values())
    return [i for cells in contexts.values() if len(cells) == most for i in cells]


def _mean_of(observed: Observations, cells: Sequence[int], levels: dict[str, str]) -> float | None:
    own = [i for i in cells if all(observed.cells[i].levels[axis] == level for axis, level in levels.items())]
    rows = np.isin(observed.cell, own)
    return float(observed.value[rows].mean()) if rows.any() else None
