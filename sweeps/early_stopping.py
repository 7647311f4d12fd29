"""Build the scheduler that a sweep names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sweeps.ray_schedulers import RAY
from sweeps.results import SweepInfo
from sweeps.scheduler import Queue, RunAll, Segments, Verdicts
from sweeps.stopping.cohorts import CohortHalving
from sweeps.stopping.spec import SchedulerSpec
from sweeps.stopping.stoppers import Stoppers

if TYPE_CHECKING:
    from sweeps.plan import Plan


def make_scheduler(
    plan: Plan, info: SweepInfo, queue: Queue, verdicts: Verdicts, segments: Segments | None = None
) -> RunAll:
    """Build the scheduler that a sweep names; its trials come by `join`."""
    return build_scheduler(plan.spec.scheduler, info, queue, verdicts, segments)


def build_scheduler(
    spec: SchedulerSpec, info: SweepInfo, queue: Queue, verdicts: Verdicts, segments: Segments | None = None
) -> RunAll:
    """Build a scheduler from its section of a sweep."""
    stoppers = Stoppers(spec.stop, info.metric, info.mode)
    if spec.use == "none":
        return RunAll(queue, verdicts, info.metric, stoppers, segments)
    kind = CohortHalving if spec.use == "halving" else RAY[spec.use]
    return kind(queue, verdicts, spec, info, stoppers, segments)
