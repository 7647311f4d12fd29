"""The driver's end of tracking: start the process beside the sweep, and say at the end what became of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from sweeps.results import SweepFolder
from sweeps.tracking.spec import TrackerSpec, plain

FAREWELL_S = 60.0
"""How long trackers may take to write the rest once the sweep has ended."""
GRACE_S = 10.0


def tracking_folder(sweep: Path) -> Path:
    """Give the folder of everything that trackers keep on this machine."""
    return sweep / "tracking"


def outcome_path(sweep: Path) -> Path:
    """Give the file in which the process says what it has written."""
    return tracking_folder(sweep) / "outcome.json"


class Tracking(AbstractContextManager["Tracking"]):
    """Tracks a sweep while the context lasts; without trackers it does nothing.

    Args:
        folder: The sweep.
        trackers: What its YAML asks for.
        say: Tells a person, line by line, where the runs are or what is missing.
    """

    def __init__(self, folder: SweepFolder, trackers: Sequence[TrackerSpec], say: Callable[[str], None]) -> None:
        self._folder, self._say = folder, say
        self._trackers = plain(trackers)
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder.logs / "tracking.log"

    def __enter__(self) -> Tracking:
        """Start the process. It is out of the way of Ctrl+C, and ends when this one does."""
        if self._trackers:
            tracking_folder(self._folder.root).mkdir(parents=True, exist_ok=True)
            outcome_path(self._folder.root).unlink(missing_ok=True)
            command = [sys.executable, "-m", "sweeps.tracking", str(self._folder.root), json.dumps(self._trackers)]
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        """Let the process write the rest, for a while, and say what became of it."""
        if self._process is None or self._process.stdin is None:
            return
        self._process.stdin.close()
        try:
            self._process.wait(timeout=FAREWELL_S + GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.terminate()
        for line in self._words():
            self._say(line)

    def _words(self) -> list[str]:
        again = f"the next run of this sweep completes it (log: {self._log})"
        path = outcome_path(self._folder.root)
        if not path.is_file():
            return [f"tracking: ended before everything was written; {again}"]
        found = json.loads(path.read_text(encoding="utf-8"))
        return [
            f"tracking: {name}: {one['left']} trials are missing ({one['error']}); {again}"
            if one["left"]
            else f"tracking: {one['where']}"
            for name, one in found.items()
        ]
