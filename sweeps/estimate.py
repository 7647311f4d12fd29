"""What a plan costs: hours, device-hours, trials and money, from a declared, recorded or measured pace."""

from __future__ import annotations

import heapq
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median

from sweeps.budget import HOUR_S
from sweeps.plan import Plan
from sweeps.seeds import AdaptiveSeeds
from sweeps.trial import Parts, load

WARM_UP, TIMED = 3, 10
"""Steps of a calibration: the first ones load, compile and fill caches."""


@dataclass(frozen=True)
class Pace:
    """Seconds a step and an evaluation with its checkpoint; `cells` holds those on record, evaluations included.

    `source` says where the figures come from; `checkpoint_bytes` is known after a calibration.
    """

    source: str
    step_seconds: float
    eval_seconds: float = 0.0
    cells: Mapping[str, float] = field(default_factory=dict)
    checkpoint_bytes: int | None = None

    def seconds(self, cell_id: str, steps: int, evaluations: int) -> float:
        """Give how long a trial of a cell trains and is measured."""
        if cell_id in self.cells:
            return steps * self.cells[cell_id]
        return steps * self.step_seconds + evaluations * self.eval_seconds


@dataclass(frozen=True)
class Cost:
    """What a plan costs."""

    hours: float
    device_hours: float
    trials: int


@dataclass(frozen=True)
class Estimate:
    """Costs: `most` if nobody is stopped early and every seed is added, `least` if every rung stops all it can and no
    seed is added; None where both are the same."""

    pace: Pace
    at_once: int
    most: Cost
    least: Cost | None


@dataclass(frozen=True)
class Later:
    """How many trials results will choose: those that a search certainly adds, and seeds that may be added."""

    searched: int = 0
    seeds: int = 0


def later(plan: Plan) -> Later:
    """Count the trials that a plan cannot list yet."""
    searched, seeds = 0, plan.spec.seeds
    if plan.search is not None:
        searched = sum(map(plan.search.left, plan.search.studies)) * len(plan.spec.first_seeds)
    more = (seeds.up_to - seeds.start) * (seeds.add_to_top + 1) if isinstance(seeds, AdaptiveSeeds) else 0
    return Later(searched, more)


def declared(step_seconds: float, eval_seconds: float) -> Pace:
    """Take the user's word."""
    measured = f" and {eval_seconds:g} s an evaluation" if eval_seconds else ", evaluations not counted"
    return Pace(f"declared: {step_seconds:g} s a step{measured}", step_seconds, eval_seconds)


def from_records(cells: Mapping[str, float], planned: int) -> Pace | None:
    """Take what a store has recorded of the same cells; the others are taken to be like their mean."""
    if not cells:
        return None
    others = "" if len(cells) == planned else f" {len(cells)} of {planned} cells, their mean for the others;"
    mean = fmean(cells.values())
    return Pace(f"recorded in the store:{others} {mean:.3g} s a step with evaluations", mean, cells=cells)


def calibrate(plan: Plan, cache: Path, report: Callable[[str, int, int], None], parts: Parts | None = None) -> Pace:
    """Train and measure the baseline for a few steps in a temporary folder, and time it.

    Encodings go to `cache`, where a run of the sweep finds them.

    Raises:
        UserError: The data or models cannot be used.
    """
    used, config = parts or Parts(), plan.trials[0].config
    load(used.prepare)([config], cache, report)
    with tempfile.TemporaryDirectory(prefix="prx-sweep-") as scratch:
        trainer = load(used.trainer)(config, folder=Path(scratch), cache=cache)
        try:
            _advance(trainer, min(WARM_UP, config.steps - 1))
            steps = _advance(trainer, min(WARM_UP + TIMED, config.steps))
            started = time.perf_counter()
            load(used.evaluate)(config, cache)(trainer.sample())
            trainer.save()
            measured = time.perf_counter() - started
        finally:
            trainer.close()
        size = sum(path.stat().st_size for path in Path(scratch).rglob("*") if path.is_file())
    step = median(steps)
    source = f"calibrated on the baseline: {step:.3g} s a step (median of {len(steps)}), {measured:.3g} s an evaluation"
    return Pace(source, step, measured, checkpoint_bytes=size)


def _advance(trainer: object, until: int) -> list[float]:
    seconds: list[float] = []
    while trainer.step < until:  # type: ignore[attr-defined]
        seconds += trainer.advance(until).step_seconds  # type: ignore[attr-defined]
    return seconds


def at_once(plan: Plan, asked: int | None) -> int:
    """Say how many trials this machine trains at once: a GPU or its share of the cores each, or what was asked."""
    import torch

    shape = plan.trials[0].config.infrastructure
    cores = len(os.sched_getaffinity(0)) // (shape.threads or 1)
    gpus = torch.cuda.device_count() if shape.device != "cpu" else 0
    room = (gpus or cores) // shape.workers
    return min(asked or room, len(plan.trials)) if room else 1


def estimate(plan: Plan, pace: Pace, concurrent: int, least_steps: int | None = None) -> Estimate:
    """Add up what a plan costs at a pace; trials that are chosen later are taken to be like the mean of the others.

    Args:
        least_steps: Steps of the planned trials when early stopping stops all it can; None without it.
    """
    trial, ahead = plan.spec.trial, later(plan)
    evaluations = trial.steps // trial.eval_every
    planned = [pace.seconds(t.cell.cell_id, trial.steps, evaluations) for t in plan.trials]
    workers = max(t.config.infrastructure.workers for t in plan.trials)
    sure = planned + [fmean(planned)] * ahead.searched
    every = sure + [fmean(planned)] * ahead.seeds
    most = Cost(_makespan(every, concurrent) / HOUR_S, workers * sum(every) / HOUR_S, len(every))
    if least_steps is None and not ahead.seeds:
        return Estimate(pace, concurrent, most, None)
    share = 1.0 if least_steps is None else least_steps / plan.total_steps
    shortest = max(min(sure), sum(sure) * share / concurrent)
    return Estimate(pace, concurrent, most, Cost(shortest / HOUR_S, workers * sum(sure) * share / HOUR_S, len(sure)))


def _makespan(seconds: Sequence[float], workers: int) -> float:
    """Give when the last trial ends, if each in its turn takes the first free worker."""
    free = [0.0] * workers
    for one in seconds:
        heapq.heapreplace(free, free[0] + one)
    return max(free)
