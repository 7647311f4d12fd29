"""A sweep of fakes as a process of its own, to be killed; what it leaves behind is found by a mark, and ended by pid.

    python -m tests.sweeps.killing STORE HISTORY NAME...
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sweeps.history.recall import MEASUREMENT
from sweeps.history.store import HistoryStore
from sweeps.plan import Plan
from sweeps.results import SweepFolder, read_results
from tests.sweeps import fakes

MARK = "FAKE_SWEEP_MARK"
HALVING = "{use: halving, grace_steps: 10, reduction_factor: 2}"
NAMES = ("good-3", "fork-20-1", "fork-20-2", "fork-30-4", "good-5", "good-1")
MEASURED_BY_CLOCK = ["wall_seconds", "device_seconds", "replayed", "samples_per_second", "batches_per_second"]
PATIENCE = 240.0
TRACKING = "FAKE_SWEEP_TRACKING"
TRACKED = "tracking: [{use: wandb, mode: offline}, {use: tensorboard}]\n"


def plan_of(names: Sequence[str]) -> Plan:
    """Plan the sweep that is killed."""
    return fakes.make_plan(*names, scheduler=HALVING, more=os.environ.get(TRACKING, ""))


class Driver:
    """One life of a sweep, in a process group of its own, with everything it starts."""

    def __init__(
        self, store: Path, names: Sequence[str] = NAMES, history: Path | None = None, pace: float = 0.02
    ) -> None:
        self.store, self.mark = store, uuid.uuid4().hex
        store.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "tests.sweeps.killing", str(store), str(history or store / "history"), *names]
        environment = os.environ | {MARK: self.mark, "FAKE_STEP_SECONDS": str(pace), "PYTHONUNBUFFERED": "1"}
        with (store / "printed.txt").open("a") as printed:
            self.process = subprocess.Popen(
                command, env=environment, stdout=printed, stderr=printed, start_new_session=True
            )

    def alive(self) -> list[int]:
        """List the processes of this life that live, the driver included."""
        return [pid for pid, marks in _environments() if f"{MARK}={self.mark}".encode() in marks]

    def workers(self) -> list[int]:
        """List the processes that train trials, busy or waiting for the next."""
        return [pid for pid in self.alive() if command_of(pid).startswith("ray::TrialActor")]

    def printed(self, kind: str) -> list[str]:
        """List the trials of which this store's lives printed that something happened to them."""
        lines = (line.partition(" s] ")[2].split() for line in (self.store / "printed.txt").read_text().splitlines())
        return [words[1] for words in lines if words[:1] == [kind]]

    def interrupt(self) -> None:
        """Press Ctrl+C: the terminal sends it to the whole group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self) -> int:
        """Wait for the driver's exit code."""
        return self.process.wait(timeout=PATIENCE)

    def reap(self) -> None:
        """End whatever is left of this life."""
        for pid in self.alive():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


@contextmanager
def driving(*arguments, **options) -> Iterator[Driver]:
    """Run a driver, and leave nothing of it behind."""
    driver = Driver(*arguments, **options)
    try:
        yield driver
    finally:
        driver.reap()


def _environments() -> Iterator[tuple[int, list[bytes]]]:
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if path.with_name("stat").read_text().rpartition(") ")[2][0] != "Z":
                yield int(path.parent.name), path.read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue


def command_of(pid: int) -> str:
    """Read what a process calls itself; nothing if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Look again and again; a condition that never comes is an error."""
    for _ in range(int(PATIENCE / 0.02)):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError(f"{what}: not in {PATIENCE:g} s")


def homes(store: Path, names: Sequence[str] = NAMES) -> dict[str, Path]:
    """Give every trial's folder by its cell's name."""
    folder = SweepFolder(store, "fake")
    return {trial.cell.name: folder.trial(trial.trial_id) for trial in plan_of(names).trials}


def steps_made(store: Path, names: Sequence[str] = NAMES) -> int:
    """Count the updates made so far, repeated ones each time."""
    return sum(len(fakes.trained(home)) for home in homes(store, names).values())


def repeats(stores: Sequence[Path], names: Sequence[str] = NAMES) -> dict[str, int]:
    """Say how often the most repeated step of every segment was trained, by the key of the state it ends in."""
    made: Counter[tuple[str, int]] = Counter()
    for store in stores:
        for trial in plan_of(names).trials:
            lineage = fakes.Lineage(trial.config, Path())
            steps = fakes.trained(SweepFolder(store, "fake").trial(trial.trial_id))
            made.update((lineage.key(-(-step // 10) * 10), step) for step in steps)
    found: dict[str, int] = {}
    for (key, _), times in made.items():
        found[key] = max(found.get(key, 0), times)
    return found


def in_progress(store: Path, history: Path, names: Sequence[str] = NAMES) -> set[str]:
    """List the segments of which steps were trained, but whose end is not in the history."""
    entries = HistoryStore(history)
    known = {entry.key for entry in entries.entries() if entry.kind == MEASUREMENT}
    ends = {
        lineage.key(step): lineage.measurement(step)
        for trial in plan_of(names).trials
        for lineage in [fakes.Lineage(trial.config, Path())]
        for step in (10, 20, 30, 40)
    }
    return {key for key in repeats([store], names) if ends[key] not in known}


def claimed(history: Path) -> set[str]:
    """List the segments that somebody trains, or did when it was killed."""
    return {claim.parent.name for claim in (history / "leases").glob("*/*.json")}


def table(store: Path):
    """Read the results, without what a clock says."""
    frame = read_results(SweepFolder(store, "fake").results).drop(columns=MEASURED_BY_CLOCK)
    return frame.sort_values(["trial_id", "step"]).reset_index(drop=True)


def main() -> None:
    """Run the sweep; the same command again resumes."""
    from rich.console import Console

    from sweeps.run import run_sweep

    store, history, *names = sys.argv[1:]
    outcome = run_sweep(
        plan_of(names), store=Path(store), history=history, parts=fakes.PARTS, max_concurrent=2,
        console=Console(width=200, highlight=False),
    )  # fmt: skip
    print(outcome.steps)
    sys.exit(outcome.exit_code)


if __name__ == "__main__":
    main()
