"""The `scheduler` section of a sweep: who is compared when, and what else ends a trial early."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, PositiveInt

from prx.errors import Problem
from prx.strict import PositiveFloat, Strict
from prx.yamlsource import Source
from sweeps.fields import choice
from sweeps.metrics import QUALITY

RULES = ("halving", "asha", "hyperband", "median", "none")
RAY_RULES = ("asha", "hyperband", "median")
UNITS = ("steps", "images", "device_seconds")
MOST_RUNGS = 64
"""Where the length of a run in the rungs' unit is not known before it ends, so many rungs are enough."""


class TargetSpec(Strict):
    """A trial is complete as soon as the metric is good enough.

    Args:
        value: What the metric has to reach, or do better than.
    """

    value: float


class PlateauSpec(Strict):
    """A trial is complete once it stops getting better.

    Args:
        evaluations: Evaluations in a row without a gain beyond noise.
        errors: Standard errors that count as noise.
    """

    evaluations: Annotated[int, Field(ge=2)] = 4
    errors: PositiveFloat = 1.0


class WorseThanBaselineSpec(Strict):
    """A trial is pruned at an evaluation where it is behind the baseline of its own seed.

    Args:
        errors: Standard errors of the difference that it has to be behind by.
        from_step: First step at which to look; every evaluation unless told.
    """

    errors: PositiveFloat = 3.0
    from_step: PositiveInt | None = None


class StopSpec(Strict):
    """What ends a trial whatever the others do. Works with every scheduler, and without one.

    Args:
        target: The metric is good enough.
        plateau: It stopped getting better.
        worse_than_baseline: It is behind the baseline.
    """

    target: TargetSpec | None = None
    plateau: PlateauSpec | None = None
    worse_than_baseline: WorseThanBaselineSpec | None = None

    def __bool__(self) -> bool:
        """Say whether anything is asked for."""
        return any((self.target, self.plateau, self.worse_than_baseline))


class SchedulerSpec(Strict):
    """How losers are stopped early. With `none` nobody is compared, and only `stop` and `metric` act.

    A rung is reached at the first evaluation at or beyond it. As long as noise alone keeps a cell, the cohort is
    compared again after every further stretch as long as that to the first rung.

    Args:
        use: The rule: ours that compares whole cohorts, one of Ray's, or nobody is stopped.
        metric: What cells are compared by.
        unit: What rungs count.
        grace: The first rung, in that unit; the first evaluation unless told.
        grace_steps: The first rung in steps.
        reduction_factor: About one cell in so many goes on; each later rung is so many times as far.
        noise_aware: Whether a cell stays whose difference to the worst survivor is within the metric's noise.
        noise_errors: Standard errors of the difference that count as noise.
        rungs_within_schedules: Whether a cell is compared before the last scheduled change of its techniques
            (`stop_step` of a loss, `dense_from` of the routing).
        stop: What ends a trial whatever the others do.
    """

    use: Annotated[str, choice(RULES)] = "none"
    metric: Annotated[str, choice(QUALITY)] = "cmmd"
    unit: Annotated[str, choice(UNITS)] = "steps"
    grace: PositiveFloat | None = None
    grace_steps: PositiveInt | None = None
    reduction_factor: Annotated[int, Field(ge=2)] = 4
    noise_aware: bool = True
    noise_errors: PositiveFloat = 1.0
    rungs_within_schedules: bool = False
    stop: StopSpec = StopSpec()

    @property
    def decides(self) -> bool:
        """Say whether the metric ends any trial early."""
        return self.use != "none" or bool(self.stop)

    def first_rung(self, every: int) -> float:
        """Give the first rung in its unit; `every` is the interval of evaluations in steps."""
        return self.grace or self.grace_steps or every

    def rungs(self, every: int, end: float | None) -> tuple[float, ...]:
        """Give all rungs before `end`, or enough where the end is not known (None)."""
        found, rung = list[float](), self.first_rung(every)
        while (end is None or rung < end) and len(found) < MOST_RUNGS:
            found.append(rung)
            rung *= self.reduction_factor
        return tuple(found)

    def rechecks(self, every: int, end: float | None) -> tuple[float, ...]:
        """Give the amounts at which ties are compared again: every further first-rung's worth of training."""
        first = self.first_rung(every)
        count = MOST_RUNGS if end is None else math.ceil(end / first) - 1
        return tuple(first * (index + 1) for index in range(count)) if self.noise_aware else ()


def problems(spec: SchedulerSpec, steps: int, every: int, source: Source) -> Iterator[Problem]:
    """Rungs are evaluations, the first one leaves something to save, and no key waits for nothing."""
    yield from _grace(spec, steps, every, source)
    yield from _unit(spec, source)
    stop = spec.stop
    if stop.worse_than_baseline is not None:
        start = stop.worse_than_baseline.from_step
        keys = ("scheduler", "stop", "worse_than_baseline")
        if spec.unit != "steps":
            message = f"needs scheduler.unit steps (else trials may wait for each other for ever), got {spec.unit}"
            yield source.problem(keys, message)
        if start is not None and start >= steps:
            yield source.problem((*keys, "from_step"), f"must be less than trial.steps ({steps}), got {start}")
    if stop.plateau is not None and stop.plateau.evaluations >= steps // every:
        message = f"must be less than the number of evaluations ({steps // every}), got {stop.plateau.evaluations}"
        yield source.problem(("scheduler", "stop", "plateau", "evaluations"), message)


def _grace(spec: SchedulerSpec, steps: int, every: int, source: Source) -> Iterator[Problem]:
    if spec.use == "none":
        return
    if spec.grace is not None and spec.grace_steps is not None:
        yield source.problem(("scheduler", "grace"), "and grace_steps say the same; remove one of them")
        return
    grace = spec.grace if spec.grace is not None else spec.grace_steps
    key = "grace" if spec.grace is not None else "grace_steps"
    if spec.unit != "steps":
        return
    if grace is None and every >= steps:
        message = f"must be less than trial.steps ({steps}) for scheduler.use {spec.use}, got {every}"
        yield source.problem(("trial", "eval_every"), message)
    if grace is not None and grace % every:
        yield source.problem(("scheduler", key), f"must be a multiple of trial.eval_every ({every}), got {grace:g}")
    if grace is not None and grace >= steps:
        yield source.problem(("scheduler", key), f"must be less than trial.steps ({steps}), got {grace:g}")


def _unit(spec: SchedulerSpec, source: Source) -> Iterator[Problem]:
    if spec.unit == "steps" or spec.use == "none":
        return
    if spec.use in RAY_RULES:
        yield source.problem(("scheduler", "unit"), f"must be steps for scheduler.use {spec.use}, got {spec.unit}")
    if spec.grace_steps is not None:
        message = f"counts steps, but scheduler.unit is {spec.unit}; write grace, in {spec.unit}"
        yield source.problem(("scheduler", "grace_steps"), message)
    elif spec.grace is None:
        yield source.problem(("scheduler", "grace"), f"is required with scheduler.unit {spec.unit}: the first rung")
