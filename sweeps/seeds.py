"""The seeds of a sweep: a list for every cell, or few at first and more for those that matter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, PlainValidator, PositiveInt, TypeAdapter

from prx.strict import Strict

Seed = Annotated[int, Field(ge=0)]


class AdaptiveSeeds(Strict):
    """Few seeds for every cell, then more, one at a time, for the best that cannot be told apart.

    Args:
        start: Seeds of every cell, 0 and up.
        add_to_top: Contenders that get more seeds, the leader among them; the baseline always does.
        up_to: Seeds of a cell at the most.
    """

    start: PositiveInt = 1
    add_to_top: Annotated[int, Field(ge=2)] = 3
    up_to: PositiveInt = 5


_Listed = Annotated[list[Seed], Field(min_length=1, strict=True)]
_LISTED: TypeAdapter[list[int]] = TypeAdapter(_Listed)


def _seeds(value: Any) -> list[int] | AdaptiveSeeds:
    if isinstance(value, AdaptiveSeeds):
        return value
    if isinstance(value, Mapping):
        return AdaptiveSeeds.model_validate(dict(value))
    return _LISTED.validate_python(value, strict=True)


Seeds = Annotated[list[int] | AdaptiveSeeds, PlainValidator(_seeds, json_schema_input_type=_Listed | AdaptiveSeeds)]


def first_seeds(seeds: list[int] | AdaptiveSeeds) -> list[int]:
    """Give the seeds that every cell is trained with."""
    return list(range(seeds.start)) if isinstance(seeds, AdaptiveSeeds) else seeds
