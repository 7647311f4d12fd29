"""Which combinations of levels become cells: pure functions, baseline first, always in the same order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations as subsets
from itertools import product
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PositiveInt

from prx.strict import Strict
from sweeps.fields import choice
from sweeps.fractional import Fraction, best, smallest

Levels = Mapping[str, Sequence[str]]
Combination = tuple[str, ...]
"""One level for every axis, in the order of the axes."""

DESIGNS = ("grid", "add_one_in", "leave_one_out", "pairs", "fractional", "list")


DesignName = Annotated[str, choice(DESIGNS)]


class DesignSpec(Strict):
    """Which combinations are trained. A design without settings may be written as its name.

    Args:
        use: The design: every combination, each level alone, all but one, two at a time, a fraction, or a list.
        full: For `leave_one_out`, the level of an axis in the cell that has everything on; its last unless told.
        resolution: For `fractional`, the resolution to reach; the number of axes unless told.
        runs: For `fractional`, the number of cells instead.
        cells: For `list`, the combinations; an axis that one does not name is at the baseline.
    """

    use: DesignName
    full: dict[str, str] = Field(default_factory=dict)
    resolution: PositiveInt | None = None
    runs: PositiveInt | None = None
    cells: list[dict[str, str]] = Field(default_factory=list)

    def full_levels(self, axes: Levels) -> dict[str, str]:
        """Give the level of every axis in the cell that has everything on."""
        return {axis: self.full.get(axis, levels[-1]) for axis, levels in axes.items()}

    def fraction(self, factors: int) -> Fraction | None:
        """Give the fractional factorial design; None for the other designs."""
        if self.use != "fractional":
            return None
        return best(factors, self.runs) if self.runs else smallest(factors, self.resolution or factors)


def _short(value: Any) -> Any:
    return {"use": choice(DESIGNS)(value)} if isinstance(value, str) else value


Design = Annotated[DesignSpec, BeforeValidator(_short, json_schema_input_type=DesignName | DesignSpec)]


def grid(axes: Levels, baseline: Combination) -> Iterator[Combination]:
    """Give every combination; the last axis moves fastest."""
    yield baseline
    for combination in product(*axes.values()):
        if combination != baseline:
            yield combination


def add_one_in(axes: Levels, baseline: Combination) -> Iterator[Combination]:
    """Give the baseline, then every other level alone."""
    yield baseline
    for position, levels in enumerate(axes.values()):
        for level in levels:
            if level != baseline[position]:
                yield _replaced(baseline, {position: level})


def leave_one_out(axes: Levels, baseline: Combination, full: Combination) -> Iterator[Combination]:
    """Give the baseline, everything on, then that with one axis at a time back at the baseline."""
    yield baseline
    yield full
    for position, level in enumerate(baseline):
        if level != full[position]:
            yield _replaced(full, {position: level})


def pairs(axes: Levels, baseline: Combination) -> Iterator[Combination]:
    """Give the baseline, every other level alone, then every two of them from two axes."""
    yield from add_one_in(axes, baseline)
    others = [[level for level in levels if level != baseline[i]] for i, levels in enumerate(axes.values())]
    for one, two in subsets(range(len(others)), 2):
        for first, second in product(others[one], others[two]):
            yield _replaced(baseline, {one: first, two: second})


def fractional(axes: Levels, baseline: Combination, fraction: Fraction) -> Iterator[Combination]:
    """Give the runs of a two-level fraction, whose factors are the axes; 0 is the baseline's level."""
    other = [next(level for level in levels if level != baseline[i]) for i, levels in enumerate(axes.values())]
    for row in fraction.rows():
        yield _replaced(baseline, {position: other[position] for position, on in enumerate(row) if on})


def listed(axes: Levels, baseline: Combination, cells: Sequence[Mapping[str, str]]) -> Iterator[Combination]:
    """Give the baseline, then what the user lists."""
    yield baseline
    here = dict(zip(axes, baseline, strict=True))
    for cell in cells:
        yield tuple((here | dict(cell)).values())


def _replaced(combination: Combination, levels: Mapping[int, str]) -> Combination:
    return tuple(levels.get(position, level) for position, level in enumerate(combination))


def combinations(design: DesignSpec, axes: Levels, baseline: Mapping[str, str]) -> Iterator[Combination]:
    """Lay a design out over axes, around a baseline that names a level of each; a combination may come twice."""
    start = tuple(baseline[axis] for axis in axes)
    if design.use == "leave_one_out":
        return leave_one_out(axes, start, tuple(design.full_levels(axes).values()))
    if design.use == "list":
        return listed(axes, start, design.cells)
    fraction = design.fraction(len(axes))
    if fraction is not None:
        return fractional(axes, start, fraction)
    return {"grid": grid, "add_one_in": add_one_in, "pairs": pairs}[design.use](axes, start)
