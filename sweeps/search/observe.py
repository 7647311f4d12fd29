"""What the journals say of a point: its seeds averaged, with the state that Optuna has a word for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sweeps.ledger import TrialStatus
from sweeps.results import FINISHED
from sweeps.search.sampling import Result


def observe(seeds: Sequence[TrialStatus], objectives: Sequence[str]) -> Result:
    """Join the seeds of a point. A metric that is missing, or no number, makes it a failure with that reason.

    A seed that was complete before its last step, as `scheduler.stop` says, counts with its last evaluation.

    Args:
        objectives: Metrics. With two there is no curve: Optuna has no word for half-way on two scales.
    """
    curve = _curve(seeds, objectives[0]) if len(objectives) == 1 else {}
    failed = [status for status in seeds if status.state.state == "failed"]
    if failed:
        return Result("failed", curve=curve, reason=failed[0].state.reason)
    if any(status.state.state not in FINISHED for status in seeds):
        return Result("running", curve=curve)
    pruned = [status for status in seeds if status.state.state == "pruned"]
    if pruned:
        return Result("pruned", curve=curve, reason=pruned[0].state.reason)
    last = [max(status.journal.boundaries) for status in seeds]
    means = {name: _mean(seeds, name, last) for name in objectives}
    missing = [name for name, value in means.items() if value is None]
    if missing:
        return Result("failed", curve=curve, reason=f"step {max(last)}: {missing[0]} was not measured")
    return Result("complete", tuple(value for value in means.values() if value is not None), curve)


def _curve(seeds: Sequence[TrialStatus], metric: str) -> dict[int, float]:
    steps = sorted(set.intersection(*(set(status.journal.boundaries) for status in seeds)))
    values = ((step, _mean(seeds, metric, [step] * len(seeds))) for step in steps)
    return {step: value for step, value in values if value is not None}


def _mean(seeds: Sequence[TrialStatus], metric: str, steps: Sequence[int]) -> float | None:
    """Average a metric over the seeds, each at its own step."""
    entries: list[Mapping[str, float]] = [
        status.journal.boundaries[step]["metrics"] for status, step in zip(seeds, steps, strict=True)
    ]
    values = [entry.get(metric) for entry in entries]
    found = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(found) / len(found) if len(found) == len(seeds) else None
