"""What a tracker is told of a trial, read from the sweep's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sweeps.results import FINISHED, SweepFolder, SweepInfo, TrialInfo, TrialState, read_journal, read_state


@dataclass(frozen=True)
class Tracked:
    """A trial as it stands on the disk. `boundaries` are the journal's lines by step; `config` its settings."""

    info: TrialInfo
    sweep: SweepInfo
    state: TrialState
    boundaries: dict[int, dict[str, Any]]
    config: dict[str, Any]
    folder: Path

    @property
    def label(self) -> str:
        """Name the trial for people."""
        return f"{self.info.name} (seed {self.info.seed})"

    @property
    def run_id(self) -> str:
        """Name its run: two sweeps may have the same trial, and each shows it among its own."""
        return f"{self.sweep.name}-{self.info.trial_id}"

    @property
    def reached(self) -> int:
        """The last boundary."""
        return max(self.boundaries, default=0)

    @property
    def ended(self) -> bool:
        """Whether nothing more is expected of it."""
        return self.state.state in FINISHED

    def metrics(self, step: int) -> dict[str, float]:
        """Give everything measured at a boundary, and what it had cost until then (seconds)."""
        entry = self.boundaries[step]
        cost = {name: float(entry[name]) for name in ("wall_seconds", "device_seconds")}
        return {**{name: float(value) for name, value in entry["metrics"].items()}, **cost}

    def grid(self, step: int) -> Path | None:
        """Find the pictures of a boundary; a boundary recalled from the history has none here."""
        path = self.folder / "samples" / f"step-{step:08d}.png"
        return path if path.is_file() else None

    def outcome(self) -> dict[str, Any]:
        """Say how it ended, or stands."""
        return {"state": self.state.state, "reason": self.state.reason, "reached_step": self.reached}

    def about(self) -> dict[str, Any]:
        """Say what it is: its place in the sweep."""
        info = self.info
        place = {"sweep": self.sweep.name, "cell": info.name, "cell_id": info.cell_id, "trial_id": info.trial_id}
        return {**place, "is_baseline": info.is_baseline, "seed": info.seed, "levels": dict(info.levels)}


def view(folder: SweepFolder, sweep: SweepInfo, info: TrialInfo) -> Tracked:
    """Read a trial."""
    home = folder.trial(info.trial_id)
    path = home / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return Tracked(info, sweep, read_state(home), read_journal(home).boundaries, config, home)


def fingerprint(folder: SweepFolder, trial_id: str) -> tuple[tuple[int, int], ...]:
    """Give what changes when a trial's journal or state does: modification times and sizes."""
    home, found = folder.trial(trial_id), []
    for name in ("journal.jsonl", "state.json"):
        try:
            status = (home / name).stat()
            found.append((status.st_mtime_ns, status.st_size))
        except FileNotFoundError:
            found.append((0, 0))
    return tuple(found)
