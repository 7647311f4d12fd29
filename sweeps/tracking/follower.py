"""Bring every tracker up to what a sweep's folder holds; asked again and again, it writes only what is new."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from sweeps.results import SweepFolder, SweepInfo, read_info, write_atomic
from sweeps.tracking.view import Tracked, fingerprint, view

_log = logging.getLogger(__name__)
MOST_ERRORS = 5
"""After so many errors in a row a tracker is left alone until the sweep's end, where it is tried once more."""


class Run(Protocol):
    """A trial in a tracker, open for writing."""

    @property
    def has(self) -> int:
        """The last step that the tracker has."""

    def log(self, trial: Tracked, step: int) -> None:
        """Add a boundary after the last one."""

    def close(self, trial: Tracked) -> None:
        """Say how the trial stands; returns when everything is where it should be."""


class Tracker(Protocol):
    """A place that runs are copied to."""

    @property
    def where(self) -> str:
        """Where people find the runs, in words."""

    def open(self, trial: Tracked) -> Run:
        """Begin a trial's run, or go on with it."""


@dataclass(frozen=True)
class Mark:
    """What a tracker has of a trial whose run was closed."""

    step: int
    state: str
    reason: str

    @classmethod
    def of(cls, trial: Tracked) -> Mark:
        """Mark a trial as it stands."""
        return cls(trial.reached, trial.state.state, trial.state.reason)


class Copy:
    """One tracker's copy of a sweep.

    Args:
        tracker: Where to write.
        marks: A folder with a mark of every closed run; without it everything is written again.
    """

    def __init__(self, tracker: Tracker, marks: Path) -> None:
        self.tracker, self._marks = tracker, marks
        self._open: dict[str, Run] = {}
        self._errors, self.error = 0, ""

    def update(self, trial: Tracked, *, last: bool = False) -> bool:
        """Write what is new of a trial; True unless it failed. `last` closes its run even if it is running."""
        over = last or trial.state.state != "running"
        if trial.info.trial_id not in self._open and not self._news(trial, over):
            return True
        if self._errors >= MOST_ERRORS:
            return False
        try:
            self._write(trial, over)
        except Exception as error:  # whatever is wrong with a tracker, the other ones go on
            _log.exception("%s", trial.label)
            if not self._errors:  # what follows the first of a row may only be its consequence
                self.error = f"{type(error).__name__}: {error}".splitlines()[0]
            self._errors += 1
            self._open.pop(trial.info.trial_id, None)
            return False
        self._errors = 0
        return True

    def try_again(self) -> None:
        """Take a tracker that was left alone for one that answers: it may have come back."""
        self._errors = 0

    def _write(self, trial: Tracked, over: bool) -> None:
        trial_id = trial.info.trial_id
        run = self._open.get(trial_id)
        if run is None:
            run = self._open[trial_id] = self.tracker.open(trial)
        for step in sorted(step for step in trial.boundaries if step > run.has):
            run.log(trial, step)
        if over:
            run.close(trial)
            del self._open[trial_id]
            write_atomic(self._path(trial_id), json.dumps(asdict(Mark.of(trial))) + "\n")

    def _news(self, trial: Tracked, over: bool) -> bool:
        if not trial.boundaries and trial.state.state != "failed":
            return False
        mark = self._read(trial.info.trial_id)
        return mark is None or trial.reached > mark.step or (over and mark != Mark.of(trial))

    def _path(self, trial_id: str) -> Path:
        return self._marks / f"{trial_id}.json"

    def _read(self, trial_id: str) -> Mark | None:
        path = self._path(trial_id)
        return Mark(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


class Follower:
    """Brings the copies of one sweep up to date.

    Args:
        folder: The sweep.
        copies: A copy for every tracker, by its name.
    """

    def __init__(self, folder: SweepFolder, copies: Mapping[str, Copy]) -> None:
        self._folder, self._copies = folder, copies
        self._seen: dict[tuple[str, str], object] = {}
        self._left: dict[str, set[str]] = {name: set() for name in copies}
        self._sweep: tuple[object, SweepInfo | None] = (None, None)

    def look(self, *, last: bool = False) -> None:
        """Read what has changed since the last look, and write it; the last look closes every run."""
        for copy in self._copies.values() if last else ():
            copy.try_again()
        sweep = self._plan()
        for info in sweep.trials if sweep else ():
            now = (fingerprint(self._folder, info.trial_id), last)
            behind = [name for name in self._copies if self._seen.get((name, info.trial_id)) != now]
            if behind and sweep:
                self._write(view(self._folder, sweep, info), behind, now, last)

    def _write(self, trial: Tracked, behind: Sequence[str], now: object, last: bool) -> None:
        trial_id = trial.info.trial_id
        for name in behind:
            if self._copies[name].update(trial, last=last):
                self._seen[name, trial_id] = now
                self._left[name].discard(trial_id)
            else:
                self._left[name].add(trial_id)

    def _plan(self) -> SweepInfo | None:
        """Read what is planned, again where it has changed: a search adds trials as it goes."""
        try:
            now = self._folder.info.stat().st_mtime_ns
        except FileNotFoundError:
            return None
        if self._sweep[0] != now:
            self._sweep = (now, read_info(self._folder))
        return self._sweep[1]

    def outcome(self) -> dict[str, dict[str, Any]]:
        """Say of every tracker where its runs are, how many trials it lacks, and the last error."""
        return {
            name: {"where": copy.tracker.where, "left": len(self._left[name]), "error": copy.error}
            for name, copy in self._copies.items()
        }
