"""What a search may not say, found before anything is trained, each problem at the line where it was written."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prx.config import NOT_IDENTITY, parse_run_config
from prx.errors import ConfigError, Problem
from prx.registry import choices
from prx.yamlsource import Source
from sweeps.cells import Cell
from sweeps.patches import DECIDED
from sweeps.search.space import (
    RangeError,
    Space,
    contains,
    declared,
    distribution,
    extremes,
    has,
    is_number,
    is_step,
    listed,
    snapped,
    with_values,
)
from sweeps.search.spec import DECLARED, Range
from sweeps.search.studies import AXIS, ENUMERABLE, Params, Study
from sweeps.spec import SweepSpec

MOST_LISTED = 12
"""Values up to which a message lists them all."""


def refuse(problems: Iterable[Problem]) -> None:
    """Raise what was found, all at once."""
    found = list(dict.fromkeys(problems))
    if found:
        raise ConfigError(sorted(found, key=lambda problem: problem.line or 0))


def written_spaces(spec: SweepSpec, source: Source, cells: Sequence[Cell]) -> dict[str, Space]:
    """Give what is searched in every cell, by cell id: a cell without a path is not asked for it.

    Raises:
        ConfigError: A range names a path of no cell or one that the sweep decides, or means nothing there.
    """
    assert spec.search is not None
    contents = {cell.cell_id: cell.config.model_dump(mode="json") for cell in cells}
    spaces: dict[str, Space] = {cell_id: {} for cell_id in contents}
    problems: list[Problem] = []
    for path, written in spec.search.space.items():
        keys = ("search", "space", path)
        message = _not_ours(path)
        places = {} if message else {i: content for i, content in contents.items() if has(content, path)}
        if not places:
            problems.append(source.problem(keys, message or _nowhere(path, contents.values())))
            continue
        try:
            for cell_id, content in places.items():
                spaces[cell_id] |= _resolved(path, written, content, spec)
            problems += _unfit(source, keys, next(iter(places.values())), spaces[next(iter(places))], path)
        except RangeError as error:
            problems.append(source.problem(keys, str(error)))
    refuse(problems)
    return spaces


def _resolved(path: str, written: Range, content: Mapping[str, Any], spec: SweepSpec) -> Space:
    ranges = declared(content, path) if written.kind == DECLARED else {path: written}
    return {name: distribution(name, found, spec.trial) for name, found in ranges.items()}


def _not_ours(path: str) -> str | None:
    keys = tuple(path.split("."))
    if keys in DECIDED:
        return f"is decided by {DECIDED[keys]} of the sweep"
    if keys[0] in NOT_IDENTITY:
        return f"decides no result; {keys[0]} is no part of what is searched"
    return None


def _nowhere(path: str, contents: Iterable[Mapping[str, Any]]) -> str:
    known = sorted({found for content in contents for found in _paths(content)})
    close = difflib.get_close_matches(path, known, n=1)
    return "names a setting of no cell" + (f" (did you mean {close[0]!r}?)" if close else "")


def _paths(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{key}.")


def _unfit(
    source: Source, keys: tuple[str, ...], content: Mapping[str, Any], space: Space, path: str
) -> Iterator[Problem]:
    """Every choice and both ends of a range have to be values of the setting, in the first cell that has it."""
    for name, found in space.items():
        if name != path and not name.startswith(f"{path}."):
            continue
        for value in extremes(found):
            message = _problem(with_values(content, {name: value}), name)
            if message:
                yield source.problem(keys, f"cannot be {value!r}: {message}")


def _problem(content: Mapping[str, Any], path: str) -> str | None:
    from prx.recipe import problems  # imports torch

    try:
        found = problems(parse_run_config(content))
    except ConfigError as error:
        found = error.problems
    return next((str(problem) for problem in found if problem.path.startswith(path)), None)


def study_problems(spec: SweepSpec, source: Source, studies: Sequence[Study]) -> Iterator[Problem]:
    """Find what the sampler cannot do with such a space and such objectives."""
    assert spec.search is not None
    search = spec.search
    if len(spec.objectives) > 2:
        yield source.problem(("objectives",), f"must be one or two for a search, got {len(spec.objectives)}")
    if search.within == "all":
        yield from _ambiguous(source, studies[0])
    if search.sampler == "cma_es":
        yield from _no_numbers(spec, source, studies)
    if search.sampler == "grid":
        yield from _no_grid(spec, source, studies)
    elif search.trials is None:
        yield source.problem(("search",), f"trials: is required for sampler {search.sampler}")


def _ambiguous(source: Source, study: Study) -> Iterator[Problem]:
    """In one study a parameter has one range, whatever the cell."""
    found: Space = {}
    for space in study.spaces.values():
        for path, one in space.items():
            if found.setdefault(path, one) != one:
                message = "must be the same range in every cell for search.within all; write the range out"
                yield source.problem(("search", "space", path), message)


def _no_numbers(spec: SweepSpec, source: Source, studies: Sequence[Study]) -> Iterator[Problem]:
    keys = ("search", "sampler")
    if len(spec.objectives) > 1:
        yield source.problem(
            keys, "must be nsga2, tpe, multivariate_tpe, random or grid for two objectives, got 'cma_es'"
        )
    if studies[0].axes:
        yield source.problem(keys, "cma_es moves numbers, and levels of axes are none; write search.within: cell")
    for study in studies:
        if not any(
            is_number(found) and listed(found) is None for space in study.spaces.values() for found in space.values()
        ):
            yield source.problem(keys, f"cma_es needs a continuous range to move, and {study.name!r} has none")


def _no_grid(spec: SweepSpec, source: Source, studies: Sequence[Study]) -> Iterator[Problem]:
    assert spec.search is not None
    endless = {p for s in studies for space in s.spaces.values() for p, found in space.items() if listed(found) is None}
    for path in sorted(endless):
        message = "must be a choice, or a range with a step, for sampler grid: it has endlessly many values"
        yield source.problem(("search", "space", path), message)
    for study in studies if not endless else ():
        count = sum(1 for _ in study.points())
        if not count:
            message = f"would be more than {ENUMERABLE:,} points in {study.name!r}; give fewer values"
            yield source.problem(("search", "space"), message)
        if spec.search.trials is not None and spec.search.trials < count:
            message = f"must be at least {count}, the points of the grid in {study.name!r}, or be left out"
            yield source.problem(("search", "trials"), f"{message}, got {spec.search.trials}")


def first_points(spec: SweepSpec, source: Source, studies: Sequence[Study]) -> dict[str, list[Params]]:
    """Read the points to try first, by study.

    Raises:
        ConfigError: A point names what is not searched, or lies outside the space.
    """
    assert spec.search is not None
    found: dict[str, list[Params]] = {study.name: [] for study in studies}
    problems: list[Problem] = []
    for index, point in enumerate(spec.search.first):
        keys = ("search", "first", index)
        try:
            if not point:
                raise RangeError("must name a value of at least one searched path")
            taken = {study.name: params for study in studies if (params := _taken(spec, study, point))}
        except RangeError as error:
            problems.append(source.problem(keys, str(error)))
            continue
        if not taken:
            allowed = sorted({path for study in studies for space in study.spaces.values() for path in space})
            message = f"has paths that no cell has together; searched are {', '.join([*studies[0].axes, *allowed])}"
            problems.append(source.problem(keys, message))
        for name, params in taken.items():
            found[name].append(params)
    trials, most = spec.search.trials, max(map(len, found.values()))
    if trials is not None and most > trials:
        message = f"must be no more points than search.trials ({trials}), got {most}"
        problems.append(source.problem(("search", "first"), message))
    refuse(problems)
    return found


def _taken(spec: SweepSpec, study: Study, point: Mapping[str, Any]) -> Params | None:
    """Make a point that a study may be told to try; None where none of its cells has all of the paths.

    Raises:
        RangeError: A value lies outside its range.
    """
    levels = {axis: value for axis, value in point.items() if axis in study.axes}
    values = {path: value for path, value in point.items() if path not in study.axes}
    for axis, level in levels.items():
        if level not in study.axes[axis]:
            raise RangeError(f"{axis} {choices(level, list(study.axes[axis]))}")
    matching = [cell for cell in study.cells if all(cell.levels[axis] == level for axis, level in levels.items())]
    having = [cell for cell in matching if values.keys() <= study.spaces[cell.cell_id].keys()]
    if not having:
        return None
    space = study.spaces[having[0].cell_id]
    inside = {path: _inside(spec, path, space, value) for path, value in values.items()}
    # Where some levels lack a path, the point has to say which levels it means.
    open_axes = len(having) == len(matching)
    axes = levels if open_axes else {axis: having[0].levels[axis] for axis in study.axes}
    return {AXIS + axis: level for axis, level in axes.items()} | inside


def _inside(spec: SweepSpec, path: str, space: Space, value: Any) -> Any:
    value = snapped(value, spec.trial) if is_step(path) else value
    if not contains(space[path], value):
        bounds = listed(space[path])
        shown = (
            f"one of {', '.join(map(str, bounds))}"
            if bounds and len(bounds) <= MOST_LISTED
            else "within " + "..".join(f"{x:g}" for x in extremes(space[path]))
        )
        raise RangeError(f"{path} must be {shown}, got {value!r}")
    return value
