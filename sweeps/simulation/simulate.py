"""Run curves through a scheduler, and say what it saved and whom it lost."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

from sweeps.early_stopping import build_scheduler
from sweeps.simulation.curves import Curve, CurveSet
from sweeps.simulation.tune import SimulatedTrial, SimulatedTune
from sweeps.stopping.paired import Score, difference
from sweeps.stopping.spec import SchedulerSpec

logging.getLogger("ray.tune.schedulers.hyperband").setLevel(logging.WARNING)  # a line for every small bracket

SEPARABLE = 1.645
"""Standard errors from which on a cell is worse than the best one: one-sided, at 5 %."""


@dataclass(frozen=True)
class Arrival:
    """What decides who reports when: workers, how differently fast cells are, and a seed for the rest.

    `shuffled` trials are handed out in random order, else as planned.
    """

    workers: int
    speed_spread: float = 0.4
    seed: int = 0
    shuffled: bool = True


@dataclass(frozen=True)
class TrialOutcome:
    """How one trial ended: steps trained, state, reason."""

    steps: int
    state: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What a scheduler made of the curves.

    Args:
        survivors: Cells of which some trial has what it was trained for, sorted.
        seconds: How long the sweep took, in the unit of the speeds.
    """

    trials: Mapping[str, TrialOutcome]
    survivors: tuple[str, ...]
    steps: int
    steps_in_full: int
    seconds: float

    @property
    def saved(self) -> float:
        """Share of the steps that nobody trained."""
        return 1 - self.steps / self.steps_in_full


def simulate(curves: CurveSet, spec: SchedulerSpec, arrival: Arrival) -> Outcome:
    """Run curves through the scheduler that a section of a sweep names, on a simulated Tune.

    Raises:
        RuntimeError: The scheduler left trials waiting for ever.
    """
    rng = random.Random(arrival.seed)
    order = list(range(len(curves.curves)))
    if arrival.shuffled:
        rng.shuffle(order)
    cells = sorted({curve.info.name for curve in curves.curves})
    speeds = {name: rng.lognormvariate(0.0, arrival.speed_spread) for name in cells}

    def speed(curve: Curve) -> float:
        return speeds[curve.info.name] * curve.step_seconds

    tune = SimulatedTune(curves, arrival.workers, order, speed, rng)
    scheduler = build_scheduler(spec, curves.info, tune, tune.verdicts)
    scheduler.join(curves.info.trials)
    tune.run(scheduler)
    ended = {trial.trial_id: _ended(trial, tune, curves.info.steps) for trial in tune.all_trials}
    names = {curve.info.trial_id: curve.info.name for curve in curves.curves}
    alive = sorted({names[trial_id] for trial_id, end in ended.items() if end.state == "complete"})
    steps = sum(end.steps for end in ended.values())
    return Outcome(ended, tuple(alive), steps, sum(map(_full, curves.curves)), tune.seconds)


def _full(curve: Curve) -> int:
    """Give the steps a trial trains when nobody stops it."""
    return max(curve.values, default=0)


def _ended(trial: SimulatedTrial, tune: SimulatedTune, steps: int) -> TrialOutcome:
    if trial.step == steps:
        return TrialOutcome(steps, "complete", "")
    if trial.trial_id in tune.verdicts.ended:
        return TrialOutcome(trial.step, *tune.verdicts.ended[trial.trial_id])
    return TrialOutcome(trial.step, "failed", "the recorded trial failed here")


class Truth:
    """What the whole sweep says: the final value of every cell, and which one is best.

    Args:
        judged: The curves of which the best cell is to be kept.
        everything: The curves that tell cells apart, of more seeds where there are any.
    """

    def __init__(self, judged: CurveSet, everything: CurveSet | None = None) -> None:
        self._scores = _finals(everything or judged)
        finals = _finals(judged)
        self.means = {name: _mean(found) for name, found in finals.items()}
        self.best = min(self.means, key=lambda name: (self.means[name], name))

    def as_good(self) -> tuple[str, ...]:
        """Name the best cell and those that cannot be told from it, over the seeds that both have."""
        best = self._scores[self.best]
        found = []
        for name, scores in self._scores.items():
            gap = difference(scores, best)
            if gap is None or gap.mean <= gap.noise(SEPARABLE):
                found.append(name)
        return tuple(sorted(found))

    def kept_best(self, outcome: Outcome) -> bool:
        """Say whether the best cell was trained to its end."""
        return self.best in outcome.survivors

    def kept_as_good(self, outcome: Outcome) -> bool:
        """Say whether the cell that wins among the survivors cannot be told from the best one."""
        winner = self.winner(outcome)
        return winner is not None and winner in self.as_good()

    def winner(self, outcome: Outcome) -> str | None:
        """Name the best of the cells that were kept."""
        kept = [name for name in outcome.survivors if name in self.means]
        return min(kept, key=lambda name: (self.means[name], name)) if kept else None

    def regret(self, outcome: Outcome) -> float:
        """Give how much worse the best that was kept is at its end than the best there is."""
        winner = self.winner(outcome)
        return math.inf if winner is None else self.means[winner] - self.means[self.best]


def _finals(curves: CurveSet) -> dict[str, dict[int, Score]]:
    sign = 1.0 if curves.info.mode == "min" else -1.0
    found: dict[str, dict[int, Score]] = {}
    for curve in curves.curves:
        if curves.info.steps in curve.values:
            value, se = curve.values[curves.info.steps]
            found.setdefault(curve.info.name, {})[curve.info.seed] = Score(sign * value, se)
    return found


def _mean(scores: Mapping[int, Score]) -> float:
    return math.fsum(score.value for score in scores.values()) / len(scores)
