"""Where a sweep stands, read from its folder: works while it runs and after it ended."""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from prx.errors import UserError
from prx.registry import choices
from prx.yamlsource import read_yaml
from sweeps.article import render_article
from sweeps.leaderboard import STYLE, render_leaderboard
from sweeps.results import STATES, SweepFolder, SweepInfo, collect, read_info, read_state
from sweeps.steps import read_steps

WITH_REASON = ("failed", "paused", "pruned")
MOST_REASONS = 20


@contextmanager
def exclusive(folder: SweepFolder) -> Iterator[None]:
    """Hold a sweep for this process; the lock goes when the process does, however it ends.

    Raises:
        UserError: Another process runs this sweep.
    """
    path = folder.root / "lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(handle, 64).decode().strip()
        os.close(handle)
        raise UserError(f"{folder.root}: is being run by process {holder}; see `prx-sweep status`") from None
    try:
        os.truncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(handle)


def is_running(folder: SweepFolder) -> bool:
    """Say whether a process runs this sweep now."""
    path = folder.root / "lock"
    if not path.is_file():
        return False
    handle = os.open(path, os.O_RDONLY)  # the store may be another user's
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def find(sweep: str, store: Path) -> SweepFolder:
    """Find a sweep's folder by its name, or by the YAML that has it.

    Raises:
        UserError: It is no YAML of a sweep, or the store has other sweeps only; lists them.
    """
    if sweep.endswith((".yaml", ".yml")):
        data = read_yaml(Path(sweep)).data
        if not isinstance(data, dict) or "name" not in data:
            raise UserError(f"{sweep}: must be the YAML of a sweep, with a name")
        sweep = str(data["name"])
    folder = SweepFolder(store, sweep)
    there = sorted(path.parent.name for path in (store / "sweeps").glob("*/sweep.json"))
    if there and not folder.info.is_file():
        raise UserError(f"{folder.root}: holds no sweep; {choices(sweep, there)}")
    return folder


def _reasons(folder: SweepFolder, info: SweepInfo) -> list[Text]:
    """Say why trials failed, wait or were stopped; failures first, and at most `MOST_REASONS`."""
    seeds = len({trial.seed for trial in info.trials})
    states = [(trial, read_state(folder.trial(trial.trial_id))) for trial in info.trials]
    told = [(trial, state) for trial, state in states if state.reason and state.state in WITH_REASON]
    told.sort(key=lambda item: WITH_REASON.index(item[1].state))
    found = []
    for trial, state in told[:MOST_REASONS]:
        name = trial.name + (f" (seed {trial.seed})" if seeds > 1 else "")
        found.append(Text(f"{state.state} {name}: {state.reason}", style=STYLE.get(state.state, "cyan")))
    rest = len(told) - MOST_REASONS
    return found + ([Text(f"and {rest:,} more, in {folder.results}", style="dim")] if rest > 0 else [])


def render_status(folder: SweepFolder) -> RenderableType:
    """Draw the leaderboard as of now, and say how many trials stand where."""
    import pandas as pd

    info = read_info(folder)
    running = is_running(folder)
    counts = Counter(read_state(folder.trial(trial.trial_id)).state for trial in info.trials)
    rows, damage = collect(folder, info)
    words = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    head = Text(f"{info.name}: {'running' if running else 'not running'}; {words}", style="bold")
    lines = [Text(str(read_steps(folder, info))), *_reasons(folder, info)]
    lines += [Text(f"damaged: {line}", style="yellow") for line in damage]
    if not rows:
        return Group(head, *lines, Text("No boundary has been reached yet."))
    board = render_leaderboard(pd.DataFrame(rows), info)
    article = render_article(board.results, info)
    beside = [] if article is None else [article]
    return Group(head, *lines, board, *beside, Text(f"folder: {folder.root}"))
