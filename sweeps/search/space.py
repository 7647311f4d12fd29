"""From ranges as written to distributions that Optuna asks for, cell by cell, and from answers to settings.

Steps are snapped to evaluations: runs that differ only in when a technique stops share every boundary before,
and a boundary is where training can part. Continuous values are rounded to four significant digits, so that a
point is what its name says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from prx import registry
from prx.config import PART_KINDS
from prx.interfaces import Choice, LogUniform
from prx.registry import choices
from sweeps.search.spec import Range, share
from sweeps.spec import TrialSpec

STEP_KEYS = ("stop_step", "dense_from")
"""Keys that hold the step at which a schedule changes; their values share prefixes."""
NEVER = "never"
DIGITS = 4

Space = dict[str, BaseDistribution]
_ABSENT = object()


class RangeError(ValueError):
    """A range means nothing in this sweep; the message follows the path."""


def is_step(path: str) -> bool:
    """Say whether a path holds a step of the schedule."""
    return path.rpartition(".")[2] in STEP_KEYS


def lookup(content: Any, path: str) -> Any:
    """Give the value at a path of a configuration's content, `_ABSENT` (see `has`) where there is none."""
    for key in path.split("."):
        if not isinstance(content, Mapping) or key not in content:
            return _ABSENT
        content = content[key]
    return content


def has(content: Any, path: str) -> bool:
    """Say whether a configuration has a path: a part that is off has none of its settings."""
    return lookup(content, path) is not _ABSENT


def with_values(content: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a configuration's content with other values at some of its paths."""
    result = dict(content)
    for path, value in values.items():
        target, keys = result, path.split(".")
        for key in keys[:-1]:
            target[key] = dict(target[key])
            target = target[key]
        target[keys[-1]] = value
    return result


def declared(content: Mapping[str, Any], path: str) -> dict[str, Range]:
    """Give the ranges that a technique declares for a path, or for all its settings where the path is the part.

    Raises:
        RangeError: The path belongs to no technique, or its technique declares no range for it.
    """
    part, prefix, key = _part(content, path)
    ranges = part.SEARCH
    if key is not None and key not in ranges:
        raise RangeError(f"has no declared range; {choices(key, sorted(ranges))}; or write the range")
    return {f"{prefix}.{name}": _written(found) for name, found in ranges.items() if key in (None, name)}


def _part(content: Mapping[str, Any], path: str) -> tuple[Any, str, str | None]:
    keys = path.split(".")
    size = 2 if keys[0] == "losses" else 1
    kind, prefix = PART_KINDS.get(keys[0]), ".".join(keys[:size])
    if kind is None or len(keys) not in (size, size + 1):
        raise RangeError("is no setting of a technique, so nothing declares a range for it; write the range")
    use = lookup(content, f"{prefix}.use")
    return registry.resolve(kind, use), prefix, keys[size] if len(keys) > size else None


def _written(found: Any) -> Range:
    if isinstance(found, Choice):
        return Range("choice", values=tuple(found.values))
    return Range("log_uniform" if isinstance(found, LogUniform) else "uniform", found.low, found.high)


def distribution(path: str, written: Range, trial: TrialSpec) -> BaseDistribution:
    """Make what Optuna asks for.

    Raises:
        RangeError: A step lies outside the run, or the range holds no evaluation.
    """
    if is_step(path):
        return _steps(written, trial)
    if written.kind == "choice":
        return CategoricalDistribution(written.values)
    if isinstance(written.low, str):
        raise RangeError(f"is no step of the run, so {written.low} means nothing; write numbers")
    if written.kind == "int_uniform":
        return IntDistribution(written.low, _last(written), step=int(written.step or 1))
    low, high = float(written.low), float(_last(written) if written.step else written.high)
    return FloatDistribution(low, high, log=written.kind == "log_uniform", step=written.step)


def _last(written: Range) -> Any:
    """Give the highest value that whole steps reach."""
    if written.step is None:
        return written.high
    count = math.floor((written.high - written.low) / written.step + 1e-9)
    return written.low + count * (int(written.step) if written.kind == "int_uniform" else written.step)


def _steps(written: Range, trial: TrialSpec) -> BaseDistribution:
    every = trial.eval_every
    if written.kind == "choice":
        found = dict.fromkeys(snapped(value, trial) for value in written.values)
        return CategoricalDistribution(tuple(found))
    if written.kind == "log_uniform":
        raise RangeError("is a step, whose evaluations lie evenly: write int_uniform or choice, not log_uniform")
    low, high = (_step(bound, trial) for bound in (written.low, written.high))
    first, last = math.ceil(low / every) * every, min(math.floor(high / every) * every, trial.steps - every)
    if first > last:
        raise RangeError(
            f"must hold an evaluation before the run's end (one every {every} of {trial.steps} steps), "
            f"got {low:g}..{high:g}"
        )
    stride = every if written.step is None else max(1, round(_step_size(written, trial) / every)) * every
    return IntDistribution(first, first + (last - first) // stride * stride, step=stride)


def _step_size(written: Range, trial: TrialSpec) -> float:
    return float(written.step or trial.eval_every)


def _step(value: Any, trial: TrialSpec) -> float:
    """Read a step or a share of the run.

    Raises:
        RangeError: It lies outside the run.
    """
    part = share(value)
    found = part * trial.steps if part is not None else value
    number = isinstance(found, (int, float)) and not isinstance(found, bool)
    if not number or not 0 < found < trial.steps:
        rule = f"must be a step inside the run (1..{trial.steps - 1}), a share of it such as 20%, or {NEVER}"
        raise RangeError(f"{rule}, got {value!r}")
    return float(found)


def snapped(value: Any, trial: TrialSpec) -> int | str:
    """Move a step to the nearest evaluation that lies inside the run; raises as `_step`."""
    if value == NEVER:
        return NEVER
    every = trial.eval_every
    nearest = math.floor(_step(value, trial) / every + 0.5) * every
    if every >= trial.steps:
        raise RangeError(f"needs an evaluation before the run's end, got eval_every {every} of {trial.steps} steps")
    return min(max(nearest, every), trial.steps - every)


def settled(found: BaseDistribution, value: Any) -> Any:
    """Round a continuous value to what its name will say."""
    if not isinstance(found, FloatDistribution) or found.step is not None:
        return value
    return min(max(float(f"{value:.{DIGITS}g}"), found.low), found.high)


def contains(found: BaseDistribution, value: Any) -> bool:
    """Say whether a value can be suggested."""
    if isinstance(found, CategoricalDistribution):
        return any(value == choice and type(value) is type(choice) for choice in found.choices)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not found.low <= value <= found.high:  # type: ignore[attr-defined]
        return False
    step = found.step  # type: ignore[attr-defined]
    if isinstance(found, IntDistribution) and value != int(value):
        return False
    return step is None or math.isclose((value - found.low) / step, round((value - found.low) / step), abs_tol=1e-9)  # type: ignore[attr-defined]


def listed(found: BaseDistribution) -> Sequence[Any] | None:
    """List every value of a distribution; None where there are endlessly many."""
    if isinstance(found, CategoricalDistribution):
        return list(found.choices)
    if isinstance(found, IntDistribution):
        return range(found.low, found.high + 1, found.step)
    if isinstance(found, FloatDistribution) and found.step is not None:
        count = round((found.high - found.low) / found.step) + 1
        return [min(found.low + index * found.step, found.high) for index in range(count)]
    return None


def extremes(found: BaseDistribution) -> Iterator[Any]:
    """List the values that a range has to keep valid: every choice, or both ends."""
    if isinstance(found, CategoricalDistribution):
        yield from found.choices
    else:
        yield found.low  # type: ignore[attr-defined]
        yield found.high  # type: ignore[attr-defined]


def is_number(found: BaseDistribution) -> bool:
    """Say whether every value of a distribution is a number: a column of numbers in the results."""
    if not isinstance(found, CategoricalDistribution):
        return True
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in found.choices)
