"""The schema of a sweep: what pydantic accepts, with the names that ship with the package as suggestions."""

from __future__ import annotations

from collections import defaultdict

from prx.compose import preset_names
from prx.config import NOT_IDENTITY
from sweeps.article import tables
from sweeps.catalogue import catalogue_names
from sweeps.metrics import METRICS
from sweeps.patches import DECIDED
from sweeps.reference.meaning import Json, schema_of
from sweeps.reference.run import keyed, partial, patch, paths, ref, run_schema
from sweeps.spec import SweepSpec
from sweeps.techniques import levels

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def sweep_schema() -> Json:
    """Give the schema that editors complete a sweep by."""
    schema, defs = schema_of(SweepSpec)
    run, parts = partial(*run_schema())
    assert not defs.keys() & parts.keys(), defs.keys() & parts.keys()
    defs |= parts
    defs["patch"] = patch(run, parts)
    keys = schema["properties"]
    name_shipped(keys)
    keys["axes"]["properties"] = _axes()
    keys["objectives"]["properties"] = {name: {"const": metric.better} for name, metric in METRICS.items()}
    keys["exclude"]["items"] |= {"required": ["because"], "minProperties": 2}
    keys["set"] = {**ref("patch"), "description": keys["set"]["description"]}
    level = defs["InlineLevel"]["properties"]
    level["patch"] = {**ref("patch"), "description": level["patch"]["description"]}
    search = defs["SearchSpec"]["properties"]
    defs["range"] = search["space"]["additionalProperties"]
    search["space"] = {**search["space"], **_searchable(run, parts)}
    return {"$schema": DRAFT, "title": "A sweep of prx-sweeps", **schema, "$defs": dict(sorted(defs.items()))}


def name_shipped(keys: Json) -> None:
    """Put the names that ship with the package beside what a sweep may name otherwise."""
    keys["base"]["anyOf"] = [{"enum": preset_names()}, {"type": keys["base"].pop("type")}]
    keys["catalogue"]["anyOf"] = [{"enum": catalogue_names()}, *keys["catalogue"]["anyOf"]]
    keys["article"]["anyOf"] = [{"enum": list(tables())}, {"type": "null"}]


def _searchable(run: Json, parts: dict[str, Json]) -> Json:
    """Suggest the paths that a search may move."""
    free = [path for path, _ in paths(run, parts) if path not in DECIDED and path[0] not in NOT_IDENTITY]
    return keyed([(path, ref("range")) for path in free])


def _axes() -> Json:
    """Suggest for every axis of the catalogues its levels; another name, or one written out, is as good."""
    told: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for catalogue, axis, level, entry in levels():
        told[axis][level][catalogue] = entry["summary"]
    return {
        axis: {"items": {"anyOf": [*(_level(name, found) for name, found in known.items()), *_OTHERS]}}
        for axis, known in told.items()
    }


_OTHERS: list[Json] = [{"type": "string"}, ref("InlineLevel")]


def _level(name: str, summaries: dict[str, str]) -> Json:
    texts = dict.fromkeys(summaries.values())
    told = texts if len(texts) == 1 else [f"{catalogue}: {text}" for catalogue, text in summaries.items()]
    return {"const": name, "description": "; ".join(told)}
