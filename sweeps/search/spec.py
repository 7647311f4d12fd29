"""The `search` section of a sweep: what is searched, how, and how many points are trained.

search:
  sampler: tpe
  trials: 40
  space:
    losses.repa.weight: {log_uniform: [0.05, 2.0]}
    losses.repa.stop_step: {choice: [20%, 40%, 60%, never]}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, PositiveInt

from prx.registry import choices
from prx.strict import PositiveFloat, Strict
from sweeps.fields import choice

SAMPLERS = ("tpe", "multivariate_tpe", "cma_es", "nsga2", "random", "grid")
WITHIN = ("cell", "all")
RANGES = ("uniform", "log_uniform", "int_uniform")
JOURNAL = "journal"
DECLARED = "default"
SMALLEST_POPULATION = 4

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Range:
    """What one path may be. `kind` is choice, one of `RANGES`, or default: what the technique declares.

    A bound or a value such as `20%` is a share of the run, for paths that are steps.
    """

    kind: str
    low: Any = None
    high: Any = None
    step: float | None = None
    values: tuple[Scalar, ...] = ()


def parse_range(value: Any) -> Range:
    """Read a range as it is written.

    Raises:
        ValueError: It has another form, or its bounds enclose nothing.
    """
    if value == DECLARED:
        return Range(DECLARED)
    known = [*RANGES, "choice"]
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"must be {DECLARED!r} or a mapping with one of {', '.join(known)}, got {value!r}")
    unknown = [key for key in value if key not in (*known, "step")]
    if unknown:
        raise ValueError(f"unknown key; {choices(unknown[0], [*known, 'step'])}")
    kinds = [key for key in value if key != "step"]
    if len(kinds) != 1:
        raise ValueError(f"must have one of {', '.join(known)}, got {', '.join(kinds) or 'none of them'}")
    found = _choice(value) if kinds[0] == "choice" else _between(kinds[0], value[kinds[0]], value.get("step"))
    return found


def _choice(value: Mapping[str, Any]) -> Range:
    listed = value["choice"]
    if "step" in value:
        raise ValueError("step belongs to a range, not to a choice")
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"choice must be a list of values, got {listed!r}")
    for index, item in enumerate(listed):
        if isinstance(item, (list, dict)):
            raise ValueError(f"choice must list plain values, got {item!r}")
        if any(item == other and type(item) is type(other) for other in listed[:index]):
            raise ValueError(f"choice must list distinct values, got {item!r} twice")
    return Range("choice", values=tuple(listed))


def _between(kind: str, bounds: Any, step: Any) -> Range:
    if not isinstance(bounds, list) or len(bounds) != 2:
        raise ValueError(f"{kind} must be [low, high], got {bounds!r}")
    low, high = (bound if share(bound) is not None else _number(kind, bound) for bound in bounds)
    mixed = isinstance(low, str) != isinstance(high, str)
    if mixed:
        raise ValueError(f"{kind} must have both bounds in steps or both as shares of the run, got {bounds!r}")
    if _size(low) >= _size(high):
        raise ValueError(f"{kind} must have low < high, got {bounds!r}")
    if kind == "log_uniform" and (isinstance(low, str) or low <= 0):
        raise ValueError(f"log_uniform must have bounds above 0, got {bounds!r}")
    if step is not None and (not _finite(step) or step <= 0 or kind == "log_uniform"):
        raise ValueError(f"step must be a number above 0, for uniform or int_uniform, got {step!r}")
    if (
        kind == "int_uniform"
        and not isinstance(low, str)
        and not all(isinstance(x, int) for x in (low, high, step or 1))
    ):
        raise ValueError(f"int_uniform must have whole numbers, got {bounds!r}, step {step!r}")
    return Range(kind, low, high, step)


def _size(bound: Any) -> Any:
    part = share(bound)
    return bound if part is None else part


def _number(kind: str, bound: Any) -> float | int:
    if not _finite(bound):
        raise ValueError(f"{kind} must have finite numbers as bounds, got {bound!r}")
    return bound


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def share(value: Any) -> float | None:
    """Read `20%` as 0.2; None for what is no share."""
    if not isinstance(value, str) or not value.endswith("%"):
        return None
    try:
        return float(value[:-1]) / 100
    except ValueError:
        return None


Share = Annotated[str, Field(pattern=r"^[-+0-9.eE]+%$")]
Bounds = Annotated[list[float | Share], Field(min_length=2, max_length=2)]


class UniformRange(Strict):
    """A number, every value as likely.

    Args:
        uniform: Lowest and highest value; shares of the run (`20%`) for settings that are steps.
        step: Distance between values.
    """

    uniform: Bounds
    step: PositiveFloat | None = None


class LogUniformRange(Strict):
    """A number above 0, as likely in every decade.

    Args:
        log_uniform: Lowest and highest value.
    """

    log_uniform: Annotated[list[PositiveFloat], Field(min_length=2, max_length=2)]


class IntUniformRange(Strict):
    """A whole number, every one as likely.

    Args:
        int_uniform: Lowest and highest value; shares of the run (`20%`) for settings that are steps.
        step: Distance between values.
    """

    int_uniform: Annotated[list[int | Share], Field(min_length=2, max_length=2)]
    step: PositiveInt | None = None


class ChoiceRange(Strict):
    """One of the values.

    Args:
        choice: The values; shares of the run (`20%`) for settings that are steps.
    """

    choice: Annotated[list[Scalar], Field(min_length=1)]


WrittenRange = Literal["default"] | UniformRange | LogUniformRange | IntUniformRange | ChoiceRange
"""The forms of a range. `parse_range` reads them; this is what editors are told, where a union's errors say little."""
_as_written = PlainValidator(parse_range, json_schema_input_type=WrittenRange)


def _storage(value: str) -> str:
    if value != JOURNAL and "://" not in value:
        raise ValueError(f"must be {JOURNAL!r}, a file in the sweep's folder, or the URL of a database, got {value!r}")
    return value


class SearchSpec(Strict):
    """What is searched beside the design.

    Args:
        sampler: Who chooses the points.
        trials: Points of each study: of each cell with `within: cell`. The design's own cells come on top.
            `grid` needs none: it takes every point.
        batch: Points of a study that train side by side. What comes after them knows how they did.
        seed: Seed of the sampler.
        within: `cell` searches in every cell of the design that has one of the paths; `all` searches one
            space of levels and settings together, and trains of the design only the baseline.
        startup: Points chosen at random before the sampler knows enough to choose.
        space: What is searched: the path of a setting, and the values it may take.
        first: Points to try first; paths that one does not name are left to the sampler.
        storage: Where the Optuna study is kept: `journal`, a file in the sweep's folder, or a database's URL.
    """

    sampler: Annotated[str, choice(SAMPLERS)] = "tpe"
    trials: PositiveInt | None = None
    batch: PositiveInt | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    within: Annotated[str, choice(WITHIN)] = "cell"
    startup: PositiveInt | None = None
    space: Annotated[dict[str, Annotated[Range, _as_written]], Field(min_length=1)]
    first: list[dict[str, Scalar]] = Field(default_factory=list)
    storage: Annotated[str, AfterValidator(_storage)] = JOURNAL

    def batch_size(self, num_params: int) -> int:
        """Give the points of a wave of one study.

        CMA-ES and NSGA-II learn from whole generations, so their wave is one: for CMA-ES of 4 + ⌊3 ln n⌋ points
        for n numbers (Hansen 2016, arXiv:1604.00772).
        """
        if self.batch is not None:
            return self.batch
        if self.sampler == "cma_es":
            return 4 + math.floor(3 * math.log(max(1, num_params)))
        return {"tpe": 4, "multivariate_tpe": 4, "nsga2": 10}.get(self.sampler, self.trials or 1)

    def startup_size(self, num_params: int) -> int:
        """Give the points of a study that are known before anything is trained."""
        if self.trials is None or self.sampler == "random":
            return self.trials or 0
        default = 10 if self.sampler.endswith("tpe") else self.batch_size(num_params)
        return min(self.trials, self.startup or default)
