"""The Optuna study of a search: what `optuna-dashboard` and `optuna.load_study` show of it.

A mirror of the sweep's records and journals, written by the driver alone and never read to decide anything: it can
be deleted, and is whole again after the next run. Optuna does not let a finished trial change; where one has to
(a failed point that was tried again), a new trial says so.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial
from sqlalchemy.exc import SQLAlchemyError

from prx.errors import ConfigError, UserError
from prx.yamlsource import Source
from sweeps.search.planning import SearchPlan
from sweeps.search.sampling import STATES, Proposal, Result, frozen, quiet
from sweeps.search.spec import JOURNAL
from sweeps.search.studies import Study

LOCK_SECONDS = 5
"""After which a lock that a killed driver left is broken; it is held for a millisecond."""
POSITION, OWNER = "proposal", "sweep_id"
STORAGE_ERRORS = (StorageInternalError, SQLAlchemyError, OSError, KeyError)
"""What Optuna raises where a storage is away, or, by KeyError, where somebody has deleted the study meanwhile."""

_log = logging.getLogger(__name__)


def study_name(sweep: str, study: Study) -> str:
    """Name a study so that many sweeps can share a database."""
    return f"{sweep}/{study.name}"


def open_storage(where: str, root: Path) -> BaseStorage:
    """Open where a search's studies are kept.

    Raises:
        UserError: The database cannot be opened.
    """
    if where == JOURNAL:
        path = root / "study.journal"
        _cut_torn_line(path)
        lock = JournalFileSymlinkLock(str(path), grace_period=LOCK_SECONDS)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    try:
        return RDBStorage(where)
    except (SQLAlchemyError, ImportError, ValueError, StorageInternalError) as error:
        raise UserError(f"the database cannot be opened: {str(error).splitlines()[0]}") from error


def _cut_torn_line(path: Path) -> None:
    """Cut off what a killed driver left half-written: Optuna would append to it, and never read the file again."""
    if not path.is_file():
        return
    with path.open("r+b") as handle:
        content = handle.read()
        if content and not content.endswith(b"\n"):
            handle.truncate(content.rfind(b"\n") + 1)


def refuse_foreign(search: SearchPlan, source: Source, sweep: str, root: Path, owner: str | None) -> None:
    """Refuse a storage that cannot be opened, or whose studies are another sweep's; writes no trial.

    Args:
        owner: The id in the sweep's records, None where nothing was recorded yet.

    Raises:
        ConfigError: As it says.
    """
    keys = ("search", "storage")
    if search.spec.storage == JOURNAL and not (root / "study.journal").is_file():
        return
    try:
        with quiet():
            storage = open_storage(search.spec.storage, root)
            names = set(optuna.get_all_study_names(storage))
    except (UserError, SQLAlchemyError, ValueError, KeyError) as error:
        raise ConfigError([source.problem(keys, str(error).splitlines()[0])]) from error
    found = [problem for study in search.studies if (problem := _foreign(search, study, sweep, storage, names, owner))]
    if found:
        raise ConfigError([source.problem(keys, message) for message in found])


def _foreign(
    search: SearchPlan, study: Study, sweep: str, storage: BaseStorage, names: set[str], owner: str | None
) -> str | None:
    name = study_name(sweep, study)
    if name not in names:
        return None
    with quiet():
        kept = optuna.load_study(study_name=name, storage=storage)
    if kept.user_attrs.get(OWNER) != owner:
        return f"holds the study {name!r} of another run or sweep; delete that study, or name another storage"
    directions = tuple(direction.name.lower() for direction in kept.directions)
    if directions != search.directions:
        return f"holds the study {name!r} with directions {', '.join(directions)}, not {', '.join(search.directions)}"
    return None


@dataclass
class _Kept:
    """A trial as the storage has it."""

    trial_id: int
    number: int
    state: Any
    values: tuple[float, ...]
    steps: set[int]


class Mirror:
    """The studies of one search in their storage."""

    def __init__(self, search: SearchPlan, sweep: str, root: Path, owner: str, objectives: Sequence[str]) -> None:
        # By position and cell: where `search.first` is edited, another point may stand at a position.
        self._kept: dict[str, dict[tuple[int, str], _Kept]] = {}
        self._optuna: dict[str, optuna.Study] = {}
        self._search = search
        with quiet():
            storage = open_storage(search.spec.storage, root)
            for study in search.studies:
                self._open(study, study_name(sweep, study), storage, owner, objectives)

    def _open(self, study: Study, name: str, storage: BaseStorage, owner: str, objectives: Sequence[str]) -> None:
        directions = list(self._search.directions)
        opened = optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
        opened.set_user_attr(OWNER, owner)
        opened.set_user_attr("sampler", self._search.spec.sampler)
        opened.set_metric_names(list(objectives))
        self._optuna[study.name] = opened
        self._kept[study.name] = {}
        for trial in opened.get_trials(deepcopy=False):
            self._remember(study, trial)

    def _remember(self, study: Study, trial: FrozenTrial) -> None:
        position = trial.user_attrs.get(POSITION)
        if isinstance(position, int):
            kept = _Kept(
                trial._trial_id, trial.number, trial.state, tuple(trial.values or ()), set(trial.intermediate_values)
            )
            self._kept[study.name][position, trial.user_attrs["cell_id"]] = kept

    def sync(self, study: Study, proposals: Sequence[Proposal], results: Mapping[str, Result]) -> None:
        """Bring a study up to what is known."""
        for position, proposal in enumerate(proposals):
            self.tell(study, position, proposal, results.get(proposal.cell_id, Result()))

    def tell(self, study: Study, position: int, proposal: Proposal, result: Result) -> None:
        """Bring one proposal up to what is known; a storage that is away costs a line in the log, no trial."""
        try:
            with quiet():
                self._tell(study, position, proposal, result)
        except STORAGE_ERRORS as error:
            _log.warning("the study could not be written, the next run completes it: %s", error)

    def _tell(self, study: Study, position: int, proposal: Proposal, result: Result) -> None:
        kept = self._kept[study.name].get((position, proposal.cell_id))
        if kept is None:
            self._add(study, position, proposal, result)
        elif not kept.state.is_finished():
            self._go_on(study, kept, result)
        elif result.state != "running" and self._differs(kept, result):
            self._add(study, position, proposal, result, again=True)

    def _differs(self, kept: _Kept, result: Result) -> bool:
        changed = result.state == "complete" and kept.values != result.values
        return kept.state != STATES[result.state] or changed

    def _add(self, study: Study, position: int, proposal: Proposal, result: Result, again: bool = False) -> None:
        names = {cell.cell_id: cell.name for cell in study.cells}
        name = names.get(proposal.cell_id) or study.title(proposal.params)
        attrs: dict[str, Any] = {POSITION: position, "cell": name, "cell_id": proposal.cell_id}
        attrs |= ({"reason": result.reason} if result.reason else {}) | ({"again": True} if again else {})
        opened = self._optuna[study.name]
        opened.add_trial(frozen(study, proposal, result, attrs))
        self._remember(study, opened.get_trials(deepcopy=False)[-1])

    def _go_on(self, study: Study, kept: _Kept, result: Result) -> None:
        opened = self._optuna[study.name]
        trial = optuna.Trial(opened, kept.trial_id)
        for step in sorted(result.curve.keys() - kept.steps):
            trial.report(result.curve[step], step)
            kept.steps.add(step)
        if result.state == "running":
            return
        if result.reason:
            trial.set_user_attr("reason", result.reason)
        values = list(result.values) if result.state == "complete" else None
        told = opened.tell(kept.number, values, STATES[result.state])
        kept.state, kept.values = told.state, tuple(told.values or ())
