"""What one trial recalls from the history store, and what it adds.

At every boundary the trial asks before it trains: a measurement that is known is reported as replayed, a state
that is known is fetched, and a segment that somebody else is training is waited for.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.history.address import reason
from sweeps.history.forks import Forks
from sweeps.history.leases import Leases
from sweeps.history.store import Entry, HistoryStore
from sweeps.results import append_damage

_log = logging.getLogger(__name__)
STATE, MEASUREMENT = "state", "measurement"
LEASE_SECONDS = 120.0


@dataclass(frozen=True)
class Waypoint:
    """A boundary of a trial: the keys of its state and of what is measured there.

    `keep` says that other trials part from this one here, or that it is the last: its files stay.
    """

    step: int
    state: str
    measurement: str
    keep: bool


class Recall:
    """One trial's view of the store. Without waypoints it knows nothing and keeps nothing."""

    def __init__(
        self, history: str, waypoints: Sequence[Waypoint], folder: Path, lease_seconds: float = LEASE_SECONDS
    ) -> None:
        self.folder = folder
        self.waypoints = {waypoint.step: waypoint for waypoint in waypoints}
        self.store = HistoryStore(history, self._note) if waypoints else None
        self._found: list[str] = []
        owner = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:6]}"
        self.leases = Leases(self.store, owner, lease_seconds) if self.store else None
        self.forks = Forks(self.store) if self.store else None
        self._beat: threading.Event | None = None
        self._held: str | None = None

    def damage(self) -> list[str]:
        """Give what was found damaged since this was asked last; it stays noted in the trial's folder."""
        found, self._found = self._found, []
        return found

    def _note(self, line: str) -> None:
        self._found.append(line)
        append_damage(self.folder, line)

    def measured(self, step: int) -> dict[str, Any] | None:
        """Give the journal's entry of a boundary that anybody measured, its pictures beside."""
        if self.store is None or step not in self.waypoints:
            return None
        found = self.store.get(self.waypoints[step].measurement)
        if found is None:
            return None
        target = self.folder / "samples" / f"step-{step:08d}.png"
        if found.files and not target.exists() and not self._pictures(found, target):
            left = self.store.get(found.key)
            return None if left is None or left.files else left.record  # damaged and set aside, or only dropped
        return found.record

    def _pictures(self, entry: Entry, target: Path) -> bool:
        assert self.store is not None
        scratch = self.folder / f".samples-{uuid.uuid4().hex[:8]}"
        if not self.store.fetch(entry, scratch):
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        (scratch / "grid.png").replace(target)
        shutil.rmtree(scratch)
        return True

    def fetch(self, until: int, have: int) -> int:
        """Bring the deepest known state after `have` and up to `until` into the trial's folder; gives its step."""
        for step in sorted(self.waypoints, reverse=True):
            if self.store is None or not have < step <= until:
                continue
            target = self.folder / "checkpoints" / f"step-{step:08d}"
            entry = self.store.get(self.waypoints[step].state)
            if entry is not None and entry.files and (target.exists() or self.store.fetch(entry, target)):
                return step
        return have

    def add(self, step: int, entry: Mapping[str, Any]) -> None:
        """Commit a boundary that was trained and measured here; earlier states that nobody needs lose their files."""
        if self.store is None or step not in self.waypoints:
            return
        self._put(step)
        pictures = self.folder / f".grid-{uuid.uuid4().hex[:8]}"
        try:
            pictures.mkdir()
            shutil.copyfile(self.folder / "samples" / f"step-{step:08d}.png", pictures / "grid.png")
            self.store.put(self.waypoints[step].measurement, MEASUREMENT, entry, pictures)
        finally:
            shutil.rmtree(pictures, ignore_errors=True)
        self._thin(step)

    def keep(self, step: int) -> None:
        """Commit a state that was trained again, its files being gone, so that nobody else has to."""
        if step in self.waypoints:
            self._put(step)
            self._thin(step)

    def _put(self, step: int) -> None:
        assert self.store is not None
        source = self.folder / "checkpoints" / f"step-{step:08d}"
        self.store.put(self.waypoints[step].state, STATE, {"step": step}, source)

    def _thin(self, step: int) -> None:
        earlier = [point for point in self.waypoints.values() if point.step < step and not point.keep]
        for point in earlier[-1:]:
            entry = self._state(point)
            if entry is None or not entry.files or self.store is None or self.forks is None:
                continue
            if not self.forks.needed(point.state):
                self.store.drop_files(entry)

    def _state(self, waypoint: Waypoint) -> Entry | None:
        return self.store.get(waypoint.state) if self.store is not None else None

    def claim(self, step: int) -> bool:
        """Ask to train the segment that ends at `step`; False while somebody else does."""
        if self.leases is None or step not in self.waypoints:
            return True
        key = self.waypoints[step].state
        if self._held == key:
            return True
        self.release()
        if not self.leases.take(key):
            return False
        self._held, self._beat = key, threading.Event()
        threading.Thread(target=self._renew, args=(key, self._beat), daemon=True).start()
        return True

    def holds(self, step: int) -> bool:
        """Say whether the segment that ends at `step` is claimed here."""
        return self._held is not None and step in self.waypoints and self.waypoints[step].state == self._held

    def _renew(self, key: str, ended: threading.Event) -> None:
        assert self.leases is not None
        while not ended.wait(self.leases.seconds / 4):
            try:
                if not self.leases.renew(key):
                    return
            except OSError as error:  # a store that does not answer for a while: there is time for more attempts
                _log.warning("the lease of %s could not be renewed: %s", key, reason(error))

    def release(self) -> None:
        """Let others train what was claimed."""
        if self._beat is not None:
            self._beat.set()
        if self._held is not None and self.leases is not None:
            self.leases.release(self._held)
        self._held = self._beat = None
