"""From a sweep to its cells and trials, and to what was left out and why. Nothing is trained or written.

A cell's configuration is the base, its levels' patches in the order of the axes (they may not clash, so that
this order means nothing), then `set`, then `trial`.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from prx.compose import load_base
from prx.config import RunConfig, config_id, parse_run_config
from prx.errors import ConfigError, Problem
from prx.yamlsource import PathKeys, Source, dotted, merge
from sweeps.catalogue import Level, axis_levels
from sweeps.cells import BASELINE, SEPARATOR, Cell, Dropped, Plan, make_trial
from sweeps.cells import Trial as Trial
from sweeps.designs import Combination, combinations
from sweeps.measure import unmeasurable
from sweeps.patches import clash, differences, read_patch
from sweeps.spec import SweepSpec
from sweeps.stopping.pace import unreachable

LeftOut = tuple[Combination, tuple[str, ...]]
"""A combination that is not trained, and the reasons."""


@dataclass(frozen=True)
class _Draft:
    """A composed cell, and what stands against training it."""

    combination: Combination
    config: RunConfig
    problems: tuple[Problem, ...]


def make_plan(spec: SweepSpec, source: Source) -> Plan:
    """Plan a sweep.

    Raises:
        ConfigError: A level writes what is no configuration, two axes clash, the baseline cannot be trained,
            or some level can be trained in no cell.
    """
    with _uncollected():
        return _planned(spec, source)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Pause the garbage collector, which would walk all cells over and over and find nothing: a plan has no cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _planned(spec: SweepSpec, source: Source) -> Plan:
    levels = axis_levels(spec, source)
    base = load_base(spec.base, source)
    wanted, dropped = layout(spec)
    _refuse_clashes(base, levels, wanted)
    drafts = _drafts(spec, source, base, levels, wanted)
    _refuse(_unmeasured(spec, source, drafts))
    _refuse(unreachable(spec.scheduler, source, [draft.config for draft in drafts]))
    _refuse(_untrainable(spec, source, drafts, dropped))
    cells, twins = _cells(spec, drafts)
    reasons = [(draft.combination, tuple(map(_reason, draft.problems))) for draft in drafts if draft.problems]
    left_out = [Dropped(_named(spec, combination), why) for combination, why in [*dropped, *reasons, *twins]]
    search = None
    if spec.search is not None:
        from sweeps.search.planning import plan_search  # imports optuna

        cells, search = plan_search(spec, source, cells)
        left_out += search.dropped
    trials = [make_trial(cell, seed) for seed in spec.first_seeds for cell in cells]
    shared = merge(base, common_settings(spec, source))
    return Plan(spec, source, tuple(cells), tuple(left_out), tuple(trials), shared, search)


def _refuse(problems: Iterable[Problem]) -> None:
    found = list(dict.fromkeys(problems))
    if found:
        raise ConfigError(found)


def _named(spec: SweepSpec, combination: Combination) -> dict[str, str]:
    return dict(zip(spec.axes, combination, strict=True))


def _reason(problem: Problem) -> str:
    return f"{problem.path}: {problem.message}"


def layout(spec: SweepSpec) -> tuple[list[Combination], list[LeftOut]]:
    """Lay the design out, add what the user adds, and take out what the user excludes."""
    names = spec.level_names()
    wanted, dropped = [], []
    baseline = spec.baseline_levels()
    added = (tuple((baseline | levels).values()) for levels in spec.also)
    for combination in dict.fromkeys([*combinations(spec.design, names, baseline), *added]):
        here = _named(spec, combination)
        why = tuple(
            rule["because"]
            for rule in spec.exclude
            if all(fnmatchcase(here[axis], pattern) for axis, pattern in rule.items() if axis != "because")
        )
        if why:
            dropped.append((combination, why))
        else:
            wanted.append(combination)
    return wanted, dropped


def _refuse_clashes(base: Source, levels: dict[str, dict[str, Level]], wanted: list[Combination]) -> None:
    """Refuse two axes that write one setting differently: one of them would not be what it says."""
    axes = list(levels)
    problems: list[Problem] = []
    for one in range(len(axes)):
        for two in range(one + 1, len(axes)):
            for pair in dict.fromkeys((combination[one], combination[two]) for combination in wanted):
                first, second = levels[axes[one]][pair[0]], levels[axes[two]][pair[1]]
                problems += _clash(base, f"axes.{axes[one]}", first, f"axes.{axes[two]}", second)
    _refuse(problems)


def _clash(base: Source, axis: str, first: Level, other_axis: str, second: Level) -> Iterator[Problem]:
    found = clash(base, first.patch, second.patch)
    if found is None:
        return
    keys, one, two = found
    (file, line), (other_file, other_line) = first.patch.mark(keys), second.patch.mark(keys)
    message = (
        f"is written differently by two axes: {one!r} by {axis} level {first.name!r} ({file}:{line}), "
        f"{two!r} by {other_axis} level {second.name!r} ({other_file}:{other_line}); "
        "let one axis write it, or exclude the pair"
    )
    yield Problem(dotted(keys), message, other_file, other_line)


def _drafts(
    spec: SweepSpec,
    source: Source,
    base: Source,
    levels: dict[str, dict[str, Level]],
    wanted: list[Combination],
) -> list[_Draft]:
    """Compose and check every cell; every configuration error of every cell is reported at once."""
    from prx.loaders import reading_once
    from prx.recipe import problems  # imports torch

    last = common_settings(spec, source)
    drafts, wrong = [], []
    with reading_once():
        for combination, composed in _composed(base, levels, wanted):
            here = merge(composed, last)
            try:
                config = parse_run_config(here.data, here)
            except ConfigError as error:
                wrong += error.problems
                continue
            located = tuple(here.problem(tuple(found.path.split(".")), found.message) for found in problems(config))
            drafts.append(_Draft(combination, config, located))
    _refuse(wrong)
    return drafts


def _composed(
    base: Source, levels: dict[str, dict[str, Level]], wanted: list[Combination]
) -> Iterator[tuple[Combination, Source]]:
    """Lay the levels over the base; what neighbouring cells share is merged once."""
    stack, done = [base], ()  # type: tuple[list[Source], Combination]
    for combination in wanted:
        shared = next(
            (i for i, (a, b) in enumerate(zip(done, combination, strict=False)) if a != b), len(done)
        )
        del stack[shared + 1 :]
        for axis, name in list(zip(levels, combination, strict=True))[shared:]:
            stack.append(merge(stack[-1], levels[axis][name].patch))
        done = combination
        yield combination, stack[-1]


def common_settings(spec: SweepSpec, source: Source) -> Source:
    """Give what holds for every cell: `set`, and over it `trial`."""
    trial = spec.trial
    data: dict[str, Any] = {"steps": trial.steps, "evaluation": {"every": trial.eval_every}}
    marks: dict[PathKeys, PathKeys] = {
        ("steps",): ("trial", "steps"),
        ("evaluation", "every"): ("trial", "eval_every"),
    }
    for key in ("workers", "zero_stage"):
        value = getattr(trial, key)
        if value is not None:
            data.setdefault("infrastructure", {})[key] = value
            marks[("infrastructure", key)] = ("trial", key)
    lines = {path: source.marks[keys] for path, keys in marks.items() if keys in source.marks}
    decided = Source(data, source.file, lines)
    return merge(read_patch(source, ("set",))[0], decided) if spec.overrides else decided


def _unmeasured(spec: SweepSpec, source: Source, drafts: list[_Draft]) -> Iterator[Problem]:
    """A metric that decides needs the network that measures it, in every cell."""
    deciding = {("objectives", name): name for name in spec.objectives}
    if spec.scheduler.decides:
        deciding[("scheduler", "metric")] = spec.scheduler.metric
    for keys, name in deciding.items():
        lacking = next((text for draft in drafts if (text := unmeasurable(name, draft.config))), None)
        if lacking is not None:
            yield source.problem(keys, lacking)


def _untrainable(
    spec: SweepSpec, source: Source, drafts: list[_Draft], dropped: list[LeftOut]
) -> Iterator[Problem]:
    """The baseline is trained, and so is every level somewhere, unless the user excludes it."""
    baseline = tuple(spec.baseline_levels().values())
    for combination, why in dropped:
        if combination == baseline:
            message = f"must leave the baseline ({SEPARATOR.join(baseline)}), excluded because: {why[0]}"
            yield source.problem(("exclude",), message)
    known = [problem for draft in drafts if draft.combination == baseline for problem in draft.problems]
    yield from known
    wrong: dict[str, list[tuple[Problem, str]]] = {}
    for position, axis in enumerate(spec.axes):
        trained = {draft.combination[position] for draft in drafts if not draft.problems}
        first = {draft.combination[position]: draft.problems for draft in reversed(drafts)}
        for level in sorted(first.keys() - trained - {baseline[position]}):
            for problem in first[level]:
                if problem not in known:
                    wrong.setdefault(problem.message, []).append((problem, f"{level!r} of axes.{axis}"))
    yield from map(_joined, wrong.values())


def _joined(found: list[tuple[Problem, str]]) -> Problem:
    """Say once what stands against several levels, such as a model that none of them finds."""
    paths = ", ".join(dict.fromkeys(problem.path for problem, _ in found))
    levels = list(dict.fromkeys(level for _, level in found))
    note = f"(so no cell can train level{'s' if len(levels) > 1 else ''} {', '.join(levels)})"
    return replace(found[0][0], path=paths, message=f"{found[0][0].message} {note}")


def _cells(spec: SweepSpec, drafts: list[_Draft]) -> tuple[list[Cell], list[LeftOut]]:
    """Make cells, the baseline first; of two that would train the same, keep the first."""
    baseline = tuple(spec.baseline_levels().values())
    reference: dict[str, Any] = {}
    cells: dict[str, Cell] = {}
    twins: list[LeftOut] = []
    for draft in drafts:
        if draft.problems:
            continue
        name = _cell_name(draft.combination, baseline)
        config = draft.config.model_copy(update={"seed": 0, "name": name})
        content = config.model_dump(mode="json", exclude={"name", "seed"})
        reference = reference or content
        identity = config_id(config)
        if identity in cells:
            twins.append((draft.combination, (_twin(cells[identity], config),)))
            continue
        changed = {dotted(keys): (before, after) for keys, before, after in differences(reference, content)}
        is_baseline = draft.combination == baseline
        cells[identity] = Cell(identity, name, _named(spec, draft.combination), config, is_baseline, changed)
    return list(cells.values()), twins


def _twin(cell: Cell, config: RunConfig) -> str:
    differing = differences(cell.config.model_dump(mode="json"), config.model_dump(mode="json"))
    only = [dotted(keys) for keys, _, _ in differing if keys != ("name",)]
    how = (
        f"differs only in {', '.join(only)}, which decides no result"
        if only
        else "has the same configuration"
    )
    return f"would train the same as {cell.name!r}: {how}"


def _cell_name(combination: Combination, baseline: Combination) -> str:
    return SEPARATOR.join(a for a, b in zip(combination, baseline, strict=True) if a != b) or BASELINE
