"""Leases: at most one trial trains a segment at a time, whoever drives it; a dead owner's lease expires.

A claim is a file of its own. Whoever sees another live claim beside its own withdraws and asks again later,
so two can both fail but never both hold, on any store whose listings show what was written.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from pyarrow import fs

from sweeps.history.store import HistoryStore

FOLDER = "leases"


@dataclass(frozen=True)
class Claim:
    """Somebody's claim on a key. Units: `expires` in seconds since 1970, by the owner's clock."""

    path: str
    owner: str
    expires: float


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

    def take(self, key: str) -> bool:
        """Claim a key; False when somebody else holds it, or asks at the same moment."""
        if key in self._held:
            return self.renew(key)
        if self._others(key, mine=""):
            return False
        claim = self._claim(key)
        if self._others(key, mine=claim.path):
            self._delete(claim)
            return False
        self._held[key] = claim
        return True

    def renew(self, key: str) -> bool:
        """Extend a claim that is held; False when it expired and somebody else took the key."""
        old = self._held.pop(key, None)
        if old is None:
            return False
        lost = old.expires <= self._clock() and self._others(key, mine=old.path)
        if lost:
            self._delete(old)
            return False
        self._held[key] = self._claim(key, old.path)
        return True

    def release(self, key: str) -> None:
        """Give a key back."""
        claim = self._held.pop(key, None)
        if claim is not None:
            self._delete(claim)

    def holder(self, key: str) -> str | None:
        """Name who holds a key now."""
        found = self._others(key, mine="")
        return found[0].owner if found else None

    def pause(self) -> float:
        """Give a random wait before asking again, in seconds."""
        return random.uniform(0.05, 0.5)

    def _folder(self, key: str) -> str:
        return f"{self.store.root}/{FOLDER}/{key}"

    def _claim(self, key: str, path: str | None = None) -> Claim:
        expires = self._clock() + self.seconds
        path = path or f"{self._folder(key)}/{uuid.uuid4().hex}.json"
        self.store._write(path, json.dumps({"owner": self.owner, "expires": expires}).encode())
        return Claim(path, self.owner, expires)

    def _others(self, key: str, mine: str) -> list[Claim]:
        """List live claims but one's own, and sweep up expired ones."""
        found = []
        for info in self.store.files.get_file_info(fs.FileSelector(self._folder(key), allow_not_found=True)):
            if info.path == mine or not info.path.endswith(".json"):
                continue
            claim = self._read(info.path)
            if claim is None:
                continue
            if claim.expires > self._clock():
                found.append(claim)
            else:
                self._delete(claim)
        return found

    def _read(self, path: str) -> Claim | None:
        content = self.store._read(path)
        if content is None:
            return None
        try:
            found = json.loads(content)
            return Claim(path, str(found["owner"]), float(found["expires"]))
        except (ValueError, KeyError, TypeError):
            return Claim(path, "somebody unknown", 0.0)

    def _delete(self, claim: Claim) -> None:
        try:
            self.store.files.delete_file(claim.path)
        except FileNotFoundError:
            return
