"""Search as waves: a batch of points for every study, chosen when all that went before has ended."""

from __future__ import annotations

from collections.abc import Sequence

from prx.errors import UserError
from sweeps.cells import Cell, Plan, Trial, make_trial
from sweeps.ledger import Event, Ledger
from sweeps.search.mirror import Mirror
from sweeps.search.observe import observe
from sweeps.search.planning import SearchPlan
from sweeps.search.records import Records, content
from sweeps.search.sampling import Known, Proposal, Result, propose
from sweeps.search.studies import Infeasible, Study
from sweeps.waves import Outcomes, Wave


class SearchWaves:
    """The waves after the planned one. A wave that was recorded is taken from its record, whatever is known now."""

    def __init__(self, plan: Plan, search: SearchPlan, ledger: Ledger) -> None:
        self._plan, self._search, self._ledger = plan, search, ledger
        root = ledger.folder.root
        self._records = Records(root)
        self._number = 0
        self.proposals: dict[str, list[Proposal]] = {name: list(found) for name, found in search.proposals.items()}
        self._cells: dict[str, Cell] = {cell.cell_id: cell for cell in plan.cells}
        self._exhausted: set[str] = set()
        owner = self._records.open(content(plan, search))
        self._mirror = Mirror(search, plan.spec.name, root, owner, list(plan.spec.objectives))
        self._places: dict[str, list[tuple[Study, int, Proposal]]] = {}
        self._sync(ledger.trials)
        ledger.listeners.append(self)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Every cell so far, the design's first."""
        return tuple(self._cells.values())

    def next(self, outcomes: Outcomes) -> Wave | None:
        """Choose the next batch of every study that has points left; None when none has."""
        self._sync(outcomes)
        self._number += 1
        recorded = self._records.wave(self._number)
        found = self._replayed(recorded) if recorded is not None else self._chosen(outcomes)
        if recorded is None and found:
            self._records.write(self._number, [proposal for proposal, _ in found])
        new = self._take(found)
        self._sync(outcomes)
        return Wave(self._trials(new)) if new else None

    def event(self, event: Event) -> None:
        """Show in the study what happened to a trial of a point."""
        if event.kind not in ("boundary", "complete", "pruned", "failed"):
            return
        cell_id = event.status.info.cell_id
        for study, position, proposal in self._places.get(cell_id, ()):
            self._mirror.tell(study, position, proposal, self._result(self._cells[cell_id], self._ledger.trials))

    def _sync(self, outcomes: Outcomes) -> None:
        """Bring the studies up to all that is known, as after a run that was killed."""
        self._places = {}
        for study in self._search.studies:
            self._mirror.sync(study, self.proposals[study.name], self.results(study, outcomes))
            for position, proposal in enumerate(self.proposals[study.name]):
                self._places.setdefault(proposal.cell_id, []).append((study, position, proposal))

    def _chosen(self, outcomes: Outcomes) -> list[tuple[Proposal, Cell]]:
        spec, found = self._search.spec, []
        for study in self._search.studies:
            wanted = min(self._left(study), spec.batch_size(study.num_params))
            if wanted > 0 and study.name not in self._exhausted:
                known = Known(self.proposals[study.name], self.results(study, outcomes))
                directions = self._search.directions
                found += propose(study, spec, directions, known, wave=self._number, wanted=wanted)
        return found

    def _left(self, study: Study) -> int:
        design = {cell.cell_id for cell in study.cells}
        trained = {proposal.cell_id for proposal in self.proposals[study.name]} - design
        return self._search.wanted(study) - len(trained)

    def results(self, study: Study, outcomes: Outcomes) -> dict[str, Result]:
        """Say how every cell that a study knows of did."""
        ids = dict.fromkeys(proposal.cell_id for proposal in self.proposals[study.name])
        ids |= dict.fromkeys(cell.cell_id for cell in self._plan.cells)
        return {cell_id: self._result(self._cells[cell_id], outcomes) for cell_id in ids}

    def _result(self, cell: Cell, outcomes: Outcomes) -> Result:
        spec = self._plan.spec
        ids = [make_trial(cell, seed).trial_id for seed in spec.first_seeds]
        statuses = [outcomes[trial_id] for trial_id in ids if trial_id in outcomes]
        return observe(statuses, list(spec.objectives)) if statuses else Result()

    def _replayed(self, recorded: Sequence[Proposal]) -> list[tuple[Proposal, Cell]]:
        """Make the cells of a recorded wave; studies whose cell left the design are left out with it."""
        studies = {study.name: study for study in self._search.studies}
        known = [proposal for proposal in recorded if proposal.study in studies]
        return [(proposal, self._same(studies[proposal.study], proposal)) for proposal in known]

    def _same(self, study: Study, proposal: Proposal) -> Cell:
        try:
            cell = study.cell(proposal.params)
        except Infeasible as error:
            raise UserError(f"{self._records.folder}: holds a point that cannot be trained now: {error}") from error
        if cell.cell_id != proposal.cell_id:
            raise UserError(
                f"{self._records.folder}: holds points of other settings than this sweep's ({cell.name}); "
                "give the sweep another name, what is trained already is not trained again"
            )
        return cell

    def _take(self, found: Sequence[tuple[Proposal, Cell]]) -> list[Cell]:
        new = {cell.cell_id: cell for _, cell in found if cell.cell_id not in self._cells}
        for proposal, _ in found:
            self.proposals[proposal.study].append(proposal)
        fruitful = {proposal.study for proposal, _ in found if proposal.cell_id in new}
        self._exhausted |= {proposal.study for proposal, _ in found} - fruitful
        self._cells |= new
        return list(new.values())

    def _trials(self, cells: Sequence[Cell]) -> list[Trial]:
        return [make_trial(cell, seed) for seed in self._plan.spec.first_seeds for cell in cells]
