"""What can be varied: every technique of the registry, and the catalogue levels that use it."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from prx import registry
from prx.errors import UserError
from prx.interfaces import Choice, LogUniform, SearchRange, Technique, Uniform
from prx.yamlsource import Source
from sweeps.catalogue import catalogue_names, load_catalogue

_ARXIV = re.compile(r"arXiv:[0-9]{4}\.[0-9]{5}")


@dataclass(frozen=True)
class Known:
    """One technique. `levels` are those that use it, by catalogue, written `axis: level`."""

    kind: str
    name: str
    summary: str
    part: type[Technique]
    levels: dict[str, list[str]] = field(default_factory=dict)

    @property
    def ranges(self) -> list[str]:
        """Write its search ranges."""
        return [f"{key} {written(found)}" for key, found in self.part.SEARCH.items()]


def known() -> list[Known]:
    """List every technique of the registry, kind by kind."""
    used = _used()
    found = []
    for kind in registry.KINDS:
        for name in registry.names(kind):
            part = registry.resolve(kind, name)
            summary = (inspect.getdoc(part) or "").split("\n\n")[0].replace("\n", " ")
            found.append(Known(kind, name, summary, part, used.get((kind, name), {})))
    return found


def written(found: SearchRange) -> str:
    """Write a search range the way a sweep's YAML would."""
    if isinstance(found, Choice):
        return "{" + ", ".join(str(value) for value in found.values) + "}"
    name = {LogUniform: "log_uniform", Uniform: "uniform"}[type(found)]
    return f"{name} [{found.low:g}, {found.high:g}]"


def _used() -> dict[tuple[str, str], dict[str, list[str]]]:
    """Find the levels of the shipped catalogues by the techniques they use."""
    found: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for catalogue, axis, level, entry in levels():
        for use in dict.fromkeys(uses(entry["patch"])):
            found[use][catalogue].append(f"{axis}: {level}")
    return found


def levels() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """List (catalogue, axis, level, entry) of the shipped catalogues."""
    for catalogue in catalogue_names():
        for axis, entries in load_catalogue(catalogue, Source(None)).data.items():
            for level, entry in entries.items():
                yield catalogue, axis, level, entry


def uses(patch: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """List the techniques that a level's patch names: (kind, name)."""
    for key, value in patch.items():
        if isinstance(value, dict) and isinstance(value.get("use"), str):
            section = key.partition(".")[0]
            yield "loss" if section == "losses" else section, value["use"]


def find(name: str) -> list[Known]:
    """Find techniques by name.

    Raises:
        UserError: There is none of that name.
    """
    everything = known()
    found = [item for item in everything if item.name == name]
    if not found:
        raise UserError(f"technique: {registry.choices(name, sorted({item.name for item in everything}))}")
    return found


def render_all() -> RenderableType:
    """Draw every technique in a few lines, and the axes of the catalogues."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("technique", no_wrap=True)
    table.add_column("what it does, where it comes from, what it takes")
    for kind, items in groupby(known(), key=lambda item: item.kind):
        table.add_section()
        table.add_row(Text(kind, style="bold"))
        for item in items:
            table.add_row(Text(f" {item.name}", style="cyan"), _does(item))
    return Group(table, _axes(), Text("One in full: prx-sweep techniques NAME", style="dim"))


def _does(item: Known) -> Text:
    """Say what a technique does, where it comes from, what it needs, what it cannot be with, what to search."""
    source = _ARXIV.search(item.part.SOURCE)
    lines = {
        "needs": item.part.REQUIRES, "not with": item.part.CONFLICTS, "search": tuple(item.ranges),
    }  # fmt: skip
    text = Text(item.summary + (f" [{source.group()}]" if source else ""))
    for word, parts in lines.items():
        if parts:
            text.append(f"\n{word}: {'; '.join(parts)}", style="dim")
    return text


def _axes() -> Table:
    """Draw the axes of the catalogues, with their levels."""
    found: dict[str, list[str]] = defaultdict(list)
    for _, axis, level, _ in levels():
        if level not in found[axis]:
            found[axis].append(level)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("axis", style="cyan", no_wrap=True)
    table.add_column("levels in the catalogues")
    for axis, names in found.items():
        table.add_row(axis, Text(", ".join(names)))
    return table


def render_one(found: list[Known]) -> RenderableType:
    """Draw techniques in full: settings with their defaults, and the levels that use them."""
    return Group(*(part for item in found for part in _full(item)))


def _full(item: Known) -> Iterator[RenderableType]:
    yield Text.assemble((f"{item.kind} {item.name}", "bold"), f"\n{item.summary}")
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    lines = {
        "source": item.part.SOURCE, "requires": "; ".join(item.part.REQUIRES),
        "conflicts": "; ".join(item.part.CONFLICTS), "provides": ", ".join(sorted(item.part.PROVIDES)),
        "search": "\n".join(item.ranges), "settings": "\n".join(_settings(item.part)),
        **{f"levels ({name})": ", ".join(levels) for name, levels in item.levels.items()},
    }  # fmt: skip
    for name, text in lines.items():
        table.add_row(name, Text(text or "-"))
    yield table
    yield Text("")


def _settings(part: type[Technique]) -> Iterator[str]:
    for name, info in part.Config.model_fields.items():
        if name != "use":
            yield f"{name}: {'required' if info.is_required() else _short(info.get_default(call_default_factory=True))}"


def _short(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
