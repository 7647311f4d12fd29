"""The schema of a run's configuration: whole, as the file of a base, and as a patch with dotted keys."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from prx import registry
from prx.config import PART_KINDS, RunConfig
from prx.yamlsource import REMOVABLE
from sweeps.patches import DECIDED
from sweeps.reference.meaning import Json, schema_of

Path = tuple[str | None, ...]
"""Keys from the top; None stands for a name that the user gives."""


def ref(name: str) -> Json:
    """Refer to a definition."""
    return {"$ref": f"#/$defs/{name}"}


def run_schema() -> tuple[Json, dict[str, Json]]:
    """Give the schema of `RunConfig` and its definitions; a technique is `KIND.NAME`, any of a kind `KIND`."""
    schema, defs = schema_of(RunConfig)
    for section, kind in PART_KINDS.items():
        schema["properties"][section] = _replaced(schema["properties"][section], ref("PartConfig"), ref(kind))
    del defs["PartConfig"]
    for kind in registry.KINDS:
        for name in registry.names(kind):
            technique = registry.resolve(kind, name)
            found, inner = schema_of(technique.Config)
            found["properties"]["use"] = {"const": name, "description": "Which technique."}
            defs |= {**inner, f"{kind}.{name}": found}
    return schema, defs


def _replaced(part: Any, old: Any, new: Any) -> Any:
    if isinstance(part, dict):
        if old.items() <= part.items():
            return {**{key: value for key, value in part.items() if key not in old}, **new}
        return {key: _replaced(value, old, new) for key, value in part.items()}
    return [_replaced(value, old, new) for value in part] if isinstance(part, list) else part


def partial(schema: Json, defs: dict[str, Json]) -> tuple[Json, dict[str, Json]]:
    """Let a configuration be laid over another: nothing is required, what a user named can be taken out.

    A technique that is named by `use` takes its own settings; without, those of any technique of its kind, because
    the base may name it.
    """
    schema, defs = deepcopy(schema), deepcopy(defs)
    for part in (schema, *defs.values()):
        part.pop("required", None)
    for keys in REMOVABLE:
        mapping = next(iter(_found(schema, defs, tuple(map(str, keys)))))
        mapping["additionalProperties"] = {"anyOf": [mapping["additionalProperties"], {"type": "null"}]}
    for kind in registry.KINDS:
        defs |= _any_of_kind(kind, defs)
    return schema, defs


def _found(schema: Json, defs: dict[str, Json], keys: tuple[str, ...]) -> Iterator[Json]:
    """Find the mappings with names of the user's at a path."""
    for part in alternatives(schema, defs):
        if keys and keys[0] in part.get("properties", {}):
            yield from _found(part["properties"][keys[0]], defs, keys[1:])
        elif not keys and isinstance(part.get("additionalProperties"), dict):
            yield part


def alternatives(schema: Json, defs: dict[str, Json]) -> Iterator[Json]:
    """List the mappings that a value may be, the references followed."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        yield from alternatives(defs[name], defs)
        if f"{name}.any" in defs:
            yield defs[f"{name}.any"]
    elif "anyOf" in schema:
        for choice in schema["anyOf"]:
            yield from alternatives(choice, defs)
    elif schema.get("type") == "object":
        yield schema


def _any_of_kind(kind: str, defs: dict[str, Json]) -> dict[str, Json]:
    """Make the definition of a kind, and of the settings that one of its techniques has."""
    names = registry.names(kind)
    settings: dict[str, list[Json]] = defaultdict(list)
    for name in names:
        for key, value in defs[f"{kind}.{name}"]["properties"].items():
            if key != "use":
                settings[key].append(value)
    one = [
        {"if": {"properties": {"use": {"const": name}}, "required": ["use"]}, "then": ref(f"{kind}.{name}")}
        for name in names
    ]
    none = {"if": {"not": {"required": ["use"]}}, "then": ref(f"{kind}.any")}
    use = {"enum": names, "description": "Which technique."}
    return {
        kind: {"type": "object", "properties": {"use": use}, "allOf": [*one, none]},
        f"{kind}.any": {
            "type": "object",
            "properties": {key: _joined(values) for key, values in settings.items()},
            "additionalProperties": False,
        },
    }


def _joined(values: list[Json]) -> Json:
    """Give a setting that techniques share: what any of them takes, all meanings, no default."""
    rules, told = list[Json](), dict[str, None]()
    for value in values:
        told[value.get("description", "")] = None
        rule = {key: item for key, item in value.items() if key not in ("default", "description")}
        if rule not in rules:
            rules.append(rule)
    rule = rules[0] if len(rules) == 1 else {"anyOf": rules}
    return {**rule, "description": " / ".join(filter(None, told))}


def paths(schema: Json, defs: dict[str, Json], above: Path = ()) -> Iterator[tuple[Path, Json]]:
    """List every path of a configuration, and what may stand there."""
    for part in alternatives(schema, defs):
        for key, value in part.get("properties", {}).items():
            yield (*above, key), value
            yield from paths(value, defs, (*above, key))
        if isinstance(part.get("additionalProperties"), dict):
            yield (*above, None), part["additionalProperties"]
            yield from paths(part["additionalProperties"], defs, (*above, None))


def keyed(entries: list[tuple[Path, Json]]) -> Json:
    """Make a mapping whose keys are dotted paths."""
    fixed: Json = {}
    named: Json = {}
    for path, value in entries:
        if None in path:
            named["^" + r"\.".join("[^.]+" if key is None else re.escape(key) for key in path) + "$"] = value
        else:
            fixed[".".join(map(str, path))] = value
    return {"type": "object", "properties": fixed, "patternProperties": named, "additionalProperties": False}


def patch(schema: Json, defs: dict[str, Json]) -> Json:
    """Give the schema of a patch: every path of a configuration but those that the sweep decides elsewhere."""
    entries = [(path, _without(path, value)) for path, value in paths(schema, defs) if path not in DECIDED]
    return {**keyed(entries), "description": "Configuration values; keys may be dotted."}


def _without(path: Path, value: Json) -> Json:
    """Forbid, inside of a section, what the sweep decides elsewhere."""
    decided = [keys[-1] for keys in DECIDED if keys[:-1] == path]
    if not decided:
        return value
    return {"allOf": [value, {"properties": dict.fromkeys(decided, False)}]}


def base_schema() -> Json:
    """Give the schema of the file of a run, which may name a base of its own."""
    schema, defs = partial(*run_schema())
    base = {"type": "string", "description": "Preset, or YAML file beside this one, that this one is laid over."}
    return {**schema, "properties": {"base": base, **schema["properties"]}, "$defs": defs}
