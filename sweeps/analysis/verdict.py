"""Whether there is a winner, and what it would take to know."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sweeps.analysis.differences import Difference, difference
from sweeps.analysis.intervals import ALPHA
from sweeps.analysis.observations import Observations
from sweeps.power import seeds_for


@dataclass(frozen=True)
class Verdict:
    """The leader and its runner-up by mean figure.

    `lead` is leader minus runner-up, paired by seed. `separable` says that its 95 % interval leaves out 0.
    `seeds_needed` is how many seeds in all would tell them apart four times in five if the lead and its spread
    between seeds are what they seem; None with one seed, whose spread is unknown, and where more than
    a thousand would be needed.
    """

    leader: str
    runner_up: str | None
    lead: Difference | None
    separable: bool
    seeds_needed: int | None


def verdict(observed: Observations) -> Verdict | None:
    """Judge the two best cells at full length; None without a cell."""
    if not len(observed.cells):
        return None
    means = [observed.sign * float(observed.value[observed.cell == i].mean()) for i in range(len(observed.cells))]
    order = np.argsort(means, kind="stable")
    leader = observed.cells[order[0]].name
    if len(order) == 1:
        return Verdict(leader, None, None, False, None)
    lead = difference(observed, int(order[0]), int(order[1]))
    runner_up = observed.cells[order[1]].name
    if lead is None:
        return Verdict(leader, runner_up, None, False, None)
    separable = lead.basis != "none" and lead.p < ALPHA
    needed = None
    if not separable and lead.basis == "seeds":
        needed = seeds_needed(lead.estimate, lead.se * math.sqrt(lead.seeds))
    return Verdict(leader, runner_up, lead, separable, needed)


def seeds_needed(gap: float, spread: float) -> int | None:
    """Count the seeds with which a paired t test finds a gap four times in five; None beyond a thousand.

    Args:
        gap: Mean difference between two cells.
        spread: Standard deviation of that difference between seeds.
    """
    if gap == 0:
        return None
    # Power knows the deviation of one cell; that of a difference of two independent ones is sqrt(2) times as large.
    return seeds_for(abs(gap), spread / math.sqrt(2)) if spread > 0 else 2
