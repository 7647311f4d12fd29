"""`prx-sweep report`: write, open, serve."""

from __future__ import annotations

import webbrowser
from pathlib import Path

from rich.console import Console
from rich.text import Text

from sweeps.article import render_article
from sweeps.leaderboard import render_leaderboard
from sweeps.report.formats import write_as
from sweeps.report.gather import gather
from sweeps.report.serve import ReportServer
from sweeps.results import SweepFolder


def show_report(folder: SweepFolder, form: str, out: Path | None, console: Console, *, browse: bool) -> None:
    """Write the report, print its table, and say where it is.

    Raises:
        UserError: As `write_as`.
    """
    path = write_as(folder, form, out.absolute() if out else None)
    material = gather(folder)
    if form == "html" and material.ranked:
        board = render_leaderboard(material.frame, material.info)
        console.print(board)
        article = render_article(board.results, material.info)
        if article is not None:
            console.print(article)
    console.print(Text(f"report: {path}"), soft_wrap=True)
    if browse:
        webbrowser.open(path.as_uri())


def serve_report(folder: SweepFolder, port: int, console: Console, *, browse: bool) -> None:
    """Serve the report until Ctrl+C.

    Raises:
        UserError: As `ReportServer`.
    """
    with ReportServer(folder, port) as server:
        console.print(Text(f"{server.url}  (Ctrl+C ends)"), soft_wrap=True)
        if browse:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print("ended")
