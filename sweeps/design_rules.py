"""Rules of the section `design`: each design takes its own settings, and fits the axes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prx.errors import Problem
from prx.registry import choices
from prx.yamlsource import Source
from sweeps.fractional import TooLargeError

if TYPE_CHECKING:
    from sweeps.spec import SweepSpec

SETTINGS = {"full": "leave_one_out", "resolution": "fractional", "runs": "fractional", "cells": "list"}
LOWEST_RESOLUTION = 3
"""Below it main effects are confounded with each other."""


def design(spec: SweepSpec, source: Source) -> Iterator[Problem]:
    """A design has the settings it needs and no others."""
    for key, use in SETTINGS.items():
        given = key in spec.design.model_fields_set
        if given and spec.design.use != use:
            yield source.problem(("design", key), f"belongs to design.use {use}, got {spec.design.use!r}")
    yield from {"leave_one_out": _full, "fractional": _fraction, "list": _cells}.get(spec.design.use, _none)(
        spec, source
    )


def _none(spec: SweepSpec, source: Source) -> Iterator[Problem]:
    yield from ()


def _full(spec: SweepSpec, source: Source) -> Iterator[Problem]:
    """Everything on is a combination of levels, none of them the baseline's."""
    axes, baseline = spec.level_names(), spec.baseline_levels()
    yield from _combination(spec, source, ("design", "full"), spec.design.full)
    full = {axis: level for axis, level in spec.design.full_levels(axes).items() if len(axes[axis]) > 1}
    for axis, level in full.items():
        others = [name for name in axes[axis] if name != baseline[axis]]
        if level == baseline[axis]:
            message = f"must not be the baseline's level: leaving it out changes nothing; {choices(level, others)}"
            yield source.problem(("design", "full", axis), message)


def _fraction(spec: SweepSpec, source: Source) -> Iterator[Problem]:
    """Axes have two levels, and one number says how large the fraction is."""
    axes = spec.level_names()
    many = {axis: len(levels) for axis, levels in axes.items() if len(levels) != 2}
    for axis, number in many.items():
        message = f"must have exactly two levels for design.use fractional, got {number}"
        yield source.problem(("axes", axis), message)
    if len(axes) < LOWEST_RESOLUTION:
        message = f"must not be fractional for fewer than {LOWEST_RESOLUTION} axes, got {len(axes)}"
        yield source.problem(("design", "use"), message)
    elif not many:
        yield from _size(spec, source, len(axes))


def _size(spec: SweepSpec, source: Source, factors: int) -> Iterator[Problem]:
    wanted, runs = spec.design.resolution, spec.design.runs
    if (wanted is None) == (runs is None):
        yield source.problem(("design",), "must give one of resolution and runs for design.use fractional")
        return
    if wanted is not None and not LOWEST_RESOLUTION <= wanted <= factors:
        message = f"must be in {LOWEST_RESOLUTION}..{factors} for {factors} axes, got {wanted}"
        yield source.problem(("design", "resolution"), message)
        return
    key = "resolution" if runs is None else "runs"
    try:
        spec.design.fraction(factors)
    except TooLargeError as error:
        yield source.problem(("design", key), f"{error}; take other runs, or list the cells with design.use list")
    except ValueError as error:
        yield source.problem(("design", key), f"{error} (for {factors} axes)")


def _cells(spec: SweepSpec, source: Source) -> Iterator[Problem]:
    """What is listed are combinations of levels."""
    if not spec.design.cells:
        yield source.problem(("design", "cells"), "must list at least one cell for design.use list")
    for index, cell in enumerate(spec.design.cells):
        yield from _combination(spec, source, ("design", "cells", index), cell)


def _combination(
    spec: SweepSpec, source: Source, keys: tuple[str | int, ...], levels: dict[str, str]
) -> Iterator[Problem]:
    axes = spec.level_names()
    for axis, level in levels.items():
        allowed, wanted = (axes[axis], level) if axis in axes else (list(axes), axis)
        if wanted not in allowed:
            yield source.problem((*keys, axis), choices(wanted, allowed))
