"""What the driver knows of every trial while a sweep runs; the one place that writes states and results."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from sweeps.results import (
    ENTRY,
    FINISHED,
    Journal,
    SweepFolder,
    SweepInfo,
    TrialInfo,
    TrialState,
    read_journal,
    read_state,
    read_steps_trained,
    trial_rows,
    write_info,
    write_results,
    write_state,
)
from sweeps.steps import Steps, total

_log = logging.getLogger(__name__)
WRITING = 0.1
"""Share of the time that may go into rewriting the table of results, which grows with the sweep."""


@dataclass
class TrialStatus:
    """Where a trial stands now. `step` moves between boundaries too; `rate` is training steps a second."""

    info: TrialInfo
    state: TrialState
    journal: Journal
    step: int = 0
    rate: float | None = None
    replayed: set[int] = field(default_factory=set)

    def last(self, metric: str) -> float | None:
        """Give the metric at the latest boundary."""
        found = self._values(metric)
        return found[-1] if found else None

    def best(self, metric: str, mode: str) -> float | None:
        """Give the metric's best value so far."""
        found = self._values(metric)
        return (min(found) if mode == "min" else max(found)) if found else None

    def _values(self, metric: str) -> list[float]:
        entries = (self.journal.boundaries[step]["metrics"] for step in sorted(self.journal.boundaries))
        return [entry[metric] for entry in entries if entry.get(metric) is not None]


@dataclass(frozen=True)
class Event:
    """One thing that happened to a trial, `seconds` after the sweep's start."""

    kind: str
    status: TrialStatus
    seconds: float


class Listener(Protocol):
    """A display."""

    def event(self, event: Event) -> None:
        """Take an event; kinds are started, progress, boundary, paused, resumed, pruned, complete, failed.

        Also restarted, when new workers take the place of dead ones.
        """


class Ledger:
    """Every trial's standing, kept in memory and written to the sweep's folder.

    States are written at every change. The table is rewritten at the next change, or `tick`, once ten times as
    long has passed as the last rewriting took; `begin` and `interrupted`, first and last, always rewrite it.
    """

    def __init__(
        self,
        folder: SweepFolder,
        info: SweepInfo,
        *,
        keep_pruned: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.info, self._keep_pruned = folder, info, keep_pruned
        self.listeners: list[Listener] = []
        self.alarms: list[Callable[[str], None]] = []
        self._clock, self.started = clock, clock()
        self.damage: list[str] = []
        self._verdicts: dict[str, tuple[TrialState, str]] = {}
        self._on_disk: dict[str, TrialState] = {}
        self._stale, self._due = False, math.inf  # replaying changes much before `begin`
        self.trials = {trial.trial_id: self._load(trial) for trial in info.trials}

    def add(self, trials: Sequence[TrialInfo]) -> None:
        """Take up trials, read what is on the disk of those that are new, and record that they are planned."""
        new = [trial for trial in trials if trial.trial_id not in self.trials]
        self.info = replace(self.info, trials=(*self.info.trials, *new))
        self.trials |= {trial.trial_id: self._load(trial) for trial in new}
        write_info(self.folder, self.info)

    def _load(self, info: TrialInfo) -> TrialStatus:
        home = self.folder.trial(info.trial_id)
        journal = read_journal(home)
        self.damage += journal.damage
        state = self._on_disk[info.trial_id] = read_state(home)
        if self.info.steps in journal.boundaries:
            state = TrialState("complete")
        elif state.state != "pruned" or not self._keep_pruned:
            # A failed trial is tried again; who is pruned, the cohorts' replay decides anew.
            state = TrialState()
        step = max(journal.boundaries, default=0)
        return TrialStatus(info, state, journal, step, replayed=set(journal.boundaries))

    def reread(self, trial_id: str) -> None:
        """Take over what was added to a trial's journal behind the ledger's back."""
        self.trials[trial_id] = self._load(self.trials[trial_id].info)

    def warn(self, line: str) -> None:
        """Tell what was found damaged: to the log, to who listens now, and to who asks `damage` later."""
        _log.warning(line)
        self.damage.append(line)
        for alarm in self.alarms:
            alarm(line)

    def begin(self) -> None:
        """Record what was settled before anything ran; from here on the table is kept."""
        for status in self.trials.values():
            if status.state.state == "complete":
                self._write_state(status)
        self._due = self._clock()
        self.write()

    def started_trial(self, trial_id: str) -> None:
        """A trial got a worker."""
        status = self.trials[trial_id]
        kind = "resumed" if status.state.state == "paused" else "started"
        self._change(status, TrialState("running"), kind)

    def report(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """A trial reported: progress, or a boundary with its metrics."""
        status = self.trials[trial_id]
        status.step = int(result["step"])
        for line in result.get("damage", ()):
            self.warn(line)
        if "failed" in result:
            self.failed(trial_id, str(result["failed"]))
            return
        status.rate = result.get("batches_per_second", status.rate)
        status.journal.steps_trained = int(result.get("steps_trained", status.journal.steps_trained))
        if "restarts" in result:
            status.state = TrialState("running", f"new workers from here on: {result['restarts']}")
            self._tell("restarted", status)
        elif "metrics" not in result:
            self._tell("progress", status)
        else:
            self._boundary(status, result)
        if trial_id in self._verdicts:
            self._change(status, *self._verdicts.pop(trial_id))

    def restarts(self, trial_id: str, reason: str) -> None:
        """A trial lost its worker process and waits for another, unless it was taken out in that moment."""
        status = self.trials[trial_id]
        if status.state.state in FINISHED:
            return
        status.step = max(status.journal.boundaries, default=0)
        settled = self._verdicts.pop(trial_id, None)
        self._change(status, *(settled or (TrialState("pending", f"goes on in a new process: {reason}"), "restarted")))

    def _boundary(self, status: TrialStatus, result: Mapping[str, Any]) -> None:
        if result["replayed"] and status.step not in status.journal.boundaries:  # of another trial, just now
            status.replayed.add(status.step)
        status.journal.boundaries[status.step] = {key: result[key] for key in ENTRY if key in result}
        status.journal.wall_seconds = float(result["wall_seconds"])
        if not result["replayed"]:
            status.replayed.discard(status.step)
            self._tell("boundary", status)
        if status.step == self.info.steps:
            self._change(status, TrialState("complete"), "complete")
        self.write()

    def waits(self, trial_id: str, step: int) -> None:
        """A trial waits for another one that trains the same segment."""
        self._settle(trial_id, TrialState("paused", f"waits for step {step}, which another trial trains"), "paused")

    def paused(self, trial_id: str, reason: str) -> None:
        """A trial waits, at a rung, in reserve or for the baseline."""
        self._settle(trial_id, TrialState("paused", reason), "paused")

    def pruned(self, trial_id: str, reason: str) -> None:
        """A trial was stopped early; one that has ended stays as it is."""
        if self.trials[trial_id].state.state not in FINISHED:
            self._settle(trial_id, TrialState("pruned", reason), "pruned")

    def completed(self, trial_id: str, reason: str) -> None:
        """A trial has what it was trained for before its last step; one that has ended stays as it is."""
        if self.trials[trial_id].state.state not in FINISHED:
            self._settle(trial_id, TrialState("complete", reason), "complete")

    def failed(self, trial_id: str, reason: str) -> None:
        """A trial ended with an error."""
        self._verdicts.pop(trial_id, None)
        self._change(self.trials[trial_id], TrialState("failed", reason), "failed")

    def _settle(self, trial_id: str, state: TrialState, kind: str) -> None:
        """Change a state; for a running trial only after the report that led to it, which follows."""
        status = self.trials[trial_id]
        if status.state.state == "running":
            self._verdicts[trial_id] = (state, kind)
        else:
            self._change(status, state, kind)

    def interrupted(self) -> list[TrialStatus]:
        """Set back whatever has not ended; gives those trials."""
        found = [status for status in self.trials.values() if status.state.state not in FINISHED]
        for status in found:
            status.state = TrialState("pending")
            self._write_state(status)
        self._due = self._clock()
        self.write()
        return found

    def steps(self) -> Steps:
        """Count what was asked for, trained, taken over and spared, by all runs of this sweep."""
        for trial_id, status in self.trials.items():  # a worker that died did not report its last steps
            status.journal.steps_trained = read_steps_trained(self.folder.trial(trial_id))
        return total(((status.journal, status.state) for status in self.trials.values()), self.info.steps)

    def rows(self) -> list[dict[str, Any]]:
        """Make the table's rows."""
        return [
            row for s in self.trials.values() for row in trial_rows(s.info, s.journal, s.state, s.replayed)
        ]

    def write(self) -> None:
        """Rewrite the table of results, now or, where that would take too much of the time, soon."""
        self._stale = True
        self.tick()

    def tick(self) -> None:
        """Rewrite the table of results if it is stale and enough time has passed; to be called often."""
        started = self._clock()
        if self._stale and started >= self._due:
            write_results(self.rows(), self.info.axes, self.folder.results, self.info.searched)
            ended = self._clock()
            self._stale, self._due = False, ended + (ended - started) / WRITING

    def count(self, *states: str) -> int:
        """Count the trials in any of some states."""
        return sum(status.state.state in states for status in self.trials.values())

    def seconds(self) -> float:
        """Give the time since this run started."""
        return self._clock() - self.started

    def _change(self, status: TrialStatus, state: TrialState, kind: str) -> None:
        status.state = state
        self._write_state(status)
        if state.state in FINISHED:
            self.write()
        self._tell(kind, status)

    def _write_state(self, status: TrialStatus) -> None:
        trial_id = status.info.trial_id
        if self._on_disk.get(trial_id) != status.state:
            write_state(self.folder.trial(trial_id), status.state)
            self._on_disk[trial_id] = status.state

    def _tell(self, kind: str, status: TrialStatus) -> None:
        for listener in self.listeners:
            listener.event(Event(kind, status, self.seconds()))


def remaining_steps(status: TrialStatus, steps: int, open_rungs: tuple[int, ...], factor: float) -> float:
    """Estimate what a trial still trains, expecting one in `factor` to pass each open rung ahead of it."""
    if status.state.state in FINISHED:
        return 0.0
    total, share, position = 0.0, 1.0, status.step
    for rung in (*open_rungs, steps):
        total += share * max(0, rung - position)
        position = max(position, rung)
        share /= factor
    return total
