"""A JSON schema in words: what may be written, and what stands there when nothing is."""

from __future__ import annotations

import json
import math
from typing import Any

from sweeps.reference.meaning import Json

_TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
_PLURALS = {"integer": "whole numbers", "number": "numbers", "string": "texts"}


def value(written: Any) -> str:
    """Write a value as in YAML."""
    if isinstance(written, float) and written and (abs(written) < 1e-3 or abs(written) >= 1e6):
        mantissa, _, exponent = f"{written:e}".partition("e")
        return f"`{float(mantissa):g}e{int(exponent)}`"
    text = written if isinstance(written, str) and written else json.dumps(written, ensure_ascii=False)
    return f"`{text}`"


def rule(schema: Json, links: dict[str, str]) -> str:
    """Say what may stand in a place; a section is named by the link of its heading, where it has one.

    Args:
        schema: Of the place.
        links: Markdown by the name of a definition.
    """
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return links.get(name, "section")
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(rule(choice, links) for choice in schema["anyOf"]))
    if "const" in schema:
        return value(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(map(value, schema["enum"]))
    if schema.get("type") == "array":
        return _list(schema, links)
    if schema.get("type") == "object":
        return _mapping(schema, links)
    return _TYPES.get(schema.get("type", ""), "any value") + _range(schema)


def _list(schema: Json, links: dict[str, str]) -> str:
    items = schema.get("items", {})
    low, high = schema.get("minItems"), schema.get("maxItems")
    count = f"{low} " if low is not None and low == high else ""
    plural = _PLURALS.get(items.get("type", ""))
    inner = plural + _range(items) if plural and "enum" not in items else rule(items, links)
    return f"list of {count}{inner}" if plural or not count else f"list of {count.strip()}, each {inner}"


def _mapping(schema: Json, links: dict[str, str]) -> str:
    inner = schema.get("additionalProperties")
    if not isinstance(inner, dict):
        inner = next(iter(schema.get("patternProperties", {}).values()), {})
    keys = schema.get("propertyNames", {}).get("enum")
    named = f" of {', '.join(map(value, keys))}" if keys else ""
    return f"mapping{named} to {rule(inner, links)}" if inner else "mapping"


def _range(schema: Json) -> str:
    """Write the bounds of a number as an interval or as one comparison."""
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if schema.get("type") == "integer" and above is not None:
        low, above = above + 1, None
    lowest, highest = low if low is not None else above, high if high is not None else below
    if lowest is not None and highest is not None:
        left, right = "[" if low is not None else "(", "]" if high is not None else ")"
        return f" in {left}{lowest:g}, {highest:g}{right}"
    if lowest is not None:
        return f" {'≥' if low is not None else '>'} {lowest:g}"
    if highest is not None and not math.isinf(highest):
        return f" {'≤' if high is not None else '<'} {highest:g}"
    return ""
