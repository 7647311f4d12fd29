"""Which checkpoints of a history stay: a policy over what is known of sweeps, that touches no file.

A record of what was measured is never dropped. The files of a state stay where somebody would train again without
them: the newest of every unfinished trial, those where trials part, and the best finals of every sweep.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from sweeps.metrics import Direction

RUNNING = "a running sweep may need it"
NEWEST = "newest of an unfinished trial"
FORK = "trials part here"
BEST = "among its sweep's best finals, or the baseline's"
PASSED = "passed: its trials went on"
LOST = "its trial was pruned"
BEATEN = "final, not among the best"


@dataclass(frozen=True)
class TrialView:
    """A trial's standing and the states it passes, in order. `score` is its final metric, if it got there."""

    trial_id: str
    state: str
    states: tuple[str, ...]
    score: float | None = None
    is_baseline: bool = False

    @property
    def unfinished(self) -> bool:
        """Tell whether it may train on; one that failed is tried again."""
        return self.state not in ("complete", "pruned")


@dataclass(frozen=True)
class SweepView:
    """A sweep, its trials, and whether somebody runs it now."""

    name: str
    mode: Direction
    trials: tuple[TrialView, ...]
    running: bool = False


def needed(sweeps: Sequence[SweepView], held: Collection[str], keep_best: int) -> dict[str, str]:
    """Say which states keep their files, and why.

    Args:
        held: The states whose files are there.
        keep_best: How many finals of a sweep stay.
    """
    found = dict.fromkeys(_forks(sweeps), FORK)
    for sweep in sweeps:
        found |= dict.fromkeys(_best(sweep, keep_best), BEST)
        for trial in sweep.trials:
            there = [state for state in trial.states if state in held]
            if trial.unfinished and there:
                found[there[-1]] = NEWEST
    found |= {state: RUNNING for sweep in sweeps if sweep.running for t in sweep.trials for state in t.states}
    return {state: why for state, why in found.items() if state in held}


def dispensable(sweeps: Iterable[SweepView]) -> dict[str, tuple[str, str]]:
    """Say for every state that a sweep names which sweep that is, and why its files may go if nothing keeps them."""
    found: dict[str, tuple[str, str]] = {}
    for sweep in sweeps:
        for trial in sweep.trials:
            for state in trial.states:
                why = BEATEN if state == trial.states[-1] else LOST if trial.state == "pruned" else PASSED
                found.setdefault(state, (sweep.name, why))
    return found


def _forks(sweeps: Iterable[SweepView]) -> set[str]:
    following: dict[str, set[str]] = defaultdict(set)
    for sweep in sweeps:
        for trial in sweep.trials:
            for here, after in zip(trial.states, trial.states[1:], strict=False):
                following[here].add(after)
    return {state for state, after in following.items() if len(after) > 1}


def _best(sweep: SweepView, keep_best: int) -> list[str]:
    """List the finals that stay; equal scores in the order of their names, so that it is always the same."""
    ended = [trial for trial in sweep.trials if trial.score is not None and trial.states]
    sign = 1 if sweep.mode == "min" else -1
    ranked = sorted(ended, key=lambda trial: (sign * (trial.score or 0.0), trial.trial_id))
    kept = [*ranked[:keep_best], *(trial for trial in ended if trial.is_baseline)]
    return [trial.states[-1] for trial in kept]
