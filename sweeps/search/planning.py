"""What of a search is known before anything is trained: its studies, and the points that no result decides.

The points of a grid, of random sampling, and the first ones of every other sampler are a function of the sweep's
YAML. They are planned with the design's cells, in one wave, so that trunks come before what forks from them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution

from prx.config import RunConfig
from prx.yamlsource import Source
from sweeps.cells import Cell, Dropped
from sweeps.search.sampling import Direction, Known, Proposal, Result, propose
from sweeps.search.space import NEVER, has, is_number, is_step, listed, lookup
from sweeps.search.spec import SearchSpec
from sweeps.search.studies import AXIS, Infeasible, Params, Study
from sweeps.search.validate import first_points, refuse, study_problems, written_spaces
from sweeps.spec import SweepSpec

ALL = "all"
DIRECTIONS: dict[str, Direction] = {"min": "minimize", "max": "maximize"}


@dataclass(frozen=True)
class SearchPlan:
    """A search as far as it is known.

    Args:
        proposals: The points known in advance, by study, each design cell that lies in the space among them.
        cells: The cells of those that the design does not have.
        dropped: Points of a grid that cannot be trained.
    """

    spec: SearchSpec
    directions: tuple[Direction, ...]
    studies: tuple[Study, ...]
    proposals: Mapping[str, tuple[Proposal, ...]]
    cells: tuple[Cell, ...]
    dropped: tuple[Dropped, ...]

    def wanted(self, study: Study) -> int:
        """Count the points of a study, the design's own aside."""
        return len(self._new(study)) if self.spec.sampler == "grid" else self.spec.trials or 0

    def left(self, study: Study) -> int:
        """Count the points of a study that results are to choose."""
        return self.wanted(study) - len(self._new(study))

    def _new(self, study: Study) -> set[str]:
        design = {cell.cell_id for cell in study.cells}
        return {proposal.cell_id for proposal in self.proposals[study.name]} - design

    @property
    def num_waves(self) -> int:
        """Count the waves after the first."""
        sizes = ((self.left(study), self.spec.batch_size(study.num_params)) for study in self.studies)
        return max(math.ceil(left / size) for left, size in sizes)

    def forks(self, config: RunConfig) -> frozenset[int]:
        """List the steps at which points that are not chosen yet may part from a run: its checkpoints there matter.

        Only where all else that is searched is one of few values: two continuous draws are never the same.
        """
        content, found = config.model_dump(mode="json"), set[int]()
        for study in self.studies if self.num_waves else ():
            for space in study.spaces.values():
                if all(listed(distribution) is not None for distribution in space.values()):
                    found |= {step for path, one in space.items() for step in _ahead(content, path, one)}
        return frozenset(found)

    def paths(self) -> dict[str, bool]:
        """List the searched paths, and whether every cell has a number there."""
        found: dict[str, bool] = {}
        for study in self.studies:
            for cell in study.cells:
                content = cell.config.model_dump(mode="json") if study.spaces[cell.cell_id] else {}
                for path, distribution in study.spaces[cell.cell_id].items():
                    own = lookup(content, path)
                    number = own is None or (isinstance(own, (int, float)) and not isinstance(own, bool))
                    found[path] = found.get(path, True) and number and is_number(distribution)
        return found


def _ahead(content: Mapping[str, Any], path: str, found: BaseDistribution) -> Iterator[int]:
    """List the searched values of a step up to a run's own: what stops later shares the run until then."""
    own = lookup(content, path) if is_step(path) and has(content, path) else 0
    for step in listed(found) or ():
        if isinstance(step, int) and (own == NEVER or step <= own):
            yield step


def plan_search(spec: SweepSpec, source: Source, cells: Sequence[Cell]) -> tuple[list[Cell], SearchPlan]:
    """Plan the search of a sweep over the cells of its design.

    Returns:
        The cells to train first, the baseline before all, and what is known of the search.

    Raises:
        ConfigError: A range names no path or holds nothing, a point to try first lies outside, the sampler
            cannot search such a space.
    """
    assert spec.search is not None
    studies = make_studies(spec, source, cells)
    refuse(study_problems(spec, source, studies))
    first = first_points(spec, source, studies)
    directions = tuple(DIRECTIONS[mode] for mode in spec.objectives.values())
    kept = list(cells) if spec.search.within == "cell" else [cell for cell in cells if cell.is_baseline]
    found: dict[str, Cell] = {cell.cell_id: cell for cell in kept}
    proposals, dropped = {}, list[Dropped]()
    for study in studies:
        own = tuple(_own(study, kept))
        if spec.search.sampler == "grid":
            chosen = list(_grid(study, dropped))
        else:
            known = Known(own, {cell.cell_id: Result() for cell in kept})
            wanted = spec.search.startup_size(study.num_params)
            chosen = propose(study, spec.search, directions, known, wave=0, wanted=wanted, first=first[study.name])
        proposals[study.name] = (*own, *(proposal for proposal, _ in chosen))
        found |= {cell.cell_id: cell for _, cell in chosen if cell.cell_id not in found}
    points = tuple(cell for cell_id, cell in found.items() if cell_id not in {cell.cell_id for cell in kept})
    return [*kept, *points], SearchPlan(spec.search, directions, studies, proposals, points, tuple(dropped))


def make_studies(spec: SweepSpec, source: Source, cells: Sequence[Cell]) -> tuple[Study, ...]:
    """Make the studies of a sweep; raises as `plan_search`."""
    assert spec.search is not None
    spaces = written_spaces(spec, source, cells)
    baseline = cells[0].config.model_dump(mode="json", exclude={"name", "seed"})
    if spec.search.within == "cell":
        return tuple(
            Study(cell.name, (cell,), {cell.cell_id: spaces[cell.cell_id]}, {}, baseline)
            for cell in cells
            if spaces[cell.cell_id]
        )
    levels = {axis: tuple(dict.fromkeys(cell.levels[axis] for cell in cells)) for axis in spec.axes}
    axes = {axis: names for axis, names in levels.items() if len(names) > 1}
    return (Study(ALL, tuple(cells), spaces, axes, baseline),)


def _own(study: Study, kept: Sequence[Cell]) -> Iterator[Proposal]:
    """A cell of the design that lies in the space is a point of the study: its result is known for nothing."""
    for cell in kept:
        params = study.own(cell) if cell in study.cells else None
        if params is not None:
            yield Proposal(study.name, cell.cell_id, params)


def _grid(study: Study, dropped: list[Dropped]) -> Iterator[tuple[Proposal, Cell]]:
    for params in study.points():
        try:
            cell = study.cell(params)
        except Infeasible as error:
            dropped.append(Dropped(_shown(study, params), (str(error),)))
            continue
        yield Proposal(study.name, cell.cell_id, params), cell


def _shown(study: Study, params: Params) -> dict[str, str]:
    values: dict[str, Any] = {path: value for path, value in params.items() if not path.startswith(AXIS)}
    return study.base(params).levels | {path: f"{path}={value}" for path, value in values.items()}
