"""The technique catalogue: the levels of every axis, as data. A new level is YAML only.

A catalogue maps axis -> level -> {summary, source, patch}. `sweeps/catalogue/` ships one for each world:
`embedded` (small models that come with the package) and `real` (published weights). A sweep names one with
`catalogue:`, or a file of its own; without the key, a base that trains on `embedded:` data gets `embedded`
and every other base `real`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from prx.compose import load_base
from prx.config import Strict, problems_of
from prx.errors import ConfigError, Problem
from prx.registry import choices
from prx.yamlsource import Source, read_yaml
from sweeps.patches import read_patch

if TYPE_CHECKING:
    from sweeps.spec import SweepSpec

CATALOGUES = Path(__file__).parent / "catalogue"


class Entry(Strict):
    """A level in a catalogue. `source` is the paper it follows."""

    summary: str
    source: str | None = None
    patch: dict[str, Any]


_LEVELS = dict[str, dict[str, Entry]]


@dataclass(frozen=True)
class Level:
    """A level of an axis, wherever it was written."""

    name: str
    summary: str
    reference: str | None
    patch: Source
    inline: bool


def catalogue_names() -> list[str]:
    """List the catalogues that ship with the package."""
    return sorted(path.stem for path in CATALOGUES.glob("*.yaml"))


def default_catalogue(base: Source) -> str:
    """Choose the catalogue of a base that names none: by the world its training data come from."""
    data = base.data.get("data") if isinstance(base.data, Mapping) else None
    given = data if isinstance(data, Mapping) else {}
    mixture = given.get("mixture")
    sets = mixture.values() if isinstance(mixture, Mapping) else [given]
    trains = [str(found.get("train")) for found in sets if isinstance(found, Mapping)]
    return "embedded" if trains and all(train.startswith("embedded:") for train in trains) else "real"


def load_catalogue(name: str, at: Source) -> Source:
    """Read a catalogue by name, or by its path relative to the sweep that names it.

    Raises:
        ConfigError: There is none, or it does not have the form of one.
    """
    path = CATALOGUES / f"{name}.yaml"
    if not path.is_file():
        path = (Path(at.file).parent if at.file else Path()) / name
        if path.suffix not in {".yaml", ".yml"} or not path.is_file():
            message = f"must name a catalogue or an existing .yaml file; {choices(name, catalogue_names())}"
            raise ConfigError([at.problem(("catalogue",), message)])
    source = read_yaml(path)
    try:
        TypeAdapter(_LEVELS).validate_python(source.data, strict=True)
    except ValidationError as error:
        raise ConfigError(problems_of(error, _LEVELS, source, source.data)) from error
    return source


def axis_levels(spec: SweepSpec, source: Source) -> dict[str, dict[str, Level]]:
    """Find the patch of every level of every axis.

    Raises:
        ConfigError: Names every level that is in no catalogue, and every patch that cannot be read.
    """
    catalogue = load_catalogue(spec.catalogue or default_catalogue(load_base(spec.base, source)), source)
    found: dict[str, dict[str, Level]] = {axis: {} for axis in spec.axes}
    problems: list[Problem] = []
    for axis, levels in spec.axes.items():
        for index, level in enumerate(levels):
            if isinstance(level, str):
                message = _unknown(catalogue, axis, level)
                if message:
                    problems.append(source.problem(("axes", axis, index), message))
                    continue
                entry, inline = catalogue.data[axis][level], False
                patch, wrong = read_patch(catalogue, (axis, level, "patch"))
            else:
                entry, inline = level.model_dump(), True
                patch, wrong = read_patch(source, ("axes", axis, index, "patch"))
            name = level if isinstance(level, str) else level.name
            problems += wrong
            found[axis][name] = Level(name, entry["summary"], entry.get("source"), patch, inline)
    if problems:
        raise ConfigError(problems)
    return found


def _unknown(catalogue: Source, axis: str, level: str) -> str | None:
    if axis not in catalogue.data:
        known = choices(axis, sorted(catalogue.data))
        return (
            f"is a name, but the catalogue has no axis {axis!r}: write {{name, patch}}, or the axis {known}"
        )
    return None if level in catalogue.data[axis] else choices(level, list(catalogue.data[axis]))
