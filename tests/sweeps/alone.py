"""Trials of fakes in this process, without Ray, over a history."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sweeps.history.recall import Waypoint
from sweeps.history.remember import waypoints
from sweeps.trial import Settings, TrialRun
from tests.sweeps import fakes


def points(name: str = "good-1") -> tuple[Waypoint, ...]:
    """Name the states that a trial passes."""
    trial = fakes.make_plan(name).trials[0]
    return waypoints({"t": (trial.config, fakes.Lineage(trial.config, Path()))})["t"]


def start(root: Path, history: str | Path, where: str, name: str = "good-1", **changes: Any) -> TrialRun:
    """Begin a trial, or go on with it, in a folder of its own below `root`."""
    trial = fakes.make_plan(name).trials[0]
    home = root / where
    home.mkdir(exist_ok=True)
    settings = {
        "trial_id": where, "config": json.loads(json.dumps(trial.config.model_dump(mode="json"))), "root": str(root),
        "folder": str(home), "metric": "cmmd", "cache": str(root / "cache"), "trainer": fakes.PARTS.trainer,
        "evaluate": fakes.PARTS.evaluate, "history": str(history), "waypoints": points(name),
    }  # fmt: skip
    return TrialRun(Settings(**settings | changes))


def play(trial: TrialRun, until: int = 40) -> list[tuple[int, bool]]:
    """Go on to a boundary; gives (step, replayed) of every boundary."""
    found: list[tuple[int, bool]] = []
    while not found or found[-1][0] < until:
        result = trial.next()
        assert "waits" not in result
        if "metrics" in result:
            found.append((result["step"], result["replayed"]))
    return found
