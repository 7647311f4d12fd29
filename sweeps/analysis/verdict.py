"""Whether there is a winner, and what it would take to know."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sweeps.analysis.cell_means import standings_of
from sweeps.analysis.differences import Comparison, Difference
from sweeps.analysis.intervals import ALPHA
from sweeps.analysis.observations import Observations
from sweeps.power import seeds_for


@dataclass(frozen=True)
class Verdict:
    """The leader, and the other cell that decides whether it is a winner.

    `leader` ranks first by its standing. `rival` is the highest-ranked cell that the leader is not told from, or told
    by the samples' noise only; the runner-up where there is none. `lead` is leader minus
    rival, paired by seed; None where they share no seed. `ahead` says that it is in the leader's favour, which it need
    not be where one of them lacks seeds. `separable` says that the leader is better than every other
    cell, each with an interval of 95 % that leaves out 0. That needs no correction: it claims all of them at once
    (intersection-union: Berger, 1982, Technometrics 24).
    `seeds_needed` is how many seeds in all would tell leader and rival apart four times in five if the lead and its
    spread between seeds are what they seem; None where the spread is unknown, the rival is ahead in the seeds they
    share, or more than a thousand would be needed.
    """

    leader: str
    rival: str | None
    lead: Difference | None
    separable: bool
    seeds_needed: int | None = None
    ahead: bool = True


def verdict(observed: Observations) -> Verdict | None:
    """Judge the cells at full length; None without one."""
    if not len(observed.cells):
        return None
    first, *others = np.argsort(observed.sign * standings_of(observed), kind="stable").tolist()
    leader = observed.cells[first].name
    if not others:
        return Verdict(leader, None, None, False)
    compared, sign = Comparison(observed), observed.sign
    leads = [compared.difference(first, other) for other in others]
    told = [lead is not None and _told(lead, sign) for lead in leads]
    surely = [lead is not None and lead.repeated for lead in leads]
    place = next((i for known in (told, surely) for i, one in enumerate(known) if not one), 0)
    lead, rival = leads[place], observed.cells[others[place]].name
    if lead is None:
        return Verdict(leader, rival, None, False)
    ahead, needed = sign * lead.estimate <= 0, None
    if ahead and not told[place] and lead.repeated:
        needed = seeds_needed(lead.estimate, lead.se * math.sqrt(lead.seeds))
    return Verdict(leader, rival, lead, all(told), needed, ahead)


def _told(lead: Difference, sign: float) -> bool:
    return lead.basis != "none" and lead.p < ALPHA and sign * lead.estimate < 0


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
