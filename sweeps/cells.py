"""Cells, trials and plans: what a sweep trains, as plain records."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from prx.config import RunConfig, config_id
from prx.yamlsource import Source
from sweeps.spec import SweepSpec

if TYPE_CHECKING:
    from sweeps.search.planning import SearchPlan

SEPARATOR = " · "
BASELINE = "baseline"


@dataclass(frozen=True)
class Cell:
    """One combination of levels. `difference` maps a configuration path to (baseline, here).

    `values` are what a search chose of it, by path; empty for a cell of the design.
    """

    cell_id: str
    name: str
    levels: dict[str, str]
    config: RunConfig
    is_baseline: bool
    difference: dict[str, tuple[Any, Any]]
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One run: a cell with a seed."""

    trial_id: str
    cell: Cell
    seed: int
    config: RunConfig


@dataclass(frozen=True)
class Dropped:
    """A combination that is not trained."""

    levels: dict[str, str]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What a sweep trains. Trials come seed by seed, and within a seed cell by cell, the baseline first.

    `settings` is what all cells share, and where each of its values was written.
    """

    spec: SweepSpec
    source: Source
    cells: tuple[Cell, ...]
    dropped: tuple[Dropped, ...]
    trials: tuple[Trial, ...]
    settings: Source = field(default_factory=lambda: Source(None))
    search: SearchPlan | None = None

    @cached_property
    def total_steps(self) -> int:
        """Count the steps of all trials when nobody is stopped early."""
        return len(self.trials) * self.spec.trial.steps


def make_trial(cell: Cell, seed: int) -> Trial:
    """Make the trial of a cell with a seed."""
    if seed == cell.config.seed:  # the same run: spare the hash
        return Trial(cell.cell_id, cell, seed, cell.config)
    config = cell.config.model_copy(update={"seed": seed})
    return Trial(config_id(config), cell, seed, config)
