"""The sweep's YAML, typed and strict: what is varied, what decides, how long each trial trains.

A level of an axis is the name of a level in the technique catalogue, or is written out in place:

    axes:
      alignment: [none, repa_dinov2, {name: repa_strong, patch: {losses.repa.weight: 2.0}}]

`patch` and `set` hold configuration values; a key may be dotted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PositiveInt, ValidationError

from prx.config import PositiveFloat, Strict, problems_of
from prx.errors import ConfigError, Problem
from prx.yamlsource import Source, read_yaml
from sweeps import rules
from sweeps.budget import BudgetSpec
from sweeps.designs import Design, DesignSpec
from sweeps.fields import Spelled, choice
from sweeps.metrics import METRICS, Direction
from sweeps.search.spec import SearchSpec
from sweeps.seeds import Seeds, first_seeds
from sweeps.stopping.spec import SchedulerSpec
from sweeps.tracking.spec import TrackerSpec

_level_name = Spelled(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", "letters, digits, _ . + and -")
LevelName = Annotated[str, _level_name]
AxisName = Annotated[str, Spelled(r"[a-z][a-z0-9_]*", "a-z, 0-9 and _, like a column of a table")]
Slug = Annotated[str, Spelled(r"[a-z0-9][a-z0-9_-]{0,63}", "at most 64 of a-z, 0-9, - and _")]
MetricName = Annotated[str, choice(tuple(METRICS))]


class InlineLevel(Strict):
    """A level written in the sweep itself.

    Args:
        name: How the level is called in tables and in the names of cells.
        patch: Configuration values laid over the base; keys may be dotted.
        summary: One line on what the level does, for tables.
    """

    name: LevelName
    patch: dict[str, Any]
    summary: str = ""


def _level(value: Any) -> Any:
    if isinstance(value, str):
        return _level_name(value)
    if isinstance(value, InlineLevel):
        return value
    if isinstance(value, Mapping):
        return InlineLevel.model_validate(dict(value))
    raise ValueError(f"must be a level's name (quote numbers, yes and no) or {{name, patch}}, got {value!r}")


Level = Annotated[str | InlineLevel, BeforeValidator(_level, json_schema_input_type=LevelName | InlineLevel)]


class TrialSpec(Strict):
    """How long each trial trains, when it is measured, and how it is executed (default: as the base says).

    Args:
        steps: Optimizer steps that every trial trains.
        eval_every: Steps between measurements; divides `steps`. Every one is a checkpoint and a place to stop.
        workers: Processes that train one trial together; decides no result.
        zero_stage: DeepSpeed ZeRO stage of a trial; decides no result.
        step_seconds: Seconds a step takes; decides nothing, `plan` estimates by it.
        eval_seconds: Seconds a measurement with its checkpoint takes; decides nothing, `plan` estimates by it.
    """

    steps: PositiveInt
    eval_every: PositiveInt
    workers: PositiveInt | None = None
    zero_stage: Annotated[int, Field(ge=0, le=3)] | None = None
    step_seconds: PositiveFloat | None = None
    eval_seconds: PositiveFloat | None = None


class SweepSpec(Strict):
    """One sweep. Cells are combinations of levels, trials are cells times seeds.

    Args:
        name: Names the folder of its results, `STORE/sweeps/NAME`.
        base: Configuration that all trials share: a preset, or a YAML file beside the sweep.
        catalogue: Where levels' names are looked up: a shipped catalogue or a YAML file; by the base unless told.
        axes: What is varied: for each axis its levels, by name from the catalogue or written out.
        design: Which combinations of levels are trained.
        baseline: Level of an axis that cells are compared with; the first one of each axis unless told.
        also: Combinations added to the design; axes that one does not name are at the baseline.
        exclude: Combinations left out: a pattern for each axis (`repa_*`), and `because`, the reason.
        objectives: Metrics that are optimised, and which way; two give a Pareto front.
        scheduler: Who is compared when, so that losers stop early.
        search: Settings searched beside the design.
        seeds: Seeds of every cell: a list, or few at first and more for those that matter.
        trial: How long each trial trains and how it is executed.
        budget: When the whole sweep stops.
        tracking: Trackers that runs are copied to.
        article: Table of the article shown beside the results.
        overrides: Configuration values changed for every trial; keys may be dotted.
    """

    name: Slug
    base: str
    catalogue: str | None = None
    axes: Annotated[dict[AxisName, Annotated[list[Level], Field(min_length=1)]], Field(min_length=1)]
    design: Design = DesignSpec(use="grid")
    baseline: dict[str, str] = Field(default_factory=dict)
    also: list[dict[str, str]] = Field(default_factory=list)
    exclude: list[dict[str, str]] = Field(default_factory=list)
    objectives: Annotated[dict[MetricName, Direction], Field(min_length=1)] = {"cmmd": "min"}
    scheduler: SchedulerSpec = SchedulerSpec()
    search: SearchSpec | None = None
    seeds: Seeds = Field(default_factory=lambda: [0])
    trial: TrialSpec
    budget: BudgetSpec | None = None
    tracking: list[TrackerSpec] = Field(default_factory=list)
    article: str | None = None
    overrides: dict[str, Any] = Field(default_factory=dict, alias="set")

    def level_names(self) -> dict[str, list[str]]:
        """Give the names of every axis' levels, in the order they were written."""
        return {axis: [level_name(level) for level in levels] for axis, levels in self.axes.items()}

    def baseline_levels(self) -> dict[str, str]:
        """Give the level of every axis that all cells are compared with."""
        return {axis: self.baseline.get(axis, level_name(levels[0])) for axis, levels in self.axes.items()}

    @property
    def first_seeds(self) -> list[int]:
        """Give the seeds that every cell is trained with."""
        return first_seeds(self.seeds)

    def rungs(self) -> tuple[int, ...]:
        """Give the steps at which losers are stopped; none without a scheduler, or where rungs count otherwise."""
        if self.scheduler.use == "none" or self.scheduler.unit != "steps":
            return ()
        return tuple(map(int, self.scheduler.rungs(self.trial.eval_every, self.trial.steps)))


def level_name(level: str | InlineLevel) -> str:
    """Give the name of a level, however it was written."""
    return level if isinstance(level, str) else level.name


# Stand-ins for required sections that are missing or wrong, so that the rules still see the others.
_STAND_INS: dict[str, Any] = {
    "name": "unnamed",
    "base": "embedded",
    "axes": {"none": ["none"]},
    "trial": {"steps": 1, "eval_every": 1},
}


def load_spec(path: Path) -> tuple[SweepSpec, Source]:
    """Read a sweep.

    Raises:
        ConfigError: Every problem at once: keys, types, values, rules between sections, unknown levels.
    """
    source = read_yaml(path)
    return parse_spec(source), source


def parse_spec(source: Source) -> SweepSpec:
    """Validate a sweep that has been read; raises as `load_spec`."""
    data = source.data
    if not isinstance(data, Mapping):
        message = f"must be a mapping with name, base, axes and trial, got {data!r}"
        raise ConfigError([Problem("", message, source.file, 1)])
    spec, wrong, found = _validate(dict(data), source)
    for needed, rule in rules.RULES:
        if not wrong.intersection(needed):
            found += rule(spec, source)
    if found:
        raise ConfigError(sorted(found, key=lambda problem: problem.line or 0))
    return spec


def _validate(data: dict[str, Any], source: Source) -> tuple[SweepSpec, set[str], list[Problem]]:
    """Validate; where sections are wrong, say so and go on with the others."""
    try:
        return SweepSpec.model_validate(data), set(), []
    except ValidationError as error:
        problems = problems_of(error, SweepSpec, source, data)
        wrong = {str(item["loc"][0]) for item in error.errors()}
    good = {key: value for key, value in data.items() if str(key) not in wrong}
    stand_ins = {key: value for key, value in _STAND_INS.items() if key in wrong}
    return SweepSpec.model_validate(good | stand_ins), wrong, problems
