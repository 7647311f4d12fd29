"""The report's other forms: the answer and the leaderboard in Markdown, the table of results as CSV or parquet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from prx.errors import UserError
from prx.registry import choices
from sweeps import measured_with
from sweeps.article import CAPTION, FIGURES, article_lines, article_title
from sweeps.leaderboard import HEADINGS
from sweeps.report import tables, words
from sweeps.report.gather import Material, gather, read_measured
from sweeps.report.page import default_path, write_report
from sweeps.results import SweepFolder, read_results, write_atomic

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("html", "md", "csv", "parquet")


def write_as(folder: SweepFolder, form: str, out: Path | None) -> Path:
    """Write a sweep in one of `FORMATS`; gives the path.

    Raises:
        UserError: There is no such sweep or form, there are no results yet, or `out` cannot be written.
    """
    if form not in FORMATS:
        raise UserError(f"--format: {choices(form, list(FORMATS))}")
    target = out or default_path(folder, form)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if form == "html":
            write_report(folder, target)
        elif form == "md":
            write_atomic(target, markdown(gather(folder)))
        elif form == "csv":
            write_atomic(target, table(folder).to_csv(index=False))
        else:
            table(folder).to_parquet(target, index=False)
    except OSError as error:
        raise UserError(f"--out: {target} cannot be written ({error.strerror})") from error
    return target


def table(folder: SweepFolder) -> pd.DataFrame:
    """Read the results and add how each row was measured, a column a setting: `sampling.guidance_scale`.

    Raises:
        UserError: There is no such sweep, or there are no results yet.
    """
    measured = {trial.trial_id: trial.measured for trial in read_measured(folder).trials}
    frame = read_results(folder.results)
    for name in measured_with.SAMPLING:
        values = [measured.get(trial_id, {}).get(name) for trial_id in frame["trial_id"]]
        # A search over a sampling setting has its column already.
        if f"sampling.{name}" not in frame and any(value is not None for value in values):
            frame[f"sampling.{name}"] = values
    return frame


def markdown(material: Material) -> str:
    """Write question, answer, leaderboard and effects as Markdown."""
    return "\n".join(_lines(material)) + "\n"


def _lines(material: Material) -> Iterator[str]:
    yield f"# {_plain(material.info.name)}\n"
    yield f"**{_plain(words.question(material))}**\n"
    for answer in words.answers(material):
        yield f"- **{answer.topic}**: {_plain(answer.text)}"
    if not material.ranked:
        return
    board = tables.board(material)
    headings = ["Method", " ".join(board.heading), f"Δ {board.heading[0]}", *(" ".join(h) for h in board.others)]
    headings += ["device time", *(["cost"] if material.price else []), "steps", "seeds"]
    yield "\n" + _row([*headings, "state"])
    yield _row(["---", *["---:"] * (len(headings) - 1), "---"])
    for row in board.rows:
        name = f"{row.name} (measured with {row.measured})" if row.measured else row.name
        figures = [value.text for value in (row.metric, row.difference, *row.others, row.hours)]
        figures += [row.cost.text] if material.price else []
        yield _row([name, *figures, str(row.steps), str(row.seeds), row.state])
    yield "".join(f"\n{_plain(line)}" for line in measured_with.lines(material.info))
    yield "\n± of a figure is its standard error, ± of a difference half its 95 % interval."
    yield from _settings(material)
    yield from _effects(material)
    yield from _article(material)


def _effects(material: Material) -> Iterator[str]:
    """Write what each level does, and what pairs do beyond the sum of their parts."""
    for title, found in (("Level", material.effects.mains), ("Pair, beyond its parts", material.effects.interactions)):
        if found:
            yield "\n" + _row([title, f"Δ {material.full_name}", "beyond the noise"])
            yield _row(["---", "---:", "---"])
            for one in found:
                shown = words.signed(one.estimate, words.half_width(one.low, one.high))
                yield _row([one.name, shown, "yes" if one.found else "no"])


def _article(material: Material) -> Iterator[str]:
    """Write the article's rows beside ours, where cells match them."""
    lines = article_lines(material.ranked, material.info)
    if lines:
        yield f"\n{_plain(article_title(material.info))}. {CAPTION}\n"
        yield _row(["Method", "", *(HEADINGS[name] for name in FIGURES)])
        yield _row(["---", "---", *["---:"] * len(FIGURES)])
    for line in lines:
        ours = (f"{text} {error}".strip() for text, error in zip(line.ours, line.errors, strict=True))
        yield _row([line.method, "article", *line.theirs])
        yield _row(["", "here", *ours])


def _settings(material: Material) -> Iterator[str]:
    """Write the cells under other sampling settings, where they were measured so."""
    for one in tables.settings(material):
        yield f"\n{one.heading} under other sampling settings (rank):\n"
        yield _row(["Method", *one.labels, "best with"])
        yield _row(["---", *["---:"] * len(one.labels), "---"])
        for _, name, values, best in one.rows:
            yield _row([name, *(value.text for value in values), best])


def _row(fields: list[str]) -> str:
    return f"| {' | '.join(_plain(field) for field in fields)} |"


def _plain(text: str) -> str:
    """Keep a name from being read as Markdown or HTML."""
    for sign in "\\`*_[]<>|":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
