"""The report's tables as plain rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from prx.yamlsource import dotted
from sweeps.analysis.alternatives import labels
from sweeps.analysis.effects import Effect, estimate_effects
from sweeps.analysis.pareto import SECONDS_PER_HOUR
from sweeps.costs import money
from sweeps.leaderboard import HEADINGS, Estimate, heading
from sweeps.live import seconds_text
from sweeps.metrics import METRICS, QUALITY
from sweeps.other_settings import Ranked
from sweeps.patches import differences
from sweeps.report.charts import ARROWS
from sweeps.report.words import half_width, signed, with_error

if TYPE_CHECKING:
    from sweeps.report.gather import Material

MOST_CONFIGS = 200


@dataclass(frozen=True)
class Value:
    """What a field shows, what it sorts by (empty: last), and whether it is the best of its column."""

    text: str
    key: str = ""
    best: bool = False


@dataclass(frozen=True)
class BoardRow:
    """A cell of the leaderboard."""

    cell_id: str
    name: str
    baseline: bool
    state: str
    steps: int
    seeds: int
    full: bool
    metric: Value
    difference: Value
    verdict: str
    others: tuple[Value, ...]
    hours: Value
    cost: Value
    measured: str = ""


@dataclass(frozen=True)
class Board:
    """The leaderboard; headings are (name, arrow). The metric that decides comes first, then its difference."""

    heading: tuple[str, str]
    others: tuple[tuple[str, str], ...]
    rows: tuple[BoardRow, ...]


def board(material: Material) -> Board:
    """Lay the leaderboard out, best first."""
    names = dict.fromkeys([material.metric, *HEADINGS, *QUALITY])
    shown = [name for name in names if any(name in result.metrics for result in material.ranked)]
    shown = shown or [material.metric]
    cells = {cell.name: cell for cell in material.cells}
    full = [result for result in material.ranked if result.step == material.info.steps]
    best = {}
    for name in shown:
        figures = [r.standings[name] for r in full if name in r.metrics]
        best[name] = (min if METRICS[name].better == "min" else max)(figures) if len(figures) > 1 else math.nan
    hours = _hours(material)
    rows = []
    for result in material.ranked:
        cell = cells[result.name]
        whole = result.step == material.info.steps
        values = tuple(
            _value(result.metrics.get(name), whole and result.standings.get(name) == best[name]) for name in shown
        )
        delta, verdict = _difference(material, cell.cell_id)
        spent = hours.get(cell.cell_id)
        time = Value("–") if spent is None else Value(seconds_text(spent), f"{spent:.6g}")
        cost = time if spent is None else Value(money(spent / SECONDS_PER_HOUR, material.price), time.key)
        rows.append(
            BoardRow(cell.cell_id, result.name, cell.is_baseline, result.state, result.step, result.seeds, whole,
                     values[0], delta, verdict, values[1:], time, cost, material.own_settings.get(result.name, ""))
        )  # fmt: skip
    headings = [(material.heading(name), ARROWS[METRICS[name].better]) for name in shown]
    return Board(headings[0], tuple(headings[1:]), tuple(rows))


def _value(estimate: Estimate | None, best: bool) -> Value:
    return (
        Value("–")
        if estimate is None
        else Value(with_error(estimate.value, estimate.se), f"{estimate.value:.9g}", best)
    )


def _difference(material: Material, cell_id: str) -> tuple[Value, str]:
    found = material.differences.get(cell_id)
    if found is None:
        return Value("–"), ""
    better = material.observed.sign * found.estimate < 0
    verdict = ("helps" if better else "hurts") if found.found else "unclear"
    return Value(signed(found.estimate, half_width(found.low, found.high)), f"{found.estimate:.9g}"), verdict


def _hours(material: Material) -> dict[str, float]:
    """Give the device-seconds of one trial of each cell, up to where it stands: mean over its seeds."""
    last = material.frame.sort_values("step").groupby("trial_id").tail(1)
    return {str(k): float(v) for k, v in last.groupby("cell_id")["device_seconds"].mean().items()}


@dataclass(frozen=True)
class Matrix:
    """Interactions of two axes: a row for each level of the first, a field for each of the second."""

    rows_axis: str
    columns_axis: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[str, str, float], ...]], ...]


def matrices(material: Material) -> list[Matrix]:
    """Lay interactions out by pairs of axes; a field is (text, verdict, strength of its colour from 0 to 1)."""
    found = {effect.term: effect for effect in material.effects.interactions}
    lost = {one.term: one.reason for one in material.effects.missing_interactions}
    strongest = max((abs(effect.estimate) for effect in found.values()), default=1.0) or 1.0
    pairs = list(dict.fromkeys((term[0][0], term[1][0]) for term in (*found, *lost)))
    made = []
    for one, two in pairs:
        terms = [term for term in (*found, *lost) if (term[0][0], term[1][0]) == (one, two)]
        if not any(term in found for term in terms):
            continue
        firsts, seconds = (list(dict.fromkeys(term[i][1] for term in terms)) for i in (0, 1))
        rows = [
            (a, tuple(_field(found.get(((one, a), (two, b))), material.observed.sign, strongest) for b in seconds))
            for a in firsts
        ]
        made.append(Matrix(one, two, tuple(seconds), tuple(rows)))
    return made


def _field(effect: Effect | None, sign: float, strongest: float) -> tuple[str, str, float]:
    if effect is None:
        return "not known", "missing", 0.0
    better = "helps" if sign * effect.estimate < 0 else "hurts"
    text = signed(effect.estimate, half_width(effect.low, effect.high))
    return text, better if effect.found else "unclear", round(abs(effect.estimate) / strongest, 2)


@dataclass(frozen=True)
class Agreement:
    """A main effect on each quality metric: (text, verdict)."""

    name: str
    values: tuple[tuple[str, str], ...]


def agreement(material: Material) -> tuple[tuple[str, ...], tuple[Agreement, ...]]:
    """Lay main effects of all quality metrics side by side, and of the deciding one under other sampling settings.

    None where only one was measured.
    """
    names = [name for name in QUALITY if name in material.frame and name not in material.info.axes]
    names += [f"{material.metric}@{label}" for label in labels(material.frame, material.metric)]
    metrics = [name for name in names if material.frame[name].notna().any()]
    if len(metrics) < 2 or not material.effects.mains:
        return (), ()
    by_metric = []
    for name in metrics:
        observed = material.observed_metric(name)
        by_metric.append((observed.sign, {e.term: e for e in estimate_effects(observed).mains}))
    rows = []
    for effect in material.effects.mains:
        values = tuple(
            ("–", "") if effect.term not in found else _field(found[effect.term], sign, 1.0)[:2]
            for sign, found in by_metric
        )
        rows.append(Agreement(effect.name, values))
    return tuple(heading(name) for name in metrics), tuple(rows)


@dataclass(frozen=True)
class ConfigRow:
    """A cell's configuration: what differs from the baseline's as (path, there, here), and all of it."""

    cell_id: str
    name: str
    baseline: bool
    changes: tuple[tuple[str, str, str], ...]
    text: str


def configs(material: Material) -> tuple[ConfigRow, ...]:
    """Read the cells' configurations, those of the leaderboard first."""
    baseline = next((cell for cell in material.cells if cell.is_baseline), None)
    reference = material.config(baseline.cell_id) if baseline else None
    order = {result.name: i for i, result in enumerate(material.ranked)}
    cells = sorted(material.cells, key=lambda cell: (not cell.is_baseline, order.get(cell.name, len(order))))
    rows = []
    for cell in cells[:MOST_CONFIGS]:
        config = material.config(cell.cell_id)
        if config is not None:
            changes = tuple(_changes(reference or config, config))
            text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
            rows.append(ConfigRow(cell.cell_id, cell.name, cell.is_baseline, changes, text))
    return tuple(rows)


def _changes(before: dict[str, Any], after: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for keys, old, new in differences(before, after):
        if keys not in {("name",), ("seed",)}:
            yield dotted(keys), _flow(old), _flow(new)


def _flow(value: Any) -> str:
    if value is None:
        return "null"
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True)
    return text.removesuffix("...\n").strip()


@dataclass(frozen=True)
class Failure:
    """A trial that failed: the reason, and the end of its traceback."""

    name: str
    seed: int
    reason: str
    traceback: str


def failures(material: Material) -> tuple[Failure, ...]:
    """List the trials that failed."""
    found = []
    for trial in material.info.trials:
        state = material.states[trial.trial_id]
        if state.state == "failed":
            path = material.folder.trial(trial.trial_id) / "error.txt"
            text = path.read_text(encoding="utf-8", errors="replace")[-4000:] if path.is_file() else ""
            found.append(Failure(trial.name, trial.seed, state.reason, text))
    return tuple(found)


@dataclass(frozen=True)
class Settings:
    """A metric under every sampling setting it was measured with; rows are (cell, name, figures, best setting)."""

    heading: str
    labels: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[Value, ...], str], ...]


def settings(material: Material) -> tuple[Settings, ...]:
    """Lay quality metrics out under all sampling settings, the deciding one first."""
    made = []
    for shown in material.other_settings:
        rows = tuple((r.cell_id, r.name, tuple(map(_ranked, r.figures)), r.best) for r in shown.rows)
        made.append(Settings(heading(shown.metric), tuple(shown.labels), rows))
    return tuple(made)


def _ranked(found: Ranked | None) -> Value:
    if found is None:
        return Value("–")
    shown = _value(found.estimate, found.rank == 1)
    return Value(f"{shown.text} ({found.rank})", shown.key, shown.best)
