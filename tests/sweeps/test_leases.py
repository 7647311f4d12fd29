"""Leases: one holder at a time, expiry, and two who ask at the same moment."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from sweeps.history.leases import FOLDER, Leases
from sweeps.history.store import HistoryStore


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pair(tmp_path, clock) -> tuple[Leases, Leases]:
    store = HistoryStore(tmp_path)
    return Leases(store, "first", 10, clock), Leases(HistoryStore(tmp_path), "second", 10, clock)


def test_second_waits_until_the_first_gives_back(pair):
    first, second = pair
    assert first.take("k")
    assert not second.take("k")
    assert second.take("other")
    assert second.holder("k") == "first"
    first.release("k")
    assert second.take("k")
    assert first.holder("k") == "second"


def test_a_dead_owners_lease_expires(pair, clock, tmp_path):
    first, second = pair
    assert first.take("k")
    clock.now += 9
    assert not second.take("k")
    clock.now += 2
    assert second.take("k")
    assert not first.renew("k")
    assert second.renew("k")
    assert len(list((tmp_path / FOLDER / "k").glob("*.json"))) == 1


def test_renewing_keeps_it(pair, clock):
    first, second = pair
    assert first.take("k")
    for _ in range(5):
        clock.now += 8
        assert first.take("k")
        assert not second.take("k")


def test_renewing_late_is_fine_while_nobody_came(pair, clock):
    first, second = pair
    assert first.take("k")
    clock.now += 60
    assert first.renew("k")
    assert not second.take("k")


def test_both_withdraw_when_both_asked_at_once(pair, monkeypatch):
    first, second = pair
    inner = []
    original = Leases._claim

    def claim(self, key, path=None):
        found = original(self, key, path)
        if self is first:
            inner.append(second.take("k"))  # between writing a claim and looking around
        return found

    monkeypatch.setattr(Leases, "_claim", claim)
    assert not first.take("k") or not inner[0]
    assert [first.take("k"), inner[0]].count(True) <= 1


def test_claim_that_cannot_be_read_does_not_block_for_ever(pair, tmp_path):
    first, _ = pair
    folder = tmp_path / FOLDER / "k"
    folder.mkdir(parents=True)
    (folder / "half.json").write_text("{")
    assert first.take("k")
    assert not Path(folder / "half.json").exists()


def test_never_two_holders_among_many(tmp_path):
    """Eight owners contend for one key; each that gets it looks whether anybody else is inside."""
    inside, most, taken = [], [], []
    guard = threading.Lock()

    def contend(name: str) -> None:
        leases = Leases(HistoryStore(tmp_path), name, 60)
        for _ in range(40):
            if not leases.take("k"):
                continue
            with guard:
                inside.append(name)
                most.append(len(inside))
            with guard:
                inside.remove(name)
            taken.append(name)
            leases.release("k")

    threads = [threading.Thread(target=contend, args=(f"owner {n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert taken
