"""Build the scheduler that a sweep names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sweeps.ray_schedulers import RAY
from sweeps.results import SweepInfo
from sweeps.scheduler import Queue, RunAll, Segments, Terms, Verdicts
from sweeps.stopping.cohorts import CohortHalving
from sweeps.stopping.spec import SchedulerSpec

if TYPE_CHECKING:
    from sweeps.plan import Plan

KINDS: dict[str, type[RunAll]] = {"none": RunAll, "halving": CohortHalving, **RAY}


def make_scheduler(
    plan: Plan, info: SweepInfo, queue: Queue, verdicts: Verdicts, segments: Segments | None = None
) -> RunAll:
    """Build the scheduler that a sweep names; its trials come by `join`."""
    return build_scheduler(plan.spec.scheduler, info, queue, verdicts, segments)


def build_scheduler(
    spec: SchedulerSpec, info: SweepInfo, queue: Queue, verdicts: Verdicts, segments: Segments | None = None
) -> RunAll:
    """Build a scheduler from its section of a sweep."""
    return KINDS[spec.use](Terms(spec, info, queue, verdicts, segments))
