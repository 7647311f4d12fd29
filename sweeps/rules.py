"""Rules between the sections of a sweep. Each lists what it finds, so that all problems come together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from prx.errors import ConfigError, Problem
from prx.registry import choices
from prx.yamlsource import Source
from sweeps.budget import budget
from sweeps.catalogue import axis_levels
from sweeps.design_rules import design
from sweeps.metrics import METRICS, RESULT_COLUMNS
from sweeps.patches import read_patch
from sweeps.seeds import AdaptiveSeeds
from sweeps.stopping.spec import problems as scheduler_problems
from sweeps.tracking.spec import problems as tracking_problems

if TYPE_CHECKING:
    from sweeps.spec import SweepSpec


def trial(spec: SweepSpec, source: Source) -> Iterator[Problem]:
    """Evaluations fall on a trial's end."""
    steps, every = spec.trial.steps, spec.trial.eval_every
    if steps % every:
        near = sorted((n for n in range(1, steps + 1) if steps % n == 0), key=lambda n: (abs(n - every), n))
        hint = f"the nearest that do are {', '.join(str(n) for n in sorted(near[:2]))}"
        message = f"must divide trial.steps ({steps}), got {every}; {hint}"
        yield source.problem(("trial", "eval_every"), message)


def scheduler(spec: SweepSpec, source: Source) -> Iterator[Problem]:
    """Rungs are evaluations, and stoppers can act."""
    yield from scheduler_problems(spec.scheduler, spec.trial.steps, spec.trial.eval_every, source)


def objectives(spec: SweepSpec, source: Source) -> Iterator[Problem]:
    """A metric is improved the way it is defined."""
    for name, wanted in spec.objectives.items():
        if wanted != METRICS[name].better:
            better = "lower" if METRICS[name].better == "min" else "higher"
            message = f"must be {METRICS[name].better} ({better} {name} is better), got {wanted!r}"
            yield source.problem(("objectives", name), message)


def seeds(spec: SweepSpec, source: Source) -> Iterator[Problem]:
    """A seed twice would be one trial twice, and more seeds than at first have to be more."""
    if isinstance(spec.seeds, AdaptiveSeeds):
        if spec.seeds.up_to <= spec.seeds.start:
            message = f"must be more than seeds.start ({spec.seeds.start}), got {spec.seeds.up_to}"
            yield source.problem(("seeds", "up_to"), message)
        return
    for index, seed in enumerate(spec.seeds):
        if seed in spec.seeds[:index]:
            yield source.problem(("seeds", index), f"must be distinct, got {seed} twice")


def axes(spec: SweepSpec, source: Source) -> Iterator[Problem]:
    """Levels are distinct, and an axis does not take the name of another column of the results."""
    for axis, levels in spec.axes.items():
        if axis in RESULT_COLUMNS:
            message = f"must not be named like a column of the results, got {axis!r}"
            yield source.problem(("axes", axis), message)
        names = _names(spec, axis)
        for index in range(len(levels)):
            if names[index] in names[:index]:
                yield source.problem(("axes", axis, index), f"must be distinct, got {names[index]!r} twice")


def levels(spec: SweepSpec, source: Source) -> Iterator[Problem]:
    """Every level can be found."""
    try:
        axis_levels(spec, source)
    except ConfigError as error:
        yield from error.problems


def baseline(spec: SweepSpec, source: Source) -> Iterator[Problem]:
    """The baseline is a combination of levels."""
    for axis, level in spec.baseline.items():
        allowed = _names(spec, axis) if axis in spec.axes else list(spec.axes)
        wanted = level if axis in spec.axes else axis
        if wanted not in allowed:
            yield source.problem(("baseline", axis), choices(wanted, allowed))


def also(spec: SweepSpec, source: Source) -> Iterator[Problem]:
    """What is added is a combination of levels."""
    for index, added in enumerate(spec.also):
        for axis, level in added.items():
            allowed = _names(spec, axis) if axis in spec.axes else list(spec.axes)
            wanted = level if axis in spec.axes else axis
            if wanted not in allowed:
                yield source.problem(("also", index, axis), choices(wanted, allowed))


def article(spec: SweepSpec, source: Source) -> Iterator[Problem]:
    """The article's table exists."""
    from sweeps.article import tables

    if spec.article is not None and spec.article not in tables():
        yield source.problem(("article",), choices(spec.article, list(tables())))


def exclude(spec: SweepSpec, source: Source) -> Iterator[Problem]:
    """An exclusion says why, and matches something: else it is a spelling mistake that trains too much."""
    for index, rule in enumerate(spec.exclude):
        keys = ("exclude", index)
        if not rule.get("because", "").strip():
            yield source.problem(keys, "must say why, as because: TEXT")
        if not rule.keys() - {"because"}:
            message = f"must name a pattern for at least one axis; {choices('none', list(spec.axes))}"
            yield source.problem(keys, message)
        for axis, pattern in rule.items():
            if axis == "because":
                continue
            if axis not in spec.axes:
                yield source.problem((*keys, axis), choices(axis, [*spec.axes, "because"]))
            elif not any(fnmatchcase(name, pattern) for name in _names(spec, axis)):
                message = f"must match a level of the axis; {choices(pattern, _names(spec, axis))}"
                yield source.problem((*keys, axis), message)


def tracking(spec: SweepSpec, source: Source) -> Iterator[Problem]:
    """A tracker is named once, and reads what it is given."""
    yield from tracking_problems(spec.tracking, source)


def overrides(spec: SweepSpec, source: Source) -> Iterator[Problem]:
    """`set` does not write what the sweep decides elsewhere."""
    if spec.overrides:
        yield from read_patch(source, ("set",))[1]


def _names(spec: SweepSpec, axis: str) -> list[str]:
    return [level if isinstance(level, str) else level.name for level in spec.axes[axis]]


RULES: tuple[tuple[tuple[str, ...], Callable[[SweepSpec, Source], Iterator[Problem]]], ...] = (
    (("trial",), trial),
    (("trial", "scheduler"), scheduler),
    (("objectives",), objectives),
    (("seeds",), seeds),
    (("axes",), axes),
    (("base", "catalogue", "axes"), levels),
    (("axes", "baseline"), baseline),
    (("axes", "baseline", "design"), design),
    (("axes", "also"), also),
    (("axes", "exclude"), exclude),
    (("article",), article),
    (("budget",), budget),
    (("tracking",), tracking),
    (("set",), overrides),
)
"""The sections a rule reads, and the rule; it is skipped while one of them is wrong."""
