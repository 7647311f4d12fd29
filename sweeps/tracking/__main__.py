"""The process that tracks a sweep: `python -m sweeps.tracking SWEEP_FOLDER TRACKERS_JSON`.

It looks once a second until its standard input ends, which it does when the sweep's driver closes it or dies, however
that happens; then it writes the rest. A service that does not answer keeps it no longer than `FAREWELL_S`.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import select
import sys
import threading
from pathlib import Path

from sweeps.results import SweepFolder, write_atomic
from sweeps.tracking.follower import Copy, Follower
from sweeps.tracking.process import FAREWELL_S, outcome_path, tracking_folder
from sweeps.tracking.trackers import make_tracker

LOOK_EVERY_S = 1.0
UNFINISHED = 3


def main(root: str, trackers: str) -> None:
    """Follow a sweep to its end."""
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s")
    sweep = Path(root)
    home = tracking_folder(sweep)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the one before us may still be writing
        wanted = {settings["use"]: settings for settings in json.loads(trackers)}
        copies = {
            name: Copy(make_tracker(settings, home / name), home / "marks" / name) for name, settings in wanted.items()
        }
        follower = Follower(SweepFolder(sweep.parents[1], sweep.name), copies)
        while not _driver_is_gone():
            follower.look()
        leave = threading.Timer(FAREWELL_S, lambda: os._exit(UNFINISHED))
        leave.daemon = True
        leave.start()
        follower.look(last=True)
        write_atomic(outcome_path(sweep), json.dumps(follower.outcome()) + "\n")


def _driver_is_gone() -> bool:
    """Wait for the next look; True when standard input has ended."""
    ready, _, _ = select.select([sys.stdin], [], [], LOOK_EVERY_S)
    return bool(ready) and not os.read(sys.stdin.fileno(), 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
