"""Which combinations of levels become cells: pure functions, baseline first, always in the same order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product

Levels = Mapping[str, Sequence[str]]
Combination = tuple[str, ...]
"""One level for every axis, in the order of the axes."""


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
                yield (*baseline[:position], level, *baseline[position + 1 :])


DESIGNS: dict[str, Callable[[Levels, Combination], Iterator[Combination]]] = {
    "grid": grid,
    "add_one_in": add_one_in,
}


def combinations(design: str, axes: Levels, baseline: Mapping[str, str]) -> Iterator[Combination]:
    """Lay out a design over axes, around a baseline that names a level of each."""
    return DESIGNS[design](axes, tuple(baseline[axis] for axis in axes))
