"""Leases: at most one trial trains a segment at a time, whoever drives it; a dead owner's lease ends.

A claim is a file of its own. Whoever sees another live claim beside its own withdraws and asks again later,
so two can both fail but never both hold, on any store whose listings show what was written. A claim that has
expired is anybody's to delete, so its owner never writes that file again: coming late, it claims anew.
On its own machine a claim also ends with the process that made it; elsewhere it waits for the expiry.
"""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass

from sweeps.history.processes import Process, gone, this_process
from sweeps.history.store import HistoryStore

FOLDER = "leases"


@dataclass(frozen=True)
class Claim:
    """Somebody's claim on a key. Units: `expires` in seconds since 1970, by the owner's clock."""

    path: str
    owner: str
    expires: float
    process: Process | None = None


class Leases:
    """Claims on keys, below the store.

    Args:
        seconds: How long a claim lives without being renewed. It must exceed the clocks' differences.
    """

    def __init__(
        self, store: HistoryStore, owner: str, seconds: float = 120.0, clock: Callable[[], float] = time.time
    ) -> None:
        self.store, self.owner, self.seconds, self._clock = store, owner, seconds, clock
        self._held: dict[str, Claim] = {}
        self._lock = threading.RLock()  # claims are renewed from another thread

    def take(self, key: str) -> bool:
        """Claim a key; False when somebody else holds it, or asks at the same moment."""
        with self._lock:
            if key in self._held:
                return self.renew(key)
            if self._others(key, mine=""):
                return False
            claim = self._claim(key)
            if self._others(key, mine=claim.path) or claim.expires <= self._clock():
                self._delete(claim)
                return False
            self._held[key] = claim
            return True

    def renew(self, key: str) -> bool:
        """Extend a claim that is held; False when it expired and somebody else took the key."""
        with self._lock:
            old = self._held.get(key)
            if old is None:
                return False
            if old.expires > self._clock():
                renewed = self._claim(key, old.path)
                if old.expires > self._clock():
                    self._held[key] = renewed
                    return True
            # Others may have seen it expired, and delete this very file at any moment: it counts no more.
            del self._held[key]
            self._delete(old)
            return self.take(key)

    def release(self, key: str) -> None:
        """Give a key back."""
        with self._lock:
            claim = self._held.pop(key, None)
            if claim is not None:
                self._delete(claim)

    def holder(self, key: str) -> str | None:
        """Name who holds a key now."""
        found = self._others(key, mine="")
        return found[0].owner if found else None

    def held(self) -> dict[str, str]:
        """Give every key that anybody holds now, with its owner; deletes nothing."""
        claims = [
            self._read(info.path)
            for info in self.store.listing(f"{self.store.root}/{FOLDER}", recursive=True)
            if info.path.endswith(".json")
        ]
        return {claim.path.split("/")[-2]: claim.owner for claim in claims if claim is not None and self._live(claim)}

    def _live(self, claim: Claim) -> bool:
        return claim.expires > self._clock() and not (claim.process and gone(claim.process))

    def pause(self) -> float:
        """Give a random wait before asking again, in seconds."""
        return random.uniform(0.05, 0.5)

    def _folder(self, key: str) -> str:
        return f"{self.store.root}/{FOLDER}/{key}"

    def _claim(self, key: str, path: str | None = None) -> Claim:
        expires = self._clock() + self.seconds
        path = path or f"{self._folder(key)}/{uuid.uuid4().hex}.json"
        process = this_process()
        content = {"owner": self.owner, "expires": expires, "process": asdict(process)}
        self.store._write(path, json.dumps(content).encode())
        return Claim(path, self.owner, expires, process)

    def _others(self, key: str, mine: str) -> list[Claim]:
        """List live claims but one's own, and sweep up expired ones."""
        found = []
        for info in self.store.listing(self._folder(key)):
            if info.path == mine or not info.path.endswith(".json"):
                continue
            claim = self._read(info.path)
            if claim is None:
                continue
            if self._live(claim):
                found.append(claim)
            else:
                self._delete(claim)
        return found

    def _read(self, path: str) -> Claim | None:
        try:
            found = self.store.read_json(path)
            if found is None:
                return None
            process = Process(**found["process"]) if found.get("process") else None
            return Claim(path, str(found["owner"]), float(found["expires"]), process)
        except (ValueError, KeyError, TypeError):
            return Claim(path, "somebody unknown", 0.0)

    def _delete(self, claim: Claim) -> None:
        try:
            self.store.files.delete_file(claim.path)
        except FileNotFoundError:
            return
