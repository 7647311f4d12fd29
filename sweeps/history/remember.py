"""Before a sweep trains anything: name every trial's states, and take over what is known of them."""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from prx.config import RunConfig
from sweeps.history.address import reason
from sweeps.history.leases import Leases
from sweeps.history.recall import Recall, Waypoint
from sweeps.history.store import HistoryStore
from sweeps.results import append_journal, read_steps_trained, write_atomic

_log = logging.getLogger(__name__)


class Names(Protocol):
    """What names the states of one run; `sweeps.history.keys.Lineage` does."""

    def key(self, step: int) -> str:
        """Name the state after `step` updates."""

    def measurement(self, step: int) -> str:
        """Name what is measured there."""


def boundaries(config: RunConfig) -> list[int]:
    """List the steps at which a run is measured."""
    every = config.evaluation.every
    return [*range(every, config.steps, every), config.steps]


def waypoints(
    runs: Mapping[str, tuple[RunConfig, Names]], forks: Mapping[str, Collection[int]] = MappingProxyType({})
) -> dict[str, tuple[Waypoint, ...]]:
    """Give the boundaries of every trial; files stay where trials part from each other, and at the end.

    Args:
        forks: Trial -> the steps at which trials that are not known yet may part from it.
    """
    states = {trial: [names.key(step) for step in boundaries(config)] for trial, (config, names) in runs.items()}
    following: dict[str, set[str | None]] = defaultdict(set)
    for keys in states.values():
        for here, after in zip(keys, [*keys[1:], None], strict=True):
            following[here].add(after)
    found = {}
    for trial, (config, names) in runs.items():
        pairs = zip(boundaries(config), states[trial], strict=True)
        found[trial] = tuple(
            Waypoint(step, key, names.measurement(step), keep=step in forks.get(trial, ()) or _parts(following[key]))
            for step, key in pairs
        )
    return found


@dataclass(frozen=True)
class Recorded:
    """Which states a sweep's trials pass, in which history. A trial's points are (step, state, measurement)."""

    history: str
    trials: dict[str, list[tuple[int, str, str]]]


def record(path: Path, history: str, points: Mapping[str, Sequence[Waypoint]]) -> None:
    """Note which states trials pass, beside those noted before, so that nobody frees what they still need."""
    before = recorded(path)
    trials = dict(before.trials) if before else {}
    trials |= {trial: [(p.step, p.state, p.measurement) for p in found] for trial, found in points.items()}
    write_atomic(path, json.dumps({"history": history, "trials": trials}) + "\n")


def recorded(path: Path) -> Recorded | None:
    """Read what `record` noted; None for a sweep from before it was."""
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return Recorded(found["history"], {t: [(int(p[0]), p[1], p[2]) for p in ps] for t, ps in found["trials"].items()})


def _parts(following: Collection[str | None]) -> bool:
    return None in following or len(following) > 1


class Segments:
    """Which segments of a sweep's trials are free to be trained or taken over; asked often, answered from memory."""

    def __init__(
        self, history: str, points: Mapping[str, Sequence[Waypoint]] | None = None, every_s: float = 0.5
    ) -> None:
        self._points: dict[str, tuple[Waypoint, ...]] = {}
        self._states: dict[tuple[str, int], str] = {}
        self._leases = Leases(HistoryStore(history), "driver")
        self._every_s, self._asked = every_s, dict[str, float]()
        self.add(points or {})

    def add(self, points: Mapping[str, Sequence[Waypoint]]) -> None:
        """Learn the boundaries of more trials."""
        self._points |= {trial: tuple(found) for trial, found in points.items()}
        self._states |= {(trial, point.step): point.state for trial, found in points.items() for point in found}

    def paths(self) -> Collection[tuple[Waypoint, ...]]:
        """Give the boundaries of every trial that was named."""
        return self._points.values()

    def waypoints(self, trial_id: str) -> tuple[Waypoint, ...]:
        """Give the boundaries of a trial, none where it was not named."""
        return self._points.get(trial_id, ())

    def free(self, trial_id: str, step: int) -> bool:
        """Say whether nobody trains the segment that ends at `step`; between two looks the answer is no.

        It is asked in the driver's loop, which a store that does not answer for a while must not end.
        """
        state = self._states[trial_id, step]
        now = time.monotonic()
        if now - self._asked.get(state, -self._every_s) < self._every_s:
            return False
        self._asked[state] = now
        try:
            return self._leases.holder(state) is None
        except OSError as error:
            _log.warning("who holds the lease of %s is not known: %s", state, reason(error))
            return False


def recall(
    history: str,
    points: Sequence[Waypoint],
    folder: Path,
    known: Iterable[int],
    warn: Callable[[str], None] = lambda line: None,
) -> int:
    """Write the boundaries that are known, from the first unknown to the trial onwards, into its journal.

    `warn` is told what was found damaged.
    """
    found, have = list[dict[str, Any]](), set(known)
    view, trained = Recall(history, points, folder), read_steps_trained(folder)
    for point in points:
        if point.step in have:
            continue
        entry = view.measured(point.step)
        if entry is None:
            break
        found.append(entry | {"steps_trained": trained})
    if found:
        append_journal(folder, *found)
    for line in view.damage():
        warn(line)
    return len(found)
