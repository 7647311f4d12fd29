"""A sweep runs in waves: a wave ends before the next one is chosen, so what comes next depends on no clock.

The first wave is what the plan lists. Later ones hold trials that earlier results ask for. A wave is a function
of the results of the waves before it, whatever the order in which trials ended: a run that was killed chooses
the same again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sweeps.ledger import TrialStatus
    from sweeps.plan import Plan, Trial

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


def make_waves(plan: Plan) -> Waves:
    """Say in which waves a plan is trained."""
    return PlannedWaves(plan)
