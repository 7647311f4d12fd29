"""Leases: one holder at a time, expiry, and two who ask at the same moment."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import psutil
import pytest

from sweeps.history.leases import FOLDER, Leases
from sweeps.history.processes import Process, gone, this_process
from sweeps.history.store import HistoryStore
from tests.sweeps.places import paths, write


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pair(address, clock) -> tuple[Leases, Leases]:
    return Leases(HistoryStore(address), "first", 10, clock), Leases(HistoryStore(address), "second", 10, clock)


def test_second_waits_until_the_first_gives_back(pair):
    first, second = pair
    assert first.take("k")
    assert not second.take("k")
    assert second.take("other")
    assert second.holder("k") == "first"
    first.release("k")
    assert second.take("k")
    assert first.holder("k") == "second"


def test_a_dead_owners_lease_expires(pair, clock):
    first, second = pair
    assert first.take("k")
    clock.now += 9
    assert not second.take("k")
    clock.now += 2
    assert second.take("k")
    assert not first.renew("k")
    assert second.renew("k")
    assert len(paths(first.store, FOLDER)) == 1


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


def test_claim_that_cannot_be_read_does_not_block_for_ever(pair):
    first, _ = pair
    write(first.store, f"{first.store.root}/{FOLDER}/k/half.json", b"{")
    assert first.take("k")
    assert not any("half" in path for path in paths(first.store))


def test_claim_of_a_format_without_process_still_waits_for_its_expiry(pair, clock):
    first, _ = pair
    content = json.dumps({"owner": "older", "expires": clock.now + 5}).encode()
    write(first.store, f"{first.store.root}/{FOLDER}/k/older.json", content)
    assert not first.take("k")
    assert first.holder("k") == "older"
    clock.now += 6
    assert first.take("k")


def test_owner_that_comes_late_writes_no_file_that_others_may_delete(pair, clock):
    """Whoever saw the claim expired deletes it at any later moment; the owner's new claim is another file."""
    first, _ = pair
    assert first.take("k")
    before = paths(first.store, FOLDER)
    clock.now += 60
    assert first.renew("k")
    assert paths(first.store, FOLDER) != before


def test_renewal_that_took_longer_than_the_lease_is_asked_anew(pair, clock, monkeypatch):
    first, second = pair
    assert first.take("k")
    original = Leases._claim

    def stalled(self, key, path=None):
        if self is first and path:
            clock.now += 60  # between the look at the clock and the write
            assert second.take("k")
        return original(self, key, path)

    monkeypatch.setattr(Leases, "_claim", stalled)
    assert not first.renew("k")
    assert second.renew("k")


def test_release_during_a_renewal_leaves_nothing(pair):
    first, _ = pair
    for _ in range(20):
        assert first.take("k")
        renewing = threading.Thread(target=first.renew, args=("k",))
        renewing.start()
        first.release("k")
        renewing.join()
        assert paths(first.store, FOLDER) == []


def claim_of(process: Process, store: HistoryStore, expires: float) -> None:
    content = {"owner": "dead", "expires": expires, "process": asdict(process)}
    write(store, f"{store.root}/{FOLDER}/k/dead.json", json.dumps(content).encode())


def test_claim_of_a_killed_process_of_this_machine_ends_at_once(pair, clock):
    first, second = pair
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = replace(this_process(), pid=child.pid, started=psutil.Process(child.pid).create_time())
    claim_of(process, first.store, clock.now + 100)
    assert not first.take("k")
    child.kill()
    while not gone(process):  # a zombie until we ask for it below: that is gone too
        time.sleep(0.01)
    assert first.take("k")
    assert not second.take("k")
    child.communicate()


def test_what_is_gone_can_be_said_of_this_machine_only():
    here = this_process()
    assert not gone(here)
    assert gone(replace(here, started=here.started - 3600))  # another process got its number
    assert not gone(replace(here, host="elsewhere", started=0.0))
    assert not gone(replace(here, host="elsewhere", pid=2**22 + 1))
    assert gone(replace(here, pid=2**22 + 1))


def test_never_two_holders_among_many(address):
    """Eight owners contend for one key; each that gets it looks whether anybody else is inside."""
    inside, most, taken = [], [], []
    guard = threading.Lock()

    def contend(name: str) -> None:
        leases = Leases(HistoryStore(address), name, 60)
        for _ in range(20):
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
