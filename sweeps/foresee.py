"""Put together what a plan costs and what it can tell, from whatever is known of its pace and its noise."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console, Group, RenderableType

from prx.errors import UserError
from prx.yamlsource import locate
from sweeps.estimate import Pace, at_once, calibrate, declared, estimate, from_records
from sweeps.plan import Plan
from sweeps.power import measured
from sweeps.records import recorded, seconds_a_step, values_by_seed
from sweeps.results import SweepFolder
from sweeps.session import sweep_info
from sweeps.show_cost import render_cost, render_power
from sweeps.show_plan import least_steps
from sweeps.trial import Parts


def foresee(
    plan: Plan,
    store: Path,
    calibrates: bool = False,
    step_seconds: float | None = None,
    max_concurrent: int | None = None,
    parts: Parts | None = None,
) -> RenderableType:
    """Show costs and power.

    Args:
        store: Where sweeps of the same cells may have been run.
        calibrates: Whether to time the baseline now.
        step_seconds: Overrules what the sweep declares.

    Raises:
        UserError: The baseline cannot be trained.
    """
    records = recorded(plan, store)
    metric = sweep_info(plan).metric
    trial = plan.spec.trial
    given, pace = step_seconds or trial.step_seconds, None  # type: float | None, Pace | None
    if calibrates:
        pace = _calibrated(plan, store, parts)
    elif given is not None:
        pace = declared(given, trial.eval_seconds or 0.0)
    else:
        pace = from_records(seconds_a_step(records), len(plan.cells))
    least = least_steps(plan) if plan.spec.rungs() and plan.spec.scheduler.use == "halving" else None
    found = estimate(plan, pace, at_once(plan, max_concurrent), least) if pace else None
    noise = measured(values_by_seed(records, metric, trial.steps))
    return Group(render_cost(plan, found), render_power(plan, metric, noise))


def _calibrated(plan: Plan, store: Path, parts: Parts | None) -> Pace:
    console = Console(stderr=True, highlight=False)
    with console.status("calibrating on the baseline") as status:
        try:
            return calibrate(
                plan,
                SweepFolder(store, plan.spec.name).cache,
                lambda what, done, total: status.update(f"{what}: {done:,} of {total:,}"),
                parts,
            )
        except UserError as error:
            raise locate(plan.settings, error) from error
