"""What may be concluded about the best cell, in one sentence: the terminal and the report say the same."""

from __future__ import annotations

from sweeps.analysis.differences import Difference
from sweeps.analysis.verdict import Verdict
from sweeps.leaderboard import figure


def conclusion(found: Verdict | None, shown: str, steps: int, *, ended: bool) -> str:
    """Name a winner only where several seeds show one, else say what would tell.

    Args:
        found: The leader of the cells at full length, and its closest rival.
        shown: The deciding metric, as people write it.
        steps: The full length.
        ended: No trial is on its way any more.
    """
    if found is None:
        return f"No cell has reached step {steps}{'.' if ended else ' yet.'}"
    if found.rival is None:
        rest = "the others ended before, as the table says" if ended else "there is nothing to compare it with yet"
        return f"{found.leader} alone has reached step {steps}; {rest}."
    if found.lead is None:
        return f"No winner: {found.leader} ranks first, but shares no seed with {found.rival}."
    gap, lead = f"{figure(abs(found.lead.estimate), 2)} {shown}", found.lead
    if not found.ahead:
        return f"No winner: {found.leader} ranks first, but in {_seeds(lead)} {found.rival} is ahead of it by {gap}."
    if found.separable and lead.repeated:
        between = f"{lead.seeds} seeds" if lead.basis == "seeds" else "seeds"
        return f"{found.leader} wins: {gap} ahead of {found.rival}, beyond the noise between {between}."
    ahead = f"{found.leader} leads {found.rival} by {gap}"
    if found.separable:
        return f"{ahead}, more than the samples' noise; one seed cannot say whether training again would give the same."
    if lead.basis == "none":
        return f"{ahead}; without standard errors that may be chance."
    return f"No winner: {ahead}, within the noise. {_needed(found)}"


def _seeds(lead: Difference) -> str:
    return "the seed they share" if lead.seeds == 1 else f"the {lead.seeds} seeds they share"


def _needed(found: Verdict) -> str:
    if found.seeds_needed is not None:
        return f"If lead and noise are what they seem, {found.seeds_needed} seeds in all would tell (power 80 %)."
    if found.lead is not None and found.lead.repeated:
        return "More than a thousand seeds would be needed to tell: call them equal."
    return "With one seed nobody knows how many more would tell: run at least three."
