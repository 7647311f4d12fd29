"""Types of values that several sections of a sweep share, each with what it tells editors."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from prx.registry import choices


class Checked(ABC):
    """A rule on a text, as an annotation of its type."""

    @abstractmethod
    def __call__(self, value: str) -> str:
        """Give the text back.

        Raises:
            ValueError: It breaks the rule.
        """

    @abstractmethod
    def keywords(self) -> JsonSchemaValue:
        """Say the rule in JSON schema."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check the rule after the type."""
        return core_schema.no_info_after_validator_function(self, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Add the rule to the schema of the type."""
        return {**handler(core), **self.keywords()}


@dataclass(frozen=True)
class OneOf(Checked):
    """One of some words."""

    allowed: tuple[str, ...]

    def __call__(self, value: str) -> str:
        """Accept the word; else name the nearest and the others."""
        if value not in self.allowed:
            raise ValueError(choices(value, list(self.allowed)))
        return value

    def keywords(self) -> JsonSchemaValue:
        """List the words."""
        return {"enum": list(self.allowed)}


@dataclass(frozen=True)
class Spelled(Checked):
    """What a pattern matches as a whole; `rule` says it in words."""

    pattern: str
    rule: str

    def __call__(self, value: str) -> str:
        """Accept the text; else say the rule."""
        if not re.fullmatch(self.pattern, value):
            raise ValueError(f"must be {self.rule}, got {value!r}")
        return value

    def keywords(self) -> JsonSchemaValue:
        """Give the pattern."""
        return {"pattern": f"^(?:{self.pattern})$"}


def choice(allowed: tuple[str, ...]) -> OneOf:
    """Accept one of some words."""
    return OneOf(allowed)
