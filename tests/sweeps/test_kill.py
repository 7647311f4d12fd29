"""Sweeps of fakes on a Ray of their own, killed at random moments: run again, they end as if nothing had been."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter

import pandas as pd
import pytest

from sweeps.results import SweepFolder, read_info, read_journal, read_state
from sweeps.steps import read_steps
from tests.sweeps import fakes, killing
from tests.sweeps.killing import driving, wait_until

NEEDED = 30 + 20 + 20 + 10 + 3 * 40 - 30 - 30
"""At the least: the trunk, three forks, and the rest of those that no rung takes out; kills come before that."""


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """The table of the same sweep when nobody kills it."""
    store = tmp_path_factory.mktemp("untouched")
    with driving(store, pace=0.0) as driver:
        assert driver.wait() == 0, (store / "printed.txt").read_text()
    assert set(killing.repeats([store]).values()) == {1}
    return killing.table(store)


def live(store, moments) -> Counter[str]:
    """Kill the driver at every moment, go on each time; gives how often each segment was in progress at a kill."""
    cut: Counter[str] = Counter()
    driver = killing.Driver(store)
    try:
        for moment in moments:
            wait_until(lambda moment=moment: killing.steps_made(store) >= moment, f"step {moment}")
            driver.process.kill()
            driver.process.wait()
            # Before the next driver trains any of it again; a segment that has no step yet is claimed already.
            cut.update(killing.in_progress(store, store / "history") | killing.claimed(store / "history"))
            old, driver = driver, killing.Driver(store)  # at once: what the old one started may still train
            wait_until(lambda old=old: not old.alive(), "orphans end by themselves")
        assert driver.wait() == 0, (store / "printed.txt").read_text()
    finally:
        driver.reap()
    return cut


def check(store, untouched, cut) -> None:
    pd.testing.assert_frame_equal(killing.table(store), untouched)
    repeated = {key: times for key, times in killing.repeats([store]).items() if times > 1}
    assert all(times <= 1 + cut[key] for key, times in repeated.items())
    folder = SweepFolder(store, "fake")
    steps = read_steps(folder, read_info(folder))
    assert steps.left == 0
    assert steps.trained == len(killing.repeats([store])) * 10
    assert str(steps) in (store / "printed.txt").read_text()


def moments(number: int, seed: int) -> list[int]:
    return sorted(random.Random(seed).sample(range(5, NEEDED), number))


@pytest.mark.slow
def test_driver_killed_once(tmp_path, untouched):
    check(tmp_path, untouched, live(tmp_path, moments(1, seed=1)))


@pytest.mark.slow
def test_driver_killed_at_five_moments(tmp_path, untouched):
    check(tmp_path, untouched, live(tmp_path, moments(5, seed=5)))


def strike(driver, everybody: bool, choice: random.Random) -> None:
    """Kill a process that trains trials, or all of them at once."""
    found = driver.workers()
    for pid in found if everybody else choice.sample(found, min(1, len(found))):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def suffer(store, kind: str, counts, *, everybody: bool, seed: int) -> tuple[Counter[str], list[str]]:
    """Kill processes of trials in one run, whenever some number of events is reached; stop before a trial's third.

    Gives how often each segment was in progress at a kill, and the trials that were tried again.
    """
    cut, choice = Counter[str](), random.Random(seed)
    with driving(store) as driver:

        def happened(what: str, number: int) -> None:
            count = (lambda: killing.steps_made(store)) if what == "step" else (lambda: len(driver.printed(what)))
            wait_until(lambda: count() >= number or driver.process.poll() is not None, f"{number} of {what}")

        for count in counts:
            happened(kind, count)
            again = driver.printed("restarted")
            if max(Counter(again).values(), default=0) == 2:
                break
            strike(driver, everybody, choice)
            cut.update(killing.in_progress(store, store / "history"))
            happened("restarted", len(again) + 1)
        assert driver.wait() == 0, (store / "printed.txt").read_text()
        return cut, driver.printed("restarted")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_processes_of_trials_killed_at_random_moments_in_one_run(tmp_path, untouched, seed):
    cut, again = suffer(tmp_path, "step", moments(5, seed), everybody=False, seed=seed)
    assert len(again) >= 2
    check(tmp_path, untouched, cut)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["paused", "resumed"])
def test_all_processes_of_trials_killed_while_they_change_hands(tmp_path, untouched, kind):
    """Trials pause at a rung, their processes go to others, and paused trials get them back."""
    cut, again = suffer(tmp_path, kind, (1, 3), everybody=True, seed=0)
    assert again
    check(tmp_path, untouched, cut)


@pytest.mark.slow
def test_interrupted_once_everything_is_saved(tmp_path, untouched):
    with driving(tmp_path) as driver:
        wait_until(lambda: killing.steps_made(tmp_path) >= 24, "step 24")
        driver.interrupt()
        assert driver.wait() == 130, (tmp_path / "printed.txt").read_text()
        wait_until(lambda: not driver.alive(), "all processes end")
    for home in killing.homes(tmp_path).values():
        made = fakes.trained(home)
        assert read_journal(home).steps_trained == len(made)
        kept = [int(path.name.partition("-")[2]) for path in home.glob("checkpoints/step-*")]
        assert not made or max(kept) == max(made)
        assert read_state(home).state in ("pending", "pruned", "complete")
    with driving(tmp_path, pace=0.0) as driver:
        assert driver.wait() == 0
    assert set(killing.repeats([tmp_path]).values()) == {1}
    pd.testing.assert_frame_equal(killing.table(tmp_path), untouched)


@pytest.mark.slow
def test_interrupted_twice_it_ends_at_once(tmp_path, untouched):
    with driving(tmp_path) as driver:
        wait_until(lambda: killing.steps_made(tmp_path) >= 15, "step 15")
        driver.interrupt()
        log = tmp_path / "sweeps" / "fake" / "logs" / "driver.log"
        wait_until(lambda: "Stop signal received" in log.read_text(), "the first is heard")  # two at once are one
        driver.interrupt()
        assert driver.wait() == 130, (tmp_path / "printed.txt").read_text()
        wait_until(lambda: not driver.alive(), "all processes end")
    cut = Counter(killing.in_progress(tmp_path, tmp_path / "history"))
    with driving(tmp_path, pace=0.0) as driver:
        assert driver.wait() == 0
    check(tmp_path, untouched, cut)


@pytest.mark.slow
def test_two_drivers_on_one_history_train_a_trunk_once(tmp_path):
    """Sweeps of different cells that share steps 1 to 20 and start at once."""
    names = (("good-3", "fork-20-1", "fork-20-2"), ("good-4", "fork-20-5", "fork-20-6"))
    stores, history = [tmp_path / "first", tmp_path / "second"], tmp_path / "history"
    drivers = [
        killing.Driver(store, cells, history, pace=0.05) for store, cells in zip(stores, names, strict=True)
    ]
    try:
        for driver, store in zip(drivers, stores, strict=True):
            assert driver.wait() == 0, (store / "printed.txt").read_text()
    finally:
        for driver in drivers:
            driver.reap()
    made = killing.repeats(stores, [name for cells in names for name in cells])
    assert set(made.values()) == {1}
