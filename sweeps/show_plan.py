"""A plan for people: what is trained, how each cell differs from the baseline, what is left out and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sweeps.budget import BudgetSpec
from sweeps.confounds import Confound, confounds
from sweeps.plan import SEPARATOR, Cell, Dropped, Plan
from sweeps.seeds import AdaptiveSeeds
from sweeps.show_design import render_design
from sweeps.tree import render_tree, stage_tree

LIMIT = 60


def render_plan(plan: Plan, limit: int = LIMIT) -> RenderableType:
    """Lay a plan out; of cells and of left-out combinations at most `limit` each are shown."""
    parts: list[RenderableType] = [_summary(plan), *render_design(plan, limit), _cells(plan.cells, limit)]
    if plan.search is not None:
        from sweeps.search.show import render_search  # imports optuna

        parts.append(render_search(plan, plan.search))
    parts += [*_too_early(plan), *(_confound(found) for found in confounds(plan)[:limit])]
    shared = render_tree(stage_tree(plan))
    if shared is not None:
        parts.append(shared)
    if plan.dropped:
        parts.append(_dropped(plan.dropped, limit))
    return Group(*parts)


def least_steps(plan: Plan) -> int:
    """Count the steps of all trials when every rung stops all it can: ties and the baseline may add to it."""
    alive, before, steps = len(plan.cells), 0, 0
    for rung in (*plan.spec.rungs(), plan.spec.trial.steps):
        steps += alive * (rung - before)
        alive, before = math.ceil(alive / plan.spec.scheduler.reduction_factor), rung
    return steps * len(plan.spec.first_seeds)


def _summary(plan: Plan) -> Text:
    spec, seeds = plan.spec, len(plan.spec.first_seeds)
    trials = f"{_count(len(plan.cells), 'cell')} × {_count(seeds, 'seed')} = {_count(len(plan.trials), 'trial')}"
    lines = [
        f"{spec.design.use} over {', '.join(spec.axes)}; base {spec.base}",
        f"{trials} of {spec.trial.steps:,} steps, {plan.total_steps:,} steps in all",
        _early(plan),
    ]
    if isinstance(spec.seeds, AdaptiveSeeds):
        lines.append(_more_seeds(spec.seeds))
    if spec.budget:
        lines.append(_budget(spec.budget))
    text = Text(spec.name, style="bold")
    return text.append("\n" + "\n".join(lines), style="not bold")


def _more_seeds(seeds: AdaptiveSeeds) -> str:
    most = (seeds.up_to - seeds.start) * (seeds.add_to_top + 1)
    return (
        f"then one seed more at a time, up to {seeds.up_to}, for the baseline and those of the {seeds.add_to_top} best "
        f"cells that are not told apart from the leader: at most {_count(most, 'trial')} more"
    )


def _early(plan: Plan) -> str:
    scheduler, rungs = plan.spec.scheduler, plan.spec.rungs()
    evaluations = f"evaluated every {plan.spec.trial.eval_every:,} steps"
    stops = [name.replace("_", " ") for name, value in scheduler.stop if value is not None]
    ends = f"; trials also end by: {', '.join(stops)}" if stops else ""
    if scheduler.use == "none":
        return f"{evaluations}; no early stopping{ends}"
    at = ", ".join(f"{rung:,}" for rung in rungs)
    if not rungs:
        clock = scheduler.unit.replace("_", "-")
        at = f"{scheduler.grace:g} {clock} and every {scheduler.reduction_factor}-fold of it"
    share = f"about 1 in {scheduler.reduction_factor} goes on"
    least = f" (at least {least_steps(plan):,} steps in all)" if scheduler.use == "halving" and rungs else ""
    return f"{evaluations}; {scheduler.use} on {scheduler.metric} at {at}: {share}{least}{ends}"


def _too_early(plan: Plan) -> list[Text]:
    """Warn of rungs at which the learning rate still rises: ranks there were found to say the opposite of the end's."""
    warmup = max((cell.config.warmup_steps for cell in plan.cells), default=0)
    within = [f"{rung:,}" for rung in plan.spec.rungs() if rung <= warmup]
    if not within:
        return []
    text = f"note: {_list('rung', within)} within the warm-up of the learning rate ({warmup:,} steps), where cells "
    text += "that learn fast later may rank last; scheduler.grace_steps moves the first rung"
    return [Text(text, style="yellow")]


def _list(what: str, items: Sequence[str]) -> str:
    return f"{what} {items[0]} lies" if len(items) == 1 else f"{what}s {' and '.join(items)} lie"


def _cells(cells: Sequence[Cell], limit: int) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("cell")
    table.add_column("differs from the baseline in", overflow="fold")
    for cell in cells[:limit]:
        changes = _baseline(cells) if cell.is_baseline else [_change(p, *v) for p, v in cell.difference.items()]
        table.add_row(Text(cell.name, style="bold" if cell.is_baseline else ""), Text("; ").join(changes))
    _rest(table, len(cells) - limit, "cells")
    return table


def _confound(found: Confound) -> Text:
    """Say what a level changes beside what it is about."""
    head, parts = f"note: {found.level!r} of axes.{found.axis} ", " and ".join(found.parts)
    text = Text(head, style="yellow")
    if len(found.parts) > 1:
        text.append(f"changes {parts} together, so that its effect is that of both" if len(found.parts) == 2 else
                    f"changes {parts} together, so that its effect is that of all")  # fmt: skip
    if found.beside:
        shown = Text("; ").join(_change(path, *values) for path, values in found.beside.items())
        text.append("; it also changes " if len(found.parts) > 1 else "also changes ").append(shown)
        text.append(" (drawn or measured in another way than the baseline)" if found.measured else f" beside {parts}")
    return text


def _baseline(cells: Sequence[Cell]) -> list[Text]:
    """Write what the baseline has where others differ; parts that only others have go without saying."""
    values = {path: before for cell in cells for path, (before, _) in cell.difference.items()}
    shown = [_setting(path, value) for path, value in values.items() if value is not None]
    return shown or [Text("none", style="dim")]


def _dropped(dropped: Sequence[Dropped], limit: int) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(f"left out ({len(dropped):,})", style="dim")
    table.add_column("because", overflow="fold")
    for item in dropped[:limit]:
        table.add_row(Text(SEPARATOR.join(item.levels.values())), Text("\n".join(item.reasons)))
    _rest(table, len(dropped) - limit, "combinations")
    return table


def _rest(table: Table, number: int, what: str) -> None:
    if number > 0:
        table.add_row(Text(f"and {number:,} more {what}", style="dim"), "")


def _change(path: str, before: Any, after: Any) -> Text:
    """Write one difference by its new value; a part that is added comes with its settings."""
    if after is None and isinstance(before, dict):
        return Text(f"-{path}", style="red")
    added = before is None and isinstance(after, dict)
    return Text("+", style="green").append(_setting(path, after)) if added else _setting(path, after)


def _setting(path: str, value: Any) -> Text:
    name = Text(path, style="cyan")
    if not isinstance(value, dict):
        return Text.assemble(name, " ", _short(value))
    inner = {key: item for key, item in value.items() if item is not None}
    if inner.get("use") == path.split(".")[-1]:
        del inner["use"]
    return Text.assemble(name, " ", ", ".join(f"{key} {_short(item)}" for key, item in inner.items()))


def _short(value: Any) -> str:
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _budget(budget: BudgetSpec) -> str:
    limits = ", ".join(f"{value:g} {name.replace('_', '-')}" for name, value in budget.limits().items())
    price = budget.price_per_device_hour
    parts = [f"budget {limits}"] if limits else []
    return "; ".join(parts + ([f"{price:g} a device-hour"] if price else []))
