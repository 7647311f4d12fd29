"""A study: the points it may propose, how they are asked for, and which cell each of them is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from math import prod
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import Trial as Asked

from prx.config import config_id, parse_run_config
from prx.errors import ConfigError
from prx.yamlsource import dotted
from sweeps.cells import SEPARATOR, Cell
from sweeps.patches import differences
from sweeps.search.space import Space, contains, listed, lookup, settled, with_values

Params = dict[str, Any]
AXIS = "axes."
"""Stands before the name of an axis among the parameters, as in the sweep's YAML."""
ENUMERABLE = 10_000
"""Points up to which a finite space is written out to find those not trained yet."""


class Infeasible(ValueError):
    """A point that cannot be trained; the message says why."""


@dataclass(frozen=True)
class Study:
    """One search.

    Args:
        name: A cell's name, or `all`.
        cells: Cells of the design that points vary.
        spaces: Cell id -> what is asked in that cell; a part that is off there has no parameters.
        axes: Axis -> its levels, where they are parameters too.
        baseline: Content of the baseline's configuration, which every point is compared with.
    """

    name: str
    cells: tuple[Cell, ...]
    spaces: Mapping[str, Space]
    axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    baseline: Mapping[str, Any] = field(default_factory=dict)

    def ask(self, asked: Asked) -> Params:
        """Have a trial choose its parameters, conditions first.

        Raises:
            Infeasible: The levels it chose are no cell of the design.
        """
        levels = {
            axis: _suggest(asked, AXIS + axis, CategoricalDistribution(names)) for axis, names in self.axes.items()
        }
        cell = self._chosen(levels)
        chosen = {AXIS + axis: level for axis, level in levels.items()}
        for path, found in self.spaces[cell.cell_id].items():
            chosen[path] = settled(found, _suggest(asked, path, found))
        return chosen

    def base(self, params: Params) -> Cell:
        """Give the cell of the design that a point varies; raises as `ask`."""
        return self._chosen({axis: params[AXIS + axis] for axis in self.axes})

    def _chosen(self, levels: Mapping[str, str]) -> Cell:
        if not self.axes:
            return self.cells[0]
        found = self._by_levels.get(tuple(levels.values()))
        if found is None:
            raise Infeasible(f"{SEPARATOR.join(levels.values())} is no cell of the design")
        return found

    @cached_property
    def _by_levels(self) -> dict[tuple[str, ...], Cell]:
        return {tuple(cell.levels[axis] for axis in self.axes): cell for cell in self.cells}

    def distributions(self, params: Params) -> dict[str, BaseDistribution]:
        """Give what a point's parameters were drawn from."""
        axes = {AXIS + axis: CategoricalDistribution(names) for axis, names in self.axes.items()}
        return axes | self.spaces[self.base(params).cell_id]

    def cell(self, params: Params) -> Cell:
        """Make the cell that a point is; its configuration is checked as every other.

        Raises:
            Infeasible: Its levels are no cell, or its configuration cannot be trained.
        """
        from prx.recipe import problems  # imports torch

        base = self.base(params)
        values = {path: params[path] for path in self.spaces[base.cell_id]}
        name = self.title(params)
        content = with_values(base.config.model_dump(mode="json"), values) | {"name": name}
        try:
            config = parse_run_config(content)
        except ConfigError as error:
            raise Infeasible(str(error)) from error
        found = problems(config)
        if found:
            raise Infeasible("; ".join(str(problem) for problem in found))
        here = config.model_dump(mode="json", exclude={"name", "seed"})
        changed = {dotted(keys): (before, after) for keys, before, after in differences(self.baseline, here)}
        return Cell(config_id(config), name, base.levels, config, False, changed, values)

    def title(self, params: Params) -> str:
        """Name the cell that a point is."""
        base = self.base(params)
        return SEPARATOR.join([base.name, *_written({path: params[path] for path in self.spaces[base.cell_id]})])

    def own(self, cell: Cell) -> Params | None:
        """Give the point that a cell of the design is; None where its settings lie outside the space."""
        space, content = self.spaces[cell.cell_id], cell.config.model_dump(mode="json")
        values = {path: lookup(content, path) for path in space}
        if not all(contains(space[path], value) for path, value in values.items()):
            return None
        return {AXIS + axis: cell.levels[axis] for axis in self.axes} | values

    def points(self) -> Iterator[Params]:
        """List every point, cell by cell; nothing where there are endlessly many, or too many to list."""
        spaces = [self.spaces[cell.cell_id] for cell in self.cells]
        lists = [[listed(found) for found in space.values()] for space in spaces]
        if any(values is None for found in lists for values in found):
            return
        if sum(prod(len(values or ()) for values in found) for found in lists) > ENUMERABLE:
            return
        for cell, space, found in zip(self.cells, spaces, lists, strict=True):
            axes = {AXIS + axis: cell.levels[axis] for axis in self.axes}
            for values in product(*(values or () for values in found)):
                yield axes | dict(zip(space, values, strict=True))

    @property
    def num_params(self) -> int:
        """Count the most parameters that one point has."""
        return len(self.axes) + max(len(space) for space in self.spaces.values())


def _suggest(asked: Asked, name: str, found: BaseDistribution) -> Any:
    if isinstance(found, CategoricalDistribution):
        return asked.suggest_categorical(name, found.choices)
    if isinstance(found, FloatDistribution):
        return asked.suggest_float(name, found.low, found.high, step=found.step, log=found.log)
    return asked.suggest_int(name, found.low, found.high, step=found.step)  # type: ignore[attr-defined]


def _written(values: Mapping[str, Any]) -> Iterator[str]:
    """Write a point's values under the shortest endings that tell its paths apart."""
    for path, value in values.items():
        keys = path.split(".")
        others = [other.split(".") for other in values if other != path]
        size = next(n for n in range(1, len(keys) + 1) if all(other[-n:] != keys[-n:] for other in others))
        yield f"{'.'.join(keys[-size:])}={_number(value) if isinstance(value, float) else value}"


def _number(value: float) -> str:
    """Write a number in four digits, or in all where it has more: two points never share a name."""
    short = f"{value:.4g}"
    return short if float(short) == value else repr(value)
