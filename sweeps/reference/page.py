"""The reference as a page: every key of a sweep and of a run with its type, default and meaning."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from prx import registry
from prx.config import PART_KINDS
from sweeps.reference.meaning import Json, schema_of
from sweeps.reference.rules import rule, value
from sweeps.reference.run import run_schema
from sweeps.reference.sweep import name_shipped
from sweeps.spec import SweepSpec
from sweeps.techniques import known, levels, written

INTRO = Path(__file__).with_name("intro.md")
AFTER_RUN = """\
Every setting below may be written in a base, in `set` and in a level's `patch`; what the sweep decides elsewhere
(`name`, `seed`, `steps`, `evaluation.every`, `infrastructure.workers`, `infrastructure.zero_stage`) in a base only.
In `set` and `patch` keys may be dotted: `losses.repa.weight: 2.0`. A technique named by another `use` than the base's
replaces it whole; `null` under `losses`, `data.captions` or `data.mixture` takes an entry out."""


def page() -> str:
    """Write the reference."""
    sweep, sweep_defs = schema_of(SweepSpec)
    name_shipped(sweep["properties"])
    run, run_defs = run_schema()
    links = {kind: f"[a technique](#{kind})" for kind in registry.KINDS}
    parts = [
        INTRO.read_text(encoding="utf-8").rstrip(),
        "## A sweep", *_sections("", sweep, sweep_defs, dict(links)),
        "## What a base, `set` and `patch` may hold", AFTER_RUN, *_sections("", run, run_defs, links),
        "## Techniques", *_techniques(run_defs, links),
        "## Axes and levels", *_levels(),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def slug(heading: str) -> str:
    """Give the anchor that a heading has on the pages of code hosts."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _sections(path: str, schema: Json, defs: dict[str, Json], links: dict[str, str]) -> Iterator[str]:
    """Write the table of a section, then those of the sections in it; a section of two places has its table once."""
    inner = _headed({name: place for name, place in _inner(path, schema, defs) if name not in links}, defs)
    links |= {name: f"[{heading}](#{slug(heading)})" for name, (_, heading) in inner.items()}
    yield schema["description"]
    yield table(schema, links)
    for name, (place, heading) in inner.items():
        yield f"### {heading}"
        yield from _sections(place, defs[name], defs, links)


def _headed(places: dict[str, str], defs: dict[str, Json]) -> dict[str, tuple[str, str]]:
    """Give each definition its place and its heading, which says the form where one place has several."""
    forms = Counter(places.values())
    return {
        name: (place, f"`{place}`" if forms[place] == 1 else f"`{place}` with `{_form(defs[name])}`")
        for name, place in places.items()
    }


def _form(schema: Json) -> str:
    """Tell forms of one place apart: by what they use, else by the first key."""
    key, found = next(iter(schema["properties"].items()))
    return f"{key}: {found['const']}" if "const" in found else key


def _inner(path: str, schema: Json, defs: dict[str, Json]) -> Iterator[tuple[str, str]]:
    """List the sections that a section's keys refer to: (definition, path)."""
    for key, found in schema["properties"].items():
        yield from _refs(f"{path}.{key}".lstrip("."), found, defs)


def _refs(place: str, schema: Json, defs: dict[str, Json]) -> Iterator[tuple[str, str]]:
    name = schema.get("$ref", "").rpartition("/")[2]
    if name in defs:
        yield name, place
    for choice in schema.get("anyOf", []) + schema.get("oneOf", []):
        yield from _refs(place, choice, defs)
    if "items" in schema:
        yield from _refs(f"{place}[]", schema["items"], defs)
    for inner in (schema.get("additionalProperties"), *schema.get("patternProperties", {}).values()):
        if isinstance(inner, dict):
            yield from _refs(f"{place}.NAME", inner, defs)


def table(schema: Json, links: dict[str, str], ranges: dict[str, str] | None = None) -> str:
    """Write a table of a section's keys, for a technique with the ranges that it declares."""
    columns = ["key", "takes", "default", *(["declared range"] if ranges else []), "meaning"]
    rows = [columns, ["---"] * len(columns)]
    for key, found in schema["properties"].items():
        default = "required" if key in schema.get("required", []) else _default(found)
        declared = [ranges.get(key, "")] if ranges else []
        rows.append([f"`{key}`", rule(found, links), default, *declared, found.get("description", "")])
    return _lines(rows)


def _lines(rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _default(schema: Json) -> str:
    return value(schema["default"]) if "default" in schema else ""


def _techniques(defs: dict[str, Json], links: dict[str, str]) -> Iterator[str]:
    yield "`prx-sweep techniques NAME` prints the same with what each needs and cannot be with."
    sections = {kind: section for section, kind in PART_KINDS.items()}
    for kind, items in groupby(known(), key=lambda item: item.kind):
        yield f"### {kind}"
        place = f"{sections[kind]}.NAME" if kind == "loss" else sections[kind]
        yield f"Under `{place}`, chosen by `use`."
        for item in items:
            schema = defs[f"{kind}.{item.name}"]
            yield f"#### `use: {item.name}`"
            yield "\n\n".join([item.summary, f"Source: {item.part.SOURCE}.", schema["description"]])
            settings = {key: found for key, found in schema["properties"].items() if key != "use"}
            ranges = {key: f"`{written(found)}`" for key, found in item.part.SEARCH.items()}
            own = list(_own_sections(place, {**schema, "properties": settings}, defs, links))
            if settings:
                yield table({**schema, "properties": settings}, links, ranges)
            yield from own


def _own_sections(place: str, schema: Json, defs: dict[str, Json], links: dict[str, str]) -> Iterator[str]:
    for name, inner in _inner(place, schema, defs):
        if name not in links:
            links[name] = f"[`{inner}`](#{slug(inner)})"
            yield f"#### `{inner}`"
            yield from _sections(inner, defs[name], defs, links)


def _levels() -> Iterator[str]:
    yield "Levels that a sweep may name. `sweeps/catalogue/` says what each of them writes, and where it comes from."
    for catalogue, found in groupby(levels(), key=lambda item: item[0]):
        rows = [["axis", "level", "what it does"], ["---"] * 3]
        rows += [[f"`{axis}`", f"`{level}`", entry["summary"]] for _, axis, level, entry in found]
        yield f"### Catalogue `{catalogue}`"
        yield _lines(rows)
