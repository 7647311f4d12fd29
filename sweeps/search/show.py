"""A search in words, for `plan`: its space, what is known of it, what results will choose, what was snapped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from optuna.distributions import BaseDistribution, CategoricalDistribution
from rich.text import Text

from sweeps.search.planning import SearchPlan
from sweeps.search.space import STEP_KEYS, is_step
from sweeps.search.studies import AXIS, Study

if TYPE_CHECKING:
    from sweeps.cells import Plan


def render_search(plan: Plan, search: SearchPlan) -> Text:
    """Lay a search out in lines."""
    text = Text(f"search by {search.spec.sampler}", style="bold")
    for line in _lines(plan, search):
        text.append(f"\n{line}", style="not bold")
    return text


def _lines(plan: Plan, search: SearchPlan) -> Iterator[str]:
    steps, seeds = plan.spec.trial.steps, len(plan.spec.first_seeds)
    yield from _spaces(search)
    known, left = len(search.cells), sum(map(search.left, search.studies))
    points = f"{known + left:,} points beside the design's cells"
    yield f"{points}: {known:,} known now and planned above, {_later(search, left)}"
    if left:
        trials = len(plan.trials) + left * seeds
        yield f"{trials:,} trials, {trials * steps:,} steps in all when nobody is stopped early and nothing is known"
    if any(is_step(path) for path in search.paths()):
        every = plan.spec.trial.eval_every
        yield (
            f"{' and '.join(STEP_KEYS)} snap to evaluations (every {every:,} steps), where runs can part: "
            "points that differ only there share their training up to the earlier step"
        )
    if search.spec.sampler in ("cma_es", "nsga2") and plan.spec.rungs():
        yield f"{search.spec.sampler} learns from points that are trained to the end, not from those stopped early"


def _later(search: SearchPlan, left: int) -> str:
    if not left:
        return "none to be chosen later"
    waves = search.num_waves
    return f"{left:,} to be chosen in {waves:,} more wave{'s' if waves > 1 else ''}, each from the results before it"


def _spaces(search: SearchPlan) -> Iterator[str]:
    """Write every different space once, with the studies that have it."""
    found: dict[str, list[str]] = {}
    for study in search.studies:
        found.setdefault("; ".join(_ranges(study)), []).append(study.name)
    for space, names in found.items():
        where = "levels and settings together" if search.spec.within == "all" else f"in {', '.join(names)}"
        yield f"{where}: {space}"


def _ranges(study: Study) -> Iterator[str]:
    for axis, levels in study.axes.items():
        yield f"{AXIS}{axis} {{{', '.join(levels)}}}"
    merged = {path: found for space in study.spaces.values() for path, found in space.items()}
    for path, found in merged.items():
        having = [cell.name for cell in study.cells if path in study.spaces[cell.cell_id]]
        some = "" if len(having) == len(study.cells) else f" (in {len(having)} of {len(study.cells)} cells)"
        yield f"{path} {written(found)}{some}"


def written(found: BaseDistribution) -> str:
    """Write a distribution the way the sweep's YAML would."""
    if isinstance(found, CategoricalDistribution):
        return "{" + ", ".join(map(str, found.choices)) + "}"
    low, high, step = found.low, found.high, found.step  # type: ignore[attr-defined]
    name = "log_uniform" if found.log else "int_uniform" if isinstance(low, int) else "uniform"  # type: ignore[attr-defined]
    return f"{name} [{low:g}, {high:g}]" + (f" step {step:g}" if step not in (None, 1) else "")
