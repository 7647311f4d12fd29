"""The truth of a sweep on disk: a journal and a state for every trial, and the table made from them.

STORE/sweeps/NAME/sweep.json                       what was planned
STORE/sweeps/NAME/id                               what the history knows the sweep by
STORE/sweeps/NAME/waypoints.json                   which states of the history its trials pass
STORE/sweeps/NAME/trials/TRIAL_ID/journal.jsonl    a line a boundary, appended by the trial
STORE/sweeps/NAME/trials/TRIAL_ID/steps_trained    how many updates it made, also those lost in a crash
STORE/sweeps/NAME/trials/TRIAL_ID/state.json       complete, pruned, failed, ...: written by the driver
STORE/sweeps/NAME/spent.json                       what all runs have cost
STORE/sweeps/NAME/trials/TRIAL_ID/damage.txt       what the history had of it and was damaged, a line each
STORE/sweeps/NAME/results.parquet                  one row per (trial, boundary), made from the above
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import yaml

from prx.errors import UserError
from sweeps.metrics import QUALITY, Direction

if TYPE_CHECKING:
    import pandas as pd

MEASURED = (
    *(column for metric in QUALITY for column in (metric, f"{metric}_se")),
    "cmmd_unbiased",
    "dino_mmd_unbiased",
    "num_samples",
    "loss",
    "samples_per_second",
    "batches_per_second",
)
FINISHED = ("complete", "pruned", "failed")
ENTRY = ("step", "metrics", "wall_seconds", "device_seconds", "steps_trained")
"""What a report of a boundary and the journal's line have in common."""
STATES = ("pending", "running", "paused", *FINISHED)
_NOTHING: Mapping[str, bool] = MappingProxyType({})


@dataclass(frozen=True)
class TrialInfo:
    """What tables and early stopping need to know of a planned trial.

    `values` holds what a search varies, by path; `scheduled_until` is the step of the last scheduled change of
    the trial's techniques; `measured` how its figures come about, see `sweeps.measured_with`.
    """

    trial_id: str
    cell_id: str
    name: str
    is_baseline: bool
    seed: int
    levels: dict[str, str]
    values: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 0
    scheduled_until: int = 0
    measured: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepInfo:
    """What a table needs to know of a planned sweep. `searched` says of a path whether it holds numbers only."""

    name: str
    metric: str
    mode: Direction
    steps: int
    eval_every: int
    axes: tuple[str, ...]
    trials: tuple[TrialInfo, ...]
    article: str | None = None
    searched: dict[str, bool] = field(default_factory=dict)
    objectives: dict[str, Direction] = field(default_factory=dict)
    price_per_device_hour: float | None = None


@dataclass(frozen=True)
class TrialState:
    """Where a trial stands; `reason` says why it was pruned or failed."""

    state: str = "pending"
    reason: str = ""


@dataclass
class Journal:
    """The boundaries a trial has reached, by step, and the seconds spent on the way.

    `steps_trained` counts every update its processes made, over all their lives; see `sweeps.steps`.
    """

    boundaries: dict[int, dict[str, Any]] = field(default_factory=dict)
    wall_seconds: float = 0.0
    steps_trained: int = 0
    damage: list[str] = field(default_factory=list)
    losses: dict[int, tuple[Fraction, int]] = field(default_factory=dict)
    """For every step after the last boundary at which a checkpoint was about to be kept: the exact sum of the losses
    since that boundary, and how many."""


class SweepFolder:
    """The paths of one sweep."""

    def __init__(self, store: Path, name: str) -> None:
        self.root = store / "sweeps" / name
        self.info = self.root / "sweep.json"
        self.results = self.root / "results.parquet"
        self.spent = self.root / "spent.json"
        self.logs = self.root / "logs"
        self.cache = store / "cache"
        self.history = store / "history"
        self.waypoints = self.root / "waypoints.json"

    def trial(self, trial_id: str) -> Path:
        """Give a trial's own folder."""
        return self.root / "trials" / trial_id


def write_atomic(path: Path, content: str) -> None:
    """Replace a file so that readers see the old or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    with partial.open("w", encoding="utf-8") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(path)


def append_journal(folder: Path, *entries: Mapping[str, Any]) -> None:
    """Add lines and wait until they are on the disk; what a crash left half-written is cut off first."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "journal.jsonl").open("a+b") as handle:
        handle.seek(0)
        content = handle.read()
        if content and not content.endswith(b"\n"):
            handle.truncate(content.rfind(b"\n") + 1)
        handle.write(b"".join(json.dumps(dict(entry), allow_nan=False).encode() + b"\n" for entry in entries))
        handle.flush()
        os.fsync(handle.fileno())


def read_journal(folder: Path) -> Journal:
    """Read a trial's journal; a damaged line is left out and named in `damage`."""
    journal = Journal(steps_trained=read_steps_trained(folder))
    for number, entry in enumerate(_lines(folder), start=1):
        if entry is None:
            journal.damage.append(f"{folder / 'journal.jsonl'}:{number}: half-written line left out")
            continue
        journal.wall_seconds = float(entry["wall_seconds"])
        boundary = entry["kind"] == "boundary"
        if boundary:
            journal.losses.clear()
            journal.boundaries[int(entry["step"])] = entry
        elif "losses" in entry:
            total, count = entry["losses"]
            journal.losses[int(entry["step"])] = (Fraction(total), int(count))
    return journal


def _lines(folder: Path) -> list[dict[str, Any] | None]:
    """Read the lines of a trial's journal; None for one that is damaged."""
    path = folder / "journal.jsonl"
    return [_entry(line) for line in path.read_bytes().splitlines()] if path.is_file() else []


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(found, dict) and {"kind", "step", "wall_seconds"} <= found.keys()
    losses = found.get("losses", ["0", 0]) if whole else None
    return found if isinstance(losses, list) and len(losses) == 2 else None


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Keep the settings of a trial; a sweep may write ten thousand, so by the C library where there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text = yaml.dump(dict(config), Dumper=dumper, sort_keys=False, allow_unicode=True)
    (folder / "config.yaml").write_text(text, encoding="utf-8")


def append_damage(folder: Path, line: str) -> None:
    """Note what was found damaged and set aside, for `status`; a trial goes on without it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "damage.txt").open("a", encoding="utf-8") as handle:
        handle.write(f"{line}\n")


def read_damage(folder: Path) -> list[str]:
    """Give what was found damaged on a trial's way."""
    path = folder / "damage.txt"
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def write_steps_trained(folder: Path, count: int) -> None:
    """Record how many updates a trial made in all its lives.

    Written after every chunk of training, so not forced to the disk: it outlives the process, which is what
    gets killed.
    """
    partial = folder / f"steps_trained.partial-{os.getpid()}"
    partial.write_text(f"{count}\n", encoding="utf-8")
    partial.replace(folder / "steps_trained")


def read_steps_trained(folder: Path) -> int:
    """Read how many updates a trial made in all its lives; one that never trained made none.

    A machine that went down may have kept the file empty; then the journal, which is forced to the disk, knows.
    """
    try:
        return int((folder / "steps_trained").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return 0
    except ValueError:
        return max((int(entry.get("steps_trained", 0)) for entry in _lines(folder) if entry), default=0)


def write_state(folder: Path, state: TrialState) -> None:
    """Record where a trial stands."""
    write_atomic(folder / "state.json", json.dumps(asdict(state)) + "\n")


def read_state(folder: Path) -> TrialState:
    """Read where a trial stands; nothing written yet means pending.

    Raises:
        UserError: The file is damaged; it is written atomically, so somebody else wrote it.
    """
    path = folder / "state.json"
    if not path.is_file():
        return TrialState()
    try:
        return TrialState(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: is not the state of a trial ({error}); delete it to read it anew") from error


def write_info(folder: SweepFolder, info: SweepInfo) -> None:
    """Record what is planned, so that `status` needs no plan."""
    write_atomic(folder.info, json.dumps(asdict(info), indent=1) + "\n")


def read_info(folder: SweepFolder) -> SweepInfo:
    """Read what was planned.

    Raises:
        UserError: There is no such sweep in the store, or its file is damaged.
    """
    if not folder.info.is_file():
        raise UserError(f"{folder.root}: holds no sweep; start it with `prx-sweep run`, or name its --store")
    try:
        found = json.loads(folder.info.read_text(encoding="utf-8"))
        trials = tuple(TrialInfo(**trial) for trial in found.pop("trials"))
        return SweepInfo(**{**found, "axes": tuple(found["axes"]), "trials": trials})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{folder.info}: is no plan of a sweep ({error}); `prx-sweep run` writes it anew") from error


def trial_rows(
    trial: TrialInfo, journal: Journal, state: TrialState, replayed: Iterable[int] = ()
) -> list[dict[str, Any]]:
    """Make the rows of one trial; one that failed before its first boundary still has a row, at step 0."""
    known = set(replayed)
    base = {
        "trial_id": trial.trial_id, "cell_id": trial.cell_id, "name": trial.name,
        "is_baseline": trial.is_baseline, "seed": trial.seed, **trial.levels, **trial.values,
        "state": state.state, "reason": state.reason,
    }  # fmt: skip
    rows = [
        base | entry["metrics"] | {
            "step": step, "replayed": step in known,
            "wall_seconds": entry["wall_seconds"], "device_seconds": entry["device_seconds"],
        }
        for step, entry in sorted(journal.boundaries.items())
    ]  # fmt: skip
    empty = {"step": 0, "replayed": False, "wall_seconds": journal.wall_seconds, "device_seconds": 0.0}
    return rows or ([base | empty] if state.state == "failed" else [])


def columns(
    axes: Sequence[str], rows: Sequence[Mapping[str, Any]], searched: Mapping[str, bool] = _NOTHING
) -> list[tuple[str, str]]:
    """Name every column with its type, known ones first, in an order that does not depend on the rows."""
    fixed = [("trial_id", "string"), ("cell_id", "string"), ("name", "string"), ("is_baseline", "bool")]
    values = [(path, "double" if number else "string") for path, number in searched.items()]
    fixed += [("seed", "int64"), *((axis, "string") for axis in axes), *values, ("step", "int64")]
    last = [("state", "string"), ("wall_seconds", "double"), ("device_seconds", "double")]
    last += [("replayed", "bool"), ("reason", "string")]
    known = {name for name, _ in (*fixed, *last)} | set(MEASURED)
    extra = sorted({name for row in rows for name in row} - known)
    return [*fixed, *((name, "double") for name in (*MEASURED, *extra)), *last]


def write_results(
    rows: Sequence[Mapping[str, Any]], axes: Sequence[str], path: Path, searched: Mapping[str, bool] = _NOTHING
) -> None:
    """Write the table of results, replacing the old one at once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"string": pa.string(), "bool": pa.bool_(), "int64": pa.int64(), "double": pa.float64()}
    schema = pa.schema([(name, types[kind]) for name, kind in columns(axes, rows, searched)])
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    pq.write_table(table, partial)
    partial.replace(path)


def read_results(path: Path) -> pd.DataFrame:
    """Read a table of results, also while a sweep replaces it.

    Raises:
        UserError: There is none, or it is damaged.
    """
    import pandas as pd

    try:
        # Given a path, pyarrow opens it twice: the layout would be of one table and the pages of the next.
        with path.open("rb") as handle:
            return pd.read_parquet(handle)
    except FileNotFoundError as error:
        raise UserError(f"{path}: does not exist; no boundary has been reached yet") from error
    except ValueError as error:
        raise UserError(f"{path}: is no table of results ({error}); `prx-sweep run` writes it anew") from error


def collect(folder: SweepFolder, info: SweepInfo) -> tuple[list[dict[str, Any]], list[str]]:
    """Read every planned trial from the disk: rows, and what was found damaged."""
    rows: list[dict[str, Any]] = []
    damage: list[str] = []
    for trial in info.trials:
        home = folder.trial(trial.trial_id)
        journal = read_journal(home)
        rows += trial_rows(trial, journal, read_state(home))
        damage += [*journal.damage, *read_damage(home)]
    return rows, damage
