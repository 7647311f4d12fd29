"""`prx-sweep simulate`: what every scheduler would make of a sweep, in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from prx.errors import UserError
from sweeps.simulation.curves import CurveSet
from sweeps.simulation.study import arrivals_of, paced, planned_curves, read_curves, render, study, variants
from sweeps.stopping.spec import RULES, SchedulerSpec


@dataclass(frozen=True)
class Request:
    """What is asked for; None is what the sweep says, or else the default."""

    file: Path
    results: Path | None
    metric: str | None
    workers: int
    arrivals: int
    seed: int
    factor: int | None
    grace_steps: int | None


def run(request: Request, console: Console) -> None:
    """Print a table over the schedulers.

    Raises:
        UserError: A file cannot be used.
    """
    curves, spec, source = _read(request)
    uses = RULES if spec.unit == "steps" else ("halving", "none")
    arrivals = arrivals_of(request.arrivals, request.workers)
    studies = [study(curves, one, arrivals, source) for one in variants(spec, uses)]
    console.print(render(studies))
    info, count = curves.info, len(curves.curves)
    console.print(
        f"{count} trials of {info.steps} steps, {info.metric} every {info.eval_every}; median (least to most) of "
        f"{request.arrivals} arrivals on {request.workers} workers."
    )
    if source == "synthetic":
        console.print("The curves are drawn from a model: they tell of schedulers, not of techniques.")


def _read(request: Request) -> tuple[CurveSet, SchedulerSpec, str]:
    changes: dict[str, object] = {}
    if request.factor is not None:
        changes["reduction_factor"] = request.factor
    if request.grace_steps is not None:
        changes["grace_steps"] = request.grace_steps
    if request.file.suffix == ".parquet":
        if request.results is not None:
            raise UserError(f"--results: {request.file} is a table of results itself; give one of them")
        curves = read_curves(request.file, request.metric or "cmmd")
        spec = SchedulerSpec().model_copy(update=changes)
        _check(spec, curves)
        return curves, spec, "recorded"
    return _of_sweep(request, changes)


def _of_sweep(request: Request, changes: dict[str, object]) -> tuple[CurveSet, SchedulerSpec, str]:
    from sweeps.plan import make_plan
    from sweeps.spec import load_spec

    plan = make_plan(*load_spec(request.file))
    spec = plan.spec.scheduler.model_copy(update=changes)
    if request.results is None:
        curves = planned_curves(plan, request.seed)
    else:
        curves = paced(read_curves(request.results, request.metric or sweep_metric(spec, plan.spec.objectives)), plan)
    _check(spec, curves)
    return curves, spec, "synthetic" if request.results is None else "recorded"


def sweep_metric(spec: SchedulerSpec, objectives: Mapping[str, str]) -> str:
    """Give the metric that decides in a sweep."""
    return spec.metric if spec.decides else next(iter(objectives))


def _check(spec: SchedulerSpec, curves: CurveSet) -> None:
    info = curves.info
    if spec.unit == "steps" and not spec.rungs(info.eval_every, info.steps):
        raise UserError(f"--grace-steps: must be less than {info.steps}, a trial's steps, got {spec.grace_steps}")
    if spec.unit == "steps" and spec.first_rung(info.eval_every) % info.eval_every:
        raise UserError(f"--grace-steps: must be a multiple of {info.eval_every}, got {spec.grace_steps}")
