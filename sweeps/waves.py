"""A sweep runs in waves: a wave ends before the next one is chosen, so what comes next depends on no clock.

The first wave is what the plan lists. Later ones hold trials that earlier results ask for. A wave is a function
of the results of the waves before it, whatever the order in which trials ended: a run that was killed chooses
the same again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sweeps.results import FINISHED
from sweeps.seeds import AdaptiveSeeds

if TYPE_CHECKING:
    from sweeps.ledger import Ledger, TrialStatus
    from sweeps.plan import Plan, Trial
    from sweeps.search.waves import SearchWaves

Outcomes = Mapping[str, "TrialStatus"]
"""Where every trial stands, by id."""


@dataclass(frozen=True)
class Wave:
    """Trials that run together. Losers are stopped early only where `judged`."""

    trials: Sequence[Trial]
    judged: bool = True


class Waves(Protocol):
    """What a sweep trains, wave by wave."""

    def next(self, outcomes: Outcomes) -> Wave | None:
        """Choose the next wave, when every trial of the earlier ones has ended; None when the sweep is over."""


class PlannedWaves:
    """The trials of a plan, in one wave."""

    def __init__(self, plan: Plan) -> None:
        self._left: list[Wave] = [Wave(plan.trials)]

    def next(self, outcomes: Outcomes) -> Wave | None:
        """Give the plan's trials, once."""
        return self._left.pop() if self._left else None


class Stages:
    """One kind of waves after the other."""

    def __init__(self, *stages: Waves) -> None:
        self._stages = list(stages)
        self._given: list[str] = []

    def next(self, outcomes: Outcomes) -> Wave | None:
        """Give the next wave of the first stage that has one; none while a trial has not ended: the budget is spent."""
        if any(outcomes[trial_id].state.state not in FINISHED for trial_id in self._given):
            return None
        while self._stages:
            wave = self._stages[0].next(outcomes)
            if wave is not None:
                self._given += [trial.trial_id for trial in wave.trials]
                return wave
            self._stages.pop(0)
        return None


def make_waves(plan: Plan, ledger: Ledger) -> Waves:
    """Say in which waves a plan is trained: what is planned, what a search chooses, then more seeds for the best."""
    stages: list[Waves] = [PlannedWaves(plan)]
    search: SearchWaves | None = None
    if plan.search is not None:
        from sweeps.search.waves import SearchWaves  # imports optuna

        search = SearchWaves(plan, plan.search, ledger)
        stages.append(search)
    seeds = plan.spec.seeds
    if isinstance(seeds, AdaptiveSeeds):
        from sweeps.replicates import SeedWaves

        stages.append(SeedWaves(seeds, lambda: search.cells if search else plan.cells, ledger))
    return Stages(*stages)
