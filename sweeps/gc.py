"""What a store and its history could free, and freeing it: checkpoints by policy, leftovers, copies, damage.

Looks first and deletes only when told to. What a running sweep may need is not touched: a sweep here is running
while its lock is held, one elsewhere while it holds leases in the history.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from prx.errors import UserError
from sweeps.history.address import without_credentials
from sweeps.history.forks import Forks
from sweeps.history.leases import Leases
from sweeps.history.remember import Recorded, recorded
from sweeps.history.retention import RUNNING, SweepView, TrialView, dispensable, needed
from sweeps.history.store import DAMAGED, RECORD, Entry, HistoryStore
from sweeps.results import SweepFolder, read_info, read_journal, read_state
from sweeps.status import exclusive, is_running

UNNAMED = "no sweep here names it"
OPEN = "an unfinished sweep may start here"


@dataclass(frozen=True)
class Item:
    """Something that can be freed. Units: `size` in bytes. `files` are its files on this machine, by path."""

    what: str
    where: str
    why: str
    size: int
    free: Callable[[], None]
    files: tuple[Path, ...] = ()


@dataclass
class Finding:
    """What could be freed, what is kept and why (count, bytes), and what should be known about it."""

    items: list[Item] = field(default_factory=list)
    kept: dict[str, tuple[int, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    freed: int = 0
    """Bytes that are free when all items are gone, counted while they are there."""

    def keep(self, why: str, size: int) -> None:
        """Count something that stays."""
        count, before = self.kept.get(why, (0, 0))
        self.kept[why] = (count + 1, before + size)

    def count(self) -> int:
        """Count the bytes that would be free; a file with several names is free when the last of them goes."""
        total, names = sum(item.size for item in self.items if not item.files), dict[tuple[int, int], list[int]]()
        for path in (path for item in self.items for path in item.files):
            stat = path.stat()
            found = names.setdefault((stat.st_dev, stat.st_ino), [stat.st_nlink, stat.st_size])
            found[0] -= 1
        return total + sum(size for left, size in names.values() if not left)


def collect(
    store: Path, history: str | Path | None, *, keep_best: int = 5, unnamed: bool = False, delete: bool = False
) -> Finding:
    """Find what could be freed, and free it if told to.

    Args:
        store: Folder of sweeps; what they name is judged by the policy of `sweeps.history.retention`.
        history: Folder or URI; the store's own unless told.
        keep_best: How many finals of a sweep keep their files; the baseline's always do.
        unnamed: Free what no sweep in this store names, too: nobody else may be using the history.
        delete: Free it; each sweep is locked meanwhile.

    Raises:
        UserError: There is no such store, the history cannot be used, or `keep_best` is negative.
    """
    if not store.is_dir():
        raise UserError(f"--store: {store} does not exist")
    if keep_best < 0:
        raise UserError(f"--keep-best must be at least 0, got {keep_best}")
    where = history or store.absolute() / "history"
    with ExitStack() as locks:
        search = _Search(store.absolute(), HistoryStore(where), keep_best, unnamed, locks if delete else None)
        found = search.run()
        found.freed = found.count()
        if delete:
            for item in found.items:
                item.free()
    return found


class _Search:
    """One look around."""

    def __init__(
        self, store: Path, history: HistoryStore, keep_best: int, unnamed: bool, locks: ExitStack | None
    ) -> None:
        self.history, self.keep_best, self.locks = history, keep_best, locks
        self.found, self.sweeps = Finding(), list[tuple[SweepFolder, SweepView, Recorded]]()
        self.entries = list(history.entries())
        self.leases = Leases(history, "gc").held()
        self.unnamed = unnamed
        for info in sorted((store / "sweeps").glob("*/sweep.json")):
            self._enter(SweepFolder(store, info.parent.name))

    def run(self) -> Finding:
        """Look at the history, then at the folders of the sweeps."""
        self._check_unnamed()
        views = [view for _, view, _ in self.sweeps]
        filed = {entry.key: entry for entry in self.entries if entry.files}
        keep = needed(views, filed.keys(), self.keep_best) | dict.fromkeys(self.leases, RUNNING)
        keep = dict.fromkeys(self._open_forks(views), OPEN) | keep
        leave = self._entries(filed, keep, dispensable(views))
        self._remains()
        for folder, view, record in self.sweeps:
            if not view.running:
                self._copies(folder, record, filed, leave)
        self.found.notes += self.history.damage
        return self.found

    def _open_forks(self, views: list[SweepView]) -> set[str]:
        """List the states from which a sweep that is not over, here or elsewhere, may still start a trial."""
        ends = {trial.states[-1] for view in views for trial in view.trials if trial.states}
        return Forks(self.history).all_needed() - ends

    def _enter(self, folder: SweepFolder) -> None:
        record = recorded(folder.waypoints)
        if record is None:
            self.found.notes.append(
                f"{folder.root} was run before sweeps wrote down which states they pass: nothing unnamed goes"
            )
            self.unnamed = False
            return
        if record.history != self.history.uri and Path(record.history) != Path(self.history.root):
            shown = without_credentials(record.history)
            self.found.notes.append(f"{folder.root.name} keeps its states in {shown}: name it with --history")
        running = self._busy(folder) or any(s in self.leases for ps in record.trials.values() for _, s, _ in ps)
        if running:
            self.found.notes.append(f"{folder.root.name} is running: nothing of it is touched")
        self.sweeps.append((folder, _view(folder, record, running), record))

    def _busy(self, folder: SweepFolder) -> bool:
        if self.locks is None:
            return is_running(folder)
        try:
            self.locks.enter_context(exclusive(folder))
        except UserError:
            return True
        return False

    def _check_unnamed(self) -> None:
        named = {state for _, view, _ in self.sweeps for trial in view.trials for state in trial.states}
        elsewhere = sorted({owner for key, owner in self.leases.items() if key not in named})
        if elsewhere and self.unnamed:
            self.found.notes.append(f"a sweep of another store is running ({elsewhere[0]}): what is unnamed stays")
            self.unnamed = False

    def _entries(self, filed: dict[str, Entry], keep: dict[str, str], go: dict[str, tuple[str, str]]) -> set[str]:
        """Judge every entry with files; gives the keys of those that go."""
        seen = {key for _, _, record in self.sweeps for points in record.trials.values() for _, _, key in points}
        leave = set()
        for key, entry in filed.items():
            where, why = go.get(key, ("", UNNAMED))
            if key in keep or key in seen or (why == UNNAMED and not self.unnamed):
                self.found.keep(keep.get(key, "pictures" if key in seen else UNNAMED), entry.size)
                continue
            leave.add(key)
            what = "checkpoint" if entry.kind == "state" else "pictures"
            self.found.items.append(Item(what, where, why, entry.size, partial(self._drop, entry), self._files(entry)))
        return leave

    def _drop(self, entry: Entry) -> None:
        now = self.history.get(entry.key)
        if now is not None and now.attempt == entry.attempt:
            self.history.drop_files(entry)

    def _files(self, entry: Entry) -> tuple[Path, ...]:
        if not self.history.local:
            return ()
        return tuple(Path(f"{self.history.folder(entry.key)}/{entry.attempt}/{name}") for name in entry.files)

    def _remains(self) -> None:
        """Find what uploads left that were cut off, and what was set aside."""
        for path, size in self.history.leftovers().items():
            self._add("upload", "cut off more than a day ago", path, size)
        for info in self.history.listing(self.history.root, recursive=True):
            if info.base_name.startswith(f"{RECORD}.{DAMAGED}-"):
                self._add("record", "damaged, set aside", info.path, info.size)

    def _add(self, what: str, why: str, path: str, size: int) -> None:
        files = tuple(_inside(Path(path))) if self.history.local else ()
        self.found.items.append(Item(what, "", why, size, lambda: self.history.delete(path), files))

    def _copies(self, folder: SweepFolder, record: Recorded, filed: dict[str, Entry], leave: set[str]) -> None:
        """Find checkpoints in trials' folders that the history has too, or lets go, and what saving left behind."""
        for trial_id, points in record.trials.items():
            states = {f"step-{step:08d}": state for step, state, _ in points}
            for path in sorted((folder.trial(trial_id) / "checkpoints").glob("step-*")):
                if ".partial" in path.name:
                    self._local(folder, path, "half-written")
                elif states.get(path.name) in filed:
                    gone = states[path.name] in leave
                    self._local(folder, path, "goes with the history's" if gone else "the history has it too")

    def _local(self, folder: SweepFolder, path: Path, why: str) -> None:
        files = tuple(_inside(path))
        size = sum(file.stat().st_size for file in files)
        self.found.items.append(Item("copy", folder.root.name, why, size, lambda: shutil.rmtree(path), files))


def _inside(path: Path) -> Iterator[Path]:
    """List the files of a folder, or the file itself."""
    if path.is_file():
        yield path
    for folder, _, names in os.walk(path):
        yield from (Path(folder) / name for name in sorted(names))


def _view(folder: SweepFolder, record: Recorded, running: bool) -> SweepView:
    info = read_info(folder)
    baselines = {trial.trial_id for trial in info.trials if trial.is_baseline}
    trials = []
    for trial_id, points in record.trials.items():
        home = folder.trial(trial_id)
        boundaries, state = read_journal(home).boundaries, read_state(home).state
        if state == "complete":  # maybe before the last step, where `scheduler.stop` found it good enough
            points = [point for point in points if point[0] <= max(boundaries, default=0)]
        final = boundaries.get(points[-1][0]) if points else None
        state = "complete" if final else state
        score = final["metrics"].get(info.metric) if final else None
        states = tuple(state for _, state, _ in points)
        trials.append(TrialView(trial_id, state, states, score, trial_id in baselines))
    return SweepView(folder.root.name, info.mode, tuple(trials), running)
