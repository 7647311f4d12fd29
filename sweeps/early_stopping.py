"""Build the scheduler that a sweep names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sweeps.halving import Cohort
from sweeps.ray_schedulers import RayAsha
from sweeps.results import SweepInfo, TrialInfo
from sweeps.scheduler import CohortHalving, RunAll, Segments, Verdicts
from sweeps.submission import TrialQueue

if TYPE_CHECKING:
    from sweeps.plan import Plan


def make_scheduler(
    plan: Plan, info: SweepInfo, queue: TrialQueue, verdicts: Verdicts, segments: Segments | None = None
) -> RunAll:
    """Build the scheduler that a sweep names."""
    spec, rungs = plan.spec.scheduler, plan.spec.rungs()
    if spec.use == "none" or not rungs:
        return RunAll(queue, verdicts, segments)
    if spec.use == "asha":
        options = {"grace_period": rungs[0], "reduction_factor": spec.reduction_factor, "max_t": info.steps}
        return RayAsha(queue, verdicts, info.metric, info.mode, segments, **options)

    def make_cohort(trials: Sequence[TrialInfo], judged: bool) -> Cohort:
        units: dict[str, list[int]] = {}
        for trial in trials:
            units.setdefault(trial.name, []).append(trial.seed)
        return Cohort(
            units,
            rungs if judged else (),
            factor=spec.reduction_factor,
            metric=info.metric,
            mode=info.mode,
            protected={trial.name for trial in trials if trial.is_baseline},
            noise_aware=spec.noise_aware,
        )

    return CohortHalving(queue, make_cohort, verdicts, info.metric, segments)
