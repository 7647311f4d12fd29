"""What may be concluded about the best cell, in one sentence: the terminal and the report say the same."""

from __future__ import annotations

from sweeps.analysis.verdict import Verdict
from sweeps.leaderboard import figure


def conclusion(found: Verdict | None, shown: str, steps: int, *, ended: bool) -> str:
    """Name a winner only where several seeds show one, else say what would tell.

    Args:
        found: The two best cells at full length.
        shown: The deciding metric, as people write it.
        steps: The full length.
        ended: No trial is on its way any more.
    """
    if found is None:
        return f"No cell has reached step {steps}{'.' if ended else ' yet.'}"
    if found.runner_up is None or found.lead is None:
        rest = "the others ended before, as the table says" if ended else "there is nothing to compare it with yet"
        return f"{found.leader} alone has reached step {steps}; {rest}."
    gap, lead = figure(abs(found.lead.estimate), 2), found.lead
    ahead = f"{found.leader} leads {found.runner_up} by {gap} {shown}"
    if found.separable and lead.basis == "seeds":
        noise = f"beyond the noise between {lead.seeds} seeds"
        return f"{found.leader} wins: {gap} {shown} ahead of {found.runner_up}, {noise}."
    if found.separable:
        return f"{ahead}, more than the samples' noise; one seed cannot say whether training again would give the same."
    if lead.basis == "none":
        return f"{ahead}; without standard errors that may be chance."
    return f"No winner: {ahead}, within the noise. {_needed(found)}"


def _needed(found: Verdict) -> str:
    if found.seeds_needed is not None:
        return f"If lead and noise are what they seem, {found.seeds_needed} seeds in all would tell (power 80 %)."
    if found.lead is not None and found.lead.basis == "seeds":
        return "More than a thousand seeds would be needed to tell: call them equal."
    return "With one seed nobody knows how many more would tell: run at least three."
