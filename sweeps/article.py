"""The article's own figures, beside those of a sweep whose cells match its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter
from rich.box import SIMPLE_HEAD
from rich.table import Table

from prx.config import Strict
from prx.yamlsource import read_yaml
from sweeps.leaderboard import HEADINGS, CellResult, figure
from sweeps.results import SweepInfo, TrialInfo

FIGURES = ("fid", "cmmd", "dino_mmd", "batches_per_second")
THEIR_DIGITS = 4
"""As many as the article prints: its FIDs of 12.07 and 12.08 are two figures."""


class Row(Strict):
    """One line of the article's tables; `levels` are those that differ from its baseline."""

    method: str
    levels: dict[str, str]
    fid: float | None = None
    cmmd: float | None = None
    dino_mmd: float | None = None
    batches_per_second: float | None = None
    note: str = ""


class ArticleTable(Strict):
    """Rows that were measured alike. `baseline` lists for every axis the levels that its baseline may have."""

    title: str
    baseline: dict[str, list[str]]
    rows: list[Row]

    def row(self, levels: Mapping[str, str]) -> Row | None:
        """Find the row that differs from the baseline by exactly these levels."""
        return next((row for row in self.rows if row.levels == dict(levels)), None)


@cache
def tables() -> dict[str, ArticleTable]:
    """Read the article's tables by name."""
    source = read_yaml(Path(__file__).with_name("article.yaml"))
    return TypeAdapter(dict[str, ArticleTable]).validate_python(source.data)


def matches(info: SweepInfo) -> dict[str, Row]:
    """Find the article's row of each cell that has one, by the cell's name.

    None match when the sweep's baseline is not the article's.
    """
    if info.article is None:
        return {}
    table = tables()[info.article]
    baseline = next(trial.levels for trial in info.trials if trial.is_baseline)
    if any(level not in table.baseline.get(axis, ()) for axis, level in baseline.items()):
        return {}
    found = {trial.name: table.row(_changed(trial, baseline)) for trial in info.trials}
    return {name: row for name, row in found.items() if row is not None}


def _changed(trial: TrialInfo, baseline: Mapping[str, str]) -> dict[str, str]:
    return {axis: level for axis, level in trial.levels.items() if level != baseline[axis]}


@dataclass(frozen=True)
class Line:
    """A row of the article and the cell that matches it: figures as text, in the order of `FIGURES`.

    `errors` are the standard errors of ours, empty where unknown; the article has none.
    """

    method: str
    note: str
    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    errors: tuple[str, ...]


CAPTION = "In brackets: relative to the baseline of the same line. The article: one seed, no intervals."


def article_title(info: SweepInfo) -> str:
    """Name the article's table that a sweep is laid beside."""
    return "" if info.article is None else f"The article: {tables()[info.article].title}"


def article_lines(results: Sequence[CellResult], info: SweepInfo) -> list[Line]:
    """Pair the article's rows with ours: the figure, and in brackets its ratio to the own baseline's.

    Cells that have not reached the sweep's full length are left out.
    """
    rows = matches(info)
    full = {result.name: result for result in results if result.step == info.steps and result.name in rows}
    theirs_base = _theirs(next((row for row in rows.values() if not row.levels), None))
    ours_base = _ours(next((full[name] for name, row in rows.items() if not row.levels and name in full), None))
    return [
        Line(row.method, row.note, _shown(_theirs(row), theirs_base, THEIR_DIGITS),
             _shown(_ours(full[name]), ours_base), _errors(full[name]))
        for name, row in rows.items()
        if name in full
    ]  # fmt: skip


def render_article(results: Sequence[CellResult], info: SweepInfo) -> Table | None:
    """Lay the article's rows beside ours; None where nothing matches."""
    lines = article_lines(results, info)
    if not lines:
        return None
    table = Table(
        title=article_title(info), title_justify="left", title_style="bold", caption=CAPTION,
        caption_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    for heading in ("Method", "", *(HEADINGS[name] for name in FIGURES)):
        table.add_column(heading, justify="left" if heading in {"Method", ""} else "right")
    for line in lines:
        table.add_row(line.method, "article", *line.theirs)
        table.add_row("", "here", *line.ours, end_section=True)
    return table


def _theirs(row: Row | None) -> dict[str, float | None]:
    return {name: getattr(row, name, None) for name in FIGURES}


def _ours(result: CellResult | None) -> dict[str, float | None]:
    metrics = result.metrics if result else {}
    return {name: metrics[name].value if name in metrics else None for name in FIGURES}


def _errors(result: CellResult) -> tuple[str, ...]:
    errors = (result.metrics[name].se if name in result.metrics else None for name in FIGURES)
    return tuple("" if error is None else f"± {figure(error, 2)}" for error in errors)


def _shown(values: Mapping[str, float | None], base: Mapping[str, float | None], digits: int = 3) -> tuple[str, ...]:
    return tuple(_figure(values[name], base[name], digits) for name in FIGURES)


def _figure(value: float | None, base: float | None, digits: int) -> str:
    if value is None:
        return "-"
    return figure(value, digits) + (f" ({value / base:.2f})" if base else "")
