"""Levels that change more than the technique they are about, so that their effect is not that technique's alone.

A level is about the parts it changes (tokenizer, objective, losses, routing, optimizer), or about the one section it
changes. What it changes beside them is a note in the plan, not an error: a router may well come with a guidance of its
own, but whoever reads the result should know that both were changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prx.compose import load_base
from prx.config import PART_KINDS, parse_run_config
from prx.errors import ConfigError
from prx.timesteps import PathConfig
from prx.yamlsource import dotted, merge
from sweeps.catalogue import axis_levels
from sweeps.patches import differences
from sweeps.plan import Plan, common_settings

Change = tuple[Any, Any]
FITTED = frozenset({"denoiser.patch_size", "denoiser.bottleneck"})
"""What a tokenizer may bring without a note: the denoiser cuts its latents into tokens."""
PATH = frozenset(f"objective.{name}" for name in PathConfig.model_fields) - {"objective.use"}
"""What every objective has, apart from what it predicts: another objective starts from its own defaults there."""
MEASURED = frozenset({"sampling", "evaluation"})


@dataclass(frozen=True)
class Confound:
    """A level, and the settings it changes beside what it is about (path -> before and after)."""

    axis: str
    level: str
    beside: Mapping[str, Change]
    parts: tuple[str, ...] = ()
    """The parts it is about, where they are several."""

    @property
    def measured(self) -> bool:
        """Whether the level is drawn or measured in another way than the baseline."""
        return any(section_of(path) in MEASURED for path in self.beside)


def section_of(path: str) -> str:
    """Give the top-level key of a configuration path."""
    return path.partition(".")[0]


def confounds(plan: Plan) -> list[Confound]:
    """List the levels that change something beside what they are about, and those about several things."""
    found = (_confound(axis, level, changes) for (axis, level), changes in _alone(plan))
    return [confound for confound in found if confound.beside or len(confound.parts) > 1]


def _confound(axis: str, level: str, changes: Mapping[str, Change]) -> Confound:
    sections = list(dict.fromkeys(section_of(path) for path in changes))
    about = {name for name in sections if _is_part(name, changes)} or ({axis} & set(sections)) or set(sections[:1])
    parts = tuple(name for name in sections if name in about)
    fitted = FITTED if "tokenizer" in about else frozenset()
    others = PATH if "objective.use" in changes else frozenset()
    beside = {
        path: change
        for path, change in changes.items()
        if path in others or (section_of(path) not in about and path not in fitted)
    }
    return Confound(axis, level, beside, parts)


def _is_part(section: str, changes: Mapping[str, Change]) -> bool:
    """Say whether a level is about a part; an optimizer only if it is another one, not for its learning rate."""
    return section in PART_KINDS and (
        section != "optimizer" or any(p in changes for p in ("optimizer", "optimizer.use"))
    )


def _alone(plan: Plan) -> Iterator[tuple[tuple[str, str], Mapping[str, Change]]]:
    """Give what each level changes alone, in the order of the axes; from its own cell where the design has one."""
    baseline = plan.cells[0].levels
    used = dict.fromkeys((axis, cell.levels[axis]) for axis in baseline for cell in plan.cells)
    singles = {}
    for cell in plan.cells:
        other = [(axis, level) for axis, level in cell.levels.items() if level != baseline[axis]]
        if len(other) == 1:
            singles[other[0]] = cell.difference
    wanted = [(axis, level) for axis, level in used if level != baseline[axis]]
    composed = _composed(plan, [key for key in wanted if key not in singles])
    for key in wanted:
        changes = singles.get(key, composed.get(key))
        if changes:
            yield key, changes


def _composed(plan: Plan, wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Change]]:
    found: dict[tuple[str, str], dict[str, Change]] = {}
    keys = list(wanted)
    if not keys:
        return found
    levels, base = axis_levels(plan.spec, plan.source), load_base(plan.spec.base, plan.source)
    last, baseline = common_settings(plan.spec, plan.source), plan.cells[0]
    before = _content(baseline.config)
    for axis, level in keys:
        here = base
        for name, chosen in (baseline.levels | {axis: level}).items():
            here = merge(here, levels[name][chosen].patch)
        here = merge(here, last)
        try:
            after = _content(parse_run_config(here.data, here))
        except ConfigError:  # alone it is no configuration, so it is trained only with another level: nothing to say
            continue
        found[axis, level] = {dotted(path): (old, new) for path, old, new in differences(before, after)}
    return found


def _content(config: Any) -> dict[str, Any]:
    content: dict[str, Any] = config.model_dump(mode="json", exclude={"name", "seed"})
    return content
