"""What a sweep may cost, what it has cost over all its runs, and what is left undone when the budget is spent.

What a trial trains and measures here is counted when it reports; what it recalls costs nothing. A budget is looked
at between reports, so that it is exceeded by one of them at the most: a few seconds of training, or a measurement and
its checkpoint.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import PositiveInt

from prx.errors import Problem, UserError
from prx.strict import PositiveFloat, Strict
from prx.yamlsource import Source
from sweeps.results import FINISHED, write_atomic

if TYPE_CHECKING:
    from sweeps.ledger import TrialStatus
    from sweeps.spec import SweepSpec

HOUR_S = 3600.0
WRITE_EVERY_S = 1.0


class BudgetSpec(Strict):
    """When to stop, over all runs of the sweep; whatever is reached first.

    Args:
        hours: Hours of the clock while trials train.
        device_hours: Hours that trials hold a device: a GPU, or on a CPU a worker.
        trials: How many trials may train.
        money: What the device-hours may cost; needs the price.
        price_per_device_hour: Price of a device for an hour; without a limit it only prices the plan.
    """

    hours: PositiveFloat | None = None
    device_hours: PositiveFloat | None = None
    trials: PositiveInt | None = None
    money: PositiveFloat | None = None
    price_per_device_hour: PositiveFloat | None = None

    def limits(self) -> dict[str, float]:
        """Give the limits that are set."""
        found = {name: getattr(self, name) for name in ("hours", "device_hours", "trials", "money")}
        return {name: value for name, value in found.items() if value is not None}


def budget(spec: SweepSpec, source: Source) -> Iterator[Problem]:
    """A budget limits something, and money has a price."""
    given = spec.budget
    if given is None:
        return
    if not given.model_fields_set:
        yield source.problem(("budget",), f"must set at least one of {', '.join(BudgetSpec.model_fields)}")
    if given.money is not None and given.price_per_device_hour is None:
        yield source.problem(("budget", "money"), "needs budget.price_per_device_hour, got none")


@dataclass
class Spent:
    """What a sweep has cost so far; `trials` are those that trained anything here."""

    seconds: float = 0.0
    device_seconds: float = 0.0
    trials: list[str] = field(default_factory=list)


def read_spent(path: Path) -> Spent:
    """Read what earlier runs have cost; nothing where there was none.

    Raises:
        UserError: The file is damaged; it is written atomically, so somebody else wrote it.
    """
    if not path.is_file():
        return Spent()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Spent(float(found["seconds"]), float(found["device_seconds"]), list(map(str, found["trials"])))
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: does not say what a sweep has cost ({error}); delete it to count anew") from error


class Meter:
    """Counts what a sweep costs while it runs, and says when the budget is spent."""

    def __init__(self, limits: BudgetSpec | None, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._path, self._clock = limits or BudgetSpec(), path, clock
        self._spent = read_spent(path)
        self._before, self._started, self._written = self._spent.seconds, None, clock()  # type: float, float | None, float
        self._admitted = set(self._spent.trials)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let the clock run while trials train, and record what was spent however it ends."""
        self._started = self._clock()
        try:
            yield
        finally:
            self._write()
            self._before, self._started = self._spent.seconds, None

    def add(self, trial_id: str, seconds: float, devices: int) -> None:
        """Count what a trial trained since its last report, on so many devices."""
        if seconds <= 0:
            return
        self._spent.device_seconds += seconds * devices
        if trial_id not in self._spent.trials:
            self._spent.trials.append(trial_id)
        if self._clock() - self._written >= WRITE_EVERY_S:
            self._write()

    def admit(self, trial_ids: Iterable[str]) -> list[str]:
        """Choose the trials that may train, in their order: those that trained before, and what the limit leaves."""
        chosen = []
        for trial_id in trial_ids:
            free = self._limits.trials is None or len(self._admitted) < self._limits.trials
            if free or trial_id in self._admitted:
                self._admitted.add(trial_id)
                chosen.append(trial_id)
        return chosen

    def used(self) -> dict[str, float]:
        """Give what was spent of each limit, in its unit."""
        self._tick()
        device_hours = self._spent.device_seconds / HOUR_S
        return {
            "hours": self._spent.seconds / HOUR_S,
            "device_hours": device_hours,
            "trials": len(self._admitted),
            "money": device_hours * (self._limits.price_per_device_hour or 0.0),
        }

    def spent(self) -> tuple[str, ...]:
        """Name the limits that are reached and end everything; the number of trials only lets none begin."""
        return tuple(name for name in self.reached() if name != "trials")

    def reached(self) -> tuple[str, ...]:
        """Name all limits that are reached."""
        used = self.used()
        return tuple(name for name, limit in self._limits.limits().items() if used[name] >= limit)

    def words(self) -> str:
        """Say which limits are reached, and by how much."""
        used, limits = self.used(), self._limits.limits()
        return ", ".join(f"{name} {used[name]:.4g} of {limits[name]:g}" for name in self.reached())

    def _tick(self) -> None:
        if self._started is not None:
            self._spent.seconds = self._before + self._clock() - self._started

    def _write(self) -> None:
        self._tick()
        self._written = self._clock()
        write_atomic(self._path, json.dumps(asdict(self._spent)) + "\n")


@dataclass(frozen=True)
class Left:
    """What a run leaves undone: the cells and seeds, their steps, and the device-hours if their pace is known."""

    trials: tuple[tuple[str, int], ...]
    steps: int
    device_hours: float | None

    def words(self, most: int = 8) -> str:
        """Say it in one line."""
        names = [f"{name} seed {seed}" for name, seed in self.trials]
        shown = ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
        pace = "" if self.device_hours is None else f", about {self.device_hours:.2g} device-hours"
        return f"left undone: {self.steps:,} steps of {len(names)} trials{pace} ({shown})"


def left(statuses: Mapping[str, TrialStatus], steps: int) -> Left:
    """Add up what the trials that have not ended still train, at their own pace, or at the average one.

    Early stopping would make it less.
    """
    open_trials = [status for status in statuses.values() if status.state.state not in FINISHED]
    rest = [(status, steps - max(status.journal.boundaries, default=0)) for status in open_trials]
    average = _mean(list(filter(None, map(_pace, statuses.values()))))
    paces = [_pace(status) or average for status, _ in rest]
    seconds = None if None in paces else sum(pace * ahead for pace, (_, ahead) in zip(paces, rest, strict=True) if pace)
    names = tuple((status.info.name, status.info.seed) for status in open_trials)
    return Left(names, sum(ahead for _, ahead in rest), None if seconds is None else seconds / HOUR_S)


def _pace(status: TrialStatus) -> float | None:
    """Give the device-seconds a step that a trial took so far."""
    step = max(status.journal.boundaries, default=0)
    return float(status.journal.boundaries[step]["device_seconds"]) / step if step else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
