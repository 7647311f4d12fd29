"""The end of a plan, for people: what it costs, and what its seeds can tell apart."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sweeps.budget import BudgetSpec
from sweeps.estimate import Cost, Estimate
from sweeps.live import bytes_text
from sweeps.plan import Plan
from sweeps.power import ASSUMED, GAP, LEVEL, MOST_SEEDS, POWER, Noise, backwards, detectable, seeds_for
from sweeps.seeds import AdaptiveSeeds

UNKNOWN = (
    "cost: not known; write trial.step_seconds into the sweep, or measure it: prx-sweep plan FILE --calibrate. "
    "What --store has recorded of the same cells is used too"
)


def render_cost(plan: Plan, found: Estimate | None) -> RenderableType:
    """Lay out hours, device-hours, trials and money, each beside its limit."""
    if found is None:
        return Text(UNKNOWN)
    budget = plan.spec.budget or BudgetSpec()
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(f"cost ({found.at_once} at once)")
    table.add_column("at most" if found.least else "", justify="right")
    if found.least:
        table.add_column("at least", justify="right")
    limits = budget.limits()
    if limits:
        table.add_column("budget", justify="right")
    for name, most, least in _rows(plan, budget, found):
        cells = [_number(most), *([_number(least)] if found.least else [])]
        limit = limits.get(name)
        shown = "" if limit is None else f"{limit:g}" + (" (less than at most)" if limit < most else "")
        table.add_row(name.replace("_", "-"), *cells, *([shown] if limits else []))
    lines: list[RenderableType] = [table, Text(f"pace {found.pace.source}")]
    if found.pace.checkpoint_bytes is not None:
        size = found.pace.checkpoint_bytes
        all_ = bytes_text(size * len(plan.trials))
        lines.append(Text(f"checkpoints: {bytes_text(size)} each, {all_} with one a trial"))
    return Group(*lines)


def _rows(plan: Plan, budget: BudgetSpec, found: Estimate) -> list[tuple[str, float, float]]:
    least: Cost = found.least or found.most
    rows = [
        ("hours", found.most.hours, least.hours),
        ("device_hours", found.most.device_hours, least.device_hours),
        ("trials", found.most.trials, least.trials),
    ]
    if budget.price_per_device_hour:
        price = budget.price_per_device_hour
        rows.append(("money", found.most.device_hours * price, least.device_hours * price))
    return rows


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def num_seeds(plan: Plan) -> int:
    """Count the seeds of a cell; where some cells get more than others, of those."""
    seeds = plan.spec.seeds
    return seeds.up_to if isinstance(seeds, AdaptiveSeeds) else len({trial.seed for trial in plan.trials})


def render_power(plan: Plan, metric: str, noise: Noise = ASSUMED) -> Text:
    """Say what the seeds of the sweep can tell apart, with and without correction for looking at many cells."""
    seeds, others = num_seeds(plan), len(plan.cells) - 1
    what, gap = f"{seeds} seed{'' if seeds == 1 else 's'}", _percent(GAP)
    wrong = f"a true gap of {gap} is ranked backwards in {_percent(backwards(GAP, noise.cov, seeds))} of such sweeps"
    one, corrected = detectable(noise.cov, seeds), detectable(noise.cov, seeds, max(1, others))
    if one is None or corrected is None:
        told = f"{what} gives no interval, so nothing can be told apart"
    else:
        many = f" ({_percent(corrected)} corrected for {others} comparisons)" if others > 1 else ""
        up_to = "up to " if isinstance(plan.spec.seeds, AdaptiveSeeds) else ""
        told = f"with {up_to}{what} a cell can be told from the baseline if {metric} differs by {_percent(one)}{many}"
    needed = seeds_for(GAP, noise.cov, max(1, others))
    takes = f"{needed:,} seeds" if needed else f"more than {MOST_SEEDS:,} seeds"
    test = f"paired t test, two-sided {_percent(LEVEL)}, power {_percent(POWER)}"
    lines = [f"power: {told}; {wrong}; telling {gap} apart takes {takes}", f"({test}; {_source(noise, metric)})"]
    return Text("\n".join(lines))


def _percent(value: float) -> str:
    return f"{100 * value:.2g} %" if value < 1 else f"{100 * value:,.0f} %"


def _source(noise: Noise, metric: str) -> str:
    cov = f"{100 * noise.cov:.2g} % coefficient of variation between seeds"
    if noise.freedom:
        return (
            f"{cov}, measured: {noise.cells} cells in the store with several seeds, {noise.freedom} degrees of freedom"
        )
    return f"{cov}, assumed: measured for FID in arXiv 2606.20536, not for {metric} here"
