"""What is printed when a run has ended: the leaderboard, where things are, what failed, what is left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from sweeps.article import render_article
from sweeps.costs import read_costs
from sweeps.leaderboard import leading_trial, render_leaderboard
from sweeps.results import SweepFolder, SweepInfo, read_results
from sweeps.run import INTERRUPTED, Outcome

if TYPE_CHECKING:
    import pandas as pd


def print_end(outcome: Outcome, console: Console) -> None:
    """Print the end of a run."""
    frame = read_results(outcome.results_path)
    console.print()
    if len(frame):
        board = render_leaderboard(frame, outcome.info)
        console.print(board)
        article = render_article(board.results, outcome.info)
        if article is not None:
            console.print(article)
    console.print()
    for line in _lines(outcome, frame):
        console.print(Text(line), soft_wrap=True)


def _lines(outcome: Outcome, frame: pd.DataFrame) -> Iterator[str]:
    if not len(frame):
        yield "no boundary has been reached yet"
    yield str(outcome.steps)
    yield from read_costs(outcome.folder, outcome.info).sentences()
    yield f"results: {outcome.results_path}"
    page = outcome.folder.root / "report.html"
    if page.is_file():
        yield f"report: {page}"
    grid = best_grid(outcome.folder, outcome.info)
    if grid:
        yield f"samples of the leader: {grid}"
    failed = frame[frame["state"] == "failed"].drop_duplicates("trial_id")
    for trial_id, name, reason in zip(failed["trial_id"], failed["name"], failed["reason"], strict=True):
        yield f"failed: {name}: {reason} (traceback: {outcome.folder.trial(trial_id) / 'error.txt'})"
    if outcome.unfinished:
        more = "with a larger budget " if outcome.spent else ""
        why = "interrupted" if outcome.exit_code == INTERRUPTED else f"the budget is spent ({outcome.spent})"
        yield f"{why}: {outcome.unfinished} trials are unfinished; {more}the same command goes on with them"
    if outcome.left is not None:
        yield outcome.left.words()


def best_grid(folder: SweepFolder, info: SweepInfo) -> Path | None:
    """Find the sample grid of the leading cell's best trial."""
    leader = leading_trial(read_results(folder.results), info, info.metric)
    if leader is None:
        return None
    path = folder.trial(leader) / "samples" / f"step-{info.steps:08d}.png"
    return path if path.is_file() else None
