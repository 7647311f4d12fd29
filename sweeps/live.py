"""What a person sees while a sweep runs: a live table on a terminal, a line an event anywhere else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeps.leaderboard import figure
from sweeps.ledger import Event, Ledger, TrialStatus, remaining_steps
from sweeps.results import FINISHED

STYLES = {
    "running": ("▶", "cyan"),
    "paused": ("⏸", "yellow"),
    "pending": ("·", "dim"),
    "complete": ("✓", "green"),
    "pruned": ("✂", "dim"),
    "failed": ("✗", "red"),
}
ORDER = tuple(STYLES)
FRAME = 5
"""Lines around the trials: title, header, progress, message, and one for the cursor."""


class Outlook(Protocol):
    """What early stopping still has in store; the scheduler's cohort answers."""

    def open_rungs(self) -> tuple[int, ...]:
        """Give the rungs not decided yet."""

    @property
    def factor(self) -> float:
        """About one trial in so many passes a rung."""


class Display(AbstractContextManager["Display"]):
    """A listener that a sweep's run can talk to."""

    def event(self, event: Event) -> None:
        """Show an event of a trial."""

    def say(self, text: str) -> None:
        """Show a message."""

    def warn(self, text: str) -> None:
        """Show a message that stays."""
        self.say(text)

    def preparing(self, what: str, done: int, total: int) -> None:
        """Show how far an encoding is."""

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it should stay."""


def seconds_text(seconds: float) -> str:
    """Write a duration the way people say it: 42 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def bytes_text(count: float) -> str:
    """Write a size the way disks are sold: 999 B, 12.3 kB, 4.56 GB."""
    size, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{count:.0f} B" if unit == "B" else f"{size:.3g} {unit}"


def label(status: TrialStatus, seeds: int) -> str:
    """Name a trial; the seed only where there are several."""
    return status.info.name + (f" (seed {status.info.seed})" if seeds > 1 else "")


def number(value: float | None) -> str:
    """Write a metric compactly."""
    return "-" if value is None else figure(value, 4)


class PlainDisplay(Display):
    """One line an event, for logs and pipes."""

    def __init__(self, ledger: Ledger, console: Console) -> None:
        self.ledger, self.console = ledger, console
        self._seeds = len({trial.seed for trial in ledger.info.trials})

    def event(self, event: Event) -> None:
        """Write what happened; mere progress is left out."""
        if event.kind != "progress":
            name = label(event.status, self._seeds)
            self._line(event.seconds, f"{event.kind:<9} {name}  {self._detail(event)}")

    def say(self, text: str) -> None:
        """Write a message."""
        self._line(self.ledger.seconds(), text)

    def preparing(self, what: str, done: int, total: int) -> None:
        """Write that an encoding is finished."""
        if done == total:
            self.say(f"prepared  {what}")

    def _line(self, seconds: float, text: str) -> None:
        self.console.print(Text(f"[{seconds:8.1f} s] {text.rstrip()}"), soft_wrap=True)

    def _detail(self, event: Event) -> str:
        status, info = event.status, self.ledger.info
        where = f"step {status.step}/{info.steps}"
        if event.kind == "boundary":
            return f"{where}  {_metrics_text(status)}"
        return f"{where}  {status.state.reason}" if status.state.reason else where


def _metrics_text(status: TrialStatus) -> str:
    found = status.journal.boundaries[status.step]["metrics"]
    names = [name for name in ("cmmd", "dino_mmd", "fid", "adherence") if name in found]
    parts = [
        f"{name} {figure(found[name], 4)}" + (f" ± {figure(found[f'{name}_se'], 2)}" if f"{name}_se" in found else "")
        for name in names
    ]
    rate = found.get("samples_per_second")
    return "  ".join(parts + ([f"{rate:.1f} samples/s"] if rate is not None else []))


class LiveDisplay(Display):
    """A table that redraws itself, never taller than the terminal."""

    def __init__(self, ledger: Ledger, console: Console, outlook: Outlook | None, log: Path) -> None:
        self.ledger, self.console, self.outlook, self.log = ledger, console, outlook, log
        self._seeds = len({trial.seed for trial in ledger.info.trials})
        self._message = ""
        self._at_start, self._training_since = self._steps_done(), 0.0
        self._live = Live(self, console=console, refresh_per_second=4, transient=True, redirect_stdout=False,
                          redirect_stderr=False)  # fmt: skip
        self._live.start()

    def __exit__(self, *_: object) -> None:
        """Take the table away: the leaderboard follows."""
        self._live.stop()

    def event(self, event: Event) -> None:
        """Keep failures on the screen; the table itself reads the ledger."""
        self._message = ""
        self._training_since = self._training_since or event.seconds  # what came before was preparation
        if event.kind == "failed":
            name = label(event.status, self._seeds)
            self.console.print(Text(f"✗ {name}: {event.status.state.reason}", style="red"))

    def say(self, text: str) -> None:
        """Show a message until the next event."""
        self._message = text

    def warn(self, text: str) -> None:
        """Keep a message on the screen."""
        self.console.print(Text(f"! {text}", style="yellow"))

    def preparing(self, what: str, done: int, total: int) -> None:
        """Show how far an encoding is."""
        self._message = f"prepare {what}: {done}/{total}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the table for the height there is."""
        yield Group(self._title(), self._table(max(1, console.height - FRAME)), self._progress())
        yield Text(self._message or f"logs: {self.log}", style="dim", no_wrap=True, overflow="ellipsis")

    def _title(self) -> RenderableType:
        parts = [f"{self.ledger.count(state)} {state}" for state in ORDER if self.ledger.count(state)]
        return Text(f"{self.ledger.info.name}: {', '.join(parts)}", style="bold", no_wrap=True)

    def _table(self, height: int) -> RenderableType:
        table = Table(box=None, pad_edge=False, expand=True)
        table.add_column("", no_wrap=True, min_width=1)
        table.add_column("trial", ratio=1)  # the only one that gives way on a narrow terminal
        table.add_column("step", justify="right", no_wrap=True)
        table.add_column("", width=12)
        for heading in (f"{self.ledger.info.metric} now", "best", "ETA"):
            table.add_column(heading, justify="right", no_wrap=True)
        ranked = sorted(self.ledger.trials.values(), key=lambda status: ORDER.index(status.state.state))
        shown = ranked if len(ranked) <= height else ranked[: height - 1]
        for status in shown:
            table.add_row(*self._row(status))
        hidden = ranked[len(shown) :]
        if hidden:
            counts = [(state, sum(s.state.state == state for s in hidden)) for state in ORDER]
            table.add_row("", Text("and " + ", ".join(f"{n} {s}" for s, n in counts if n), style="dim"))
        return table

    def _row(self, status: TrialStatus) -> list[RenderableType]:
        sign, style = STYLES[status.state.state]
        name_style = style if style in ("dim", "red") else ""
        info = self.ledger.info
        best = status.best(info.metric, info.mode)
        return [
            Text(sign, style=style),
            Text(label(status, self._seeds), style=name_style, no_wrap=True, overflow="ellipsis"),
            f"{status.step}/{info.steps}",
            ProgressBar(total=info.steps, completed=status.step, width=12),
            number(status.last(info.metric)),
            number(best),
            self._eta(status),
        ]

    def _eta(self, status: TrialStatus) -> str:
        if status.state.state != "running" or not status.rate:
            return "" if status.state.state in (*FINISHED, "pending") else status.state.state
        return seconds_text((self.ledger.info.steps - status.step) / status.rate)

    def _steps_done(self) -> int:
        return sum(status.step for status in self.ledger.trials.values())

    def _progress(self) -> RenderableType:
        rungs = self.outlook.open_rungs() if self.outlook else ()
        factor = self.outlook.factor if self.outlook else 1.0
        trials = self.ledger.trials.values()
        done = self._steps_done()
        left = sum(remaining_steps(status, self.ledger.info.steps, rungs, factor) for status in trials)
        elapsed = self.ledger.seconds()
        fresh = done - self._at_start
        pace = (elapsed - self._training_since) / fresh if fresh else 0.0
        rest = f", about {seconds_text(pace * left)} left" if pace and left else ""
        text = f" {done} of about {round(done + left)} steps, {seconds_text(elapsed)}{rest}"
        line = Table.grid()
        line.add_row(ProgressBar(total=max(1.0, done + left), completed=done, width=24), Text(text, no_wrap=True))
        return line


def open_display(ledger: Ledger, console: Console, outlook: Outlook | None, log: Path) -> Display:
    """Choose by what the output is: a terminal gets the live table."""
    make: Callable[[], Display] = (
        (lambda: LiveDisplay(ledger, console, outlook, log))
        if console.is_terminal
        else (lambda: PlainDisplay(ledger, console))
    )
    return make()
