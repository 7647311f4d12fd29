"""What every key of a model means, read from the `Args:` of its docstring, and the JSON schema that says so."""

from __future__ import annotations

import inspect
import re
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

Json = dict[str, Any]
_ENTRY = re.compile(r" {4}(\w+): (.*)")


def parse(doc: str) -> tuple[str, dict[str, str]]:
    """Split a docstring into its prose, without paragraphs on sources, and the meaning of each key."""
    prose, _, listed = inspect.cleandoc(doc).partition("\nArgs:\n")
    paragraphs = [" ".join(part.split()) for part in prose.split("\n\n") if not part.lstrip().startswith("Source:")]
    told: dict[str, str] = {}
    for line in listed.splitlines():
        entry = _ENTRY.fullmatch(line)
        if entry:
            told[entry[1]] = entry[2]
        elif told and line.strip():
            told[list(told)[-1]] += f" {line.strip()}"
    return "\n\n".join(filter(None, paragraphs)), told


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Give the meaning of every key, a base class' where the model says nothing itself."""
    found: dict[str, str] = {}
    for part in reversed(model.__mro__):
        if issubclass(part, BaseModel) and part.__doc__:
            found |= parse(part.__doc__)[1]
    return found


class Documented(GenerateJsonSchema):
    """Pydantic's schema with the meaning of every key, every default, and no titles."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """Describe a model and its keys."""
        found, model = super().model_schema(schema), schema["cls"]
        told = meanings(model)
        found.pop("title", None)
        found["description"] = parse(model.__doc__ or "")[0]
        for name, info in model.model_fields.items():
            key = found["properties"][info.alias or name]
            key.pop("title", None)
            key.pop("default", None)
            if name in told:
                key["description"] = told[name]
            if not info.is_required():
                key |= _default(info.get_default(call_default_factory=True))
        return found


def _default(value: Any) -> Json:
    """Give a default as a keyword; a section that has only defaults needs none."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_defaults=True)
        return {"default": value} if value else {}
    return {"default": value}


def schema_of(model: type[BaseModel]) -> tuple[Json, dict[str, Json]]:
    """Give the schema of a model, and those of the sections that it refers to, by name."""
    schema = model.model_json_schema(schema_generator=Documented)
    defs = schema.pop("$defs", {})
    for part in (schema, *defs.values()):
        _close(part)
    return schema, defs


def _close(part: Any) -> None:
    """Let a mapping whose keys follow a pattern have no others, which pydantic refuses but its schema allows."""
    if isinstance(part, dict):
        if "patternProperties" in part:
            part.setdefault("additionalProperties", False)
        for inner in part.values():
            _close(inner)
    elif isinstance(part, list):
        for inner in part:
            _close(inner)
