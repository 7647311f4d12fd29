"""Where the trials of every unfinished sweep part, so that no trial drops a state that another will start from.

HISTORY/forks/SWEEP.json    state -> the states that come next, "" for an end or for a fork to come

A sweep publishes its plan before it trains, again with every wave, and withdraws it when it is over. One that
was killed stays published: it will be run again.
"""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.history.store import HistoryStore
from sweeps.results import write_atomic

if TYPE_CHECKING:
    from sweeps.history.recall import Waypoint

FOLDER = "forks"
LATER = ""
"""Stands for what comes after a state at which somebody ends, or may part in a later wave."""
Following = dict[str, set[str]]


def own_name(folder: Path) -> str:
    """Name a sweep by what its folder holds: on another machine another sweep may lie at the same path."""
    path = folder / "id"
    if not path.is_file():
        write_atomic(path, f"{uuid.uuid4().hex}\n")
    return path.read_text(encoding="utf-8").strip()


def following(paths: Iterable[Sequence[Waypoint]]) -> Following:
    """Give the states that come after each; where nothing or anything may come, `LATER` is among them."""
    found: Following = defaultdict(set)
    for points in paths:
        for here, after in zip(points, [*points[1:], None], strict=True):
            found[here.state].add(after.state if after else LATER)
            if here.keep:
                found[here.state].add(LATER)
    return found


class Forks:
    """What sweeps on one store have published; files are read again only when they change."""

    def __init__(self, store: HistoryStore) -> None:
        self.store = store
        self._known: dict[str, tuple[object, Following]] = {}

    def publish(self, sweep: str, paths: Iterable[Sequence[Waypoint]]) -> None:
        """Say which ways the trials of a sweep go."""
        content = {state: sorted(after) for state, after in following(paths).items()}
        self.store._write(self._path(sweep), json.dumps(content).encode())

    def withdraw(self, sweep: str) -> None:
        """Say that a sweep is over."""
        self.store.delete(self._path(sweep))

    def needed(self, state: str) -> bool:
        """Say whether somebody ends at a state, or may start from it: trials go different ways from there."""
        return state in self.all_needed()

    def all_needed(self) -> set[str]:
        """List the states that are needed, by all sweeps together."""
        after: Following = defaultdict(set)
        for plan in self._plans().values():
            for state, states in plan.items():
                after[state] |= states
        return {state for state, states in after.items() if LATER in states or len(states) > 1}

    def _plans(self) -> Mapping[str, Following]:
        listed = self.store.listing(f"{self.store.root}/{FOLDER}")
        found = {info.path: (info.mtime_ns, info.size) for info in listed}
        self._known = {path: known for path, known in self._known.items() if path in found}
        for path, version in found.items():
            if path.endswith(".json") and self._known.get(path, (None,))[0] != version:
                content = self.store._read(path)
                if content is not None:
                    self._known[path] = (version, {key: set(after) for key, after in json.loads(content).items()})
        return {path: plan for path, (_, plan) in self._known.items()}

    def _path(self, sweep: str) -> str:
        return f"{self.store.root}/{FOLDER}/{sweep}.json"
