"""YAML with line numbers: what `yaml.safe_load` gives, plus the line of every config path."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from prx.errors import ConfigError, Problem, UserError

PathKeys = tuple[str | int, ...]
REMOVABLE: tuple[PathKeys, ...] = (("losses",), ("data", "captions"), ("data", "mixture"))
"""Sections whose keys the user names, so that a patch can take them out."""


class _Loader(yaml.SafeLoader):
    """Safe loader that also reads `1e-4` as a number, as everybody who writes it means."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Read a value; one that only looks like its kind, such as the date 2020-99-99, is an error with its line."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, AttributeError) as error:
            problem = f"{node.value!r} is no {node.tag.rpartition(':')[2]}; quote it if text is meant"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from error


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def dotted(keys: PathKeys) -> str:
    """Write a path the way users address it: `losses.repa.weight`, `exclude[0].because`."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


@dataclass(frozen=True)
class Source:
    """A configuration tree and the file and line where each of its paths was written."""

    data: Any
    file: str | None = None
    marks: dict[PathKeys, tuple[str | None, int]] = field(default_factory=dict)

    def mark(self, keys: PathKeys) -> tuple[str | None, int | None]:
        """Give file and line of a path, or of its nearest written ancestor."""
        while keys and keys not in self.marks:
            keys = keys[:-1]
        return self.marks.get(keys, (self.file, None))

    def problem(self, keys: PathKeys, message: str) -> Problem:
        """Make a problem that knows its file and line."""
        return Problem(dotted(keys), message, *self.mark(keys))

    def at(self, *keys: str | int) -> Source:
        """Take the subtree at a path, as a source of its own."""
        data = self.data
        for key in keys:
            data = data[key]
        size = len(keys)
        inner = {path[size:]: mark for path, mark in self.marks.items() if path[:size] == keys}
        return Source(data, self.file, inner)

    def under(self, *keys: str | int) -> Source:
        """Hang this tree below a path: `source.under("losses", "repa")` patches `losses.repa`."""
        data = self.data
        for key in reversed(keys):
            data = {key: data}
        return Source(data, self.file, {(*keys, *path): mark for path, mark in self.marks.items()})


def locate(source: Source, error: UserError) -> UserError:
    """Add file and line to an error whose text starts with a config path, such as `data.train: ...`."""
    path, _, message = str(error).partition(": ")
    keys = tuple(path.split("."))
    known = isinstance(source.data, dict) and keys[0] in source.data
    if isinstance(error, ConfigError) or not known or not message:
        return error
    return ConfigError([source.problem(keys, message)])


def merge(base: Source, patch: Source) -> Source:
    """Lay a patch over a base: mappings merge, everything else replaces.

    A technique named by another `use` replaces the old one whole, because its settings would mean
    nothing to the new one. `null` under `losses` takes that term out, and under `data.captions` or
    `data.mixture` that column or set.
    """
    marks = dict(base.marks)
    data = _merge(base.data, patch.data, (), marks)
    marks.update(patch.marks)
    return Source(data, patch.file or base.file, marks)


def _merge(base: Any, patch: Any, keys: PathKeys, marks: dict[PathKeys, tuple[str | None, int]]) -> Any:
    mappings = isinstance(base, dict) and isinstance(patch, dict)
    if not mappings or ("use" in patch and patch["use"] != base.get("use")):
        for stale in [path for path in marks if path[: len(keys)] == keys and path != keys]:
            del marks[stale]
        return patch
    result = dict(base)
    for key, value in patch.items():
        if value is None and keys in REMOVABLE:
            result.pop(key, None)
        else:
            # A section not written yet is an empty one: `losses: {x: null}` must not put a null there.
            before = base.get(key, {} if isinstance(value, dict) else None)
            result[key] = _merge(before, value, (*keys, key), marks)
    return result


def _collect(node: yaml.Node, keys: PathKeys, source: Source, above: tuple[int, ...] = ()) -> None:
    line = node.start_mark.line + 1
    source.marks.setdefault(keys, (source.file, line))
    if id(node) in above:
        raise ConfigError([Problem(dotted(keys), "must not contain itself", source.file, line)])
    above = (*above, id(node))
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key_node, value_node in node.value:
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            if key in seen:
                raise ConfigError([Problem(dotted((*keys, key)), "is given twice", source.file, line)])
            seen.add(key)
            source.marks[(*keys, key)] = (source.file, line)
            _collect(value_node, (*keys, key), source, above)
    elif isinstance(node, yaml.SequenceNode):
        for index, value_node in enumerate(node.value):
            _collect(value_node, (*keys, index), source, above)


def parse_yaml(text: str, file: str | None = None) -> Source:
    """Parse YAML text.

    Raises:
        ConfigError: The text is not YAML, or a key is given twice.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        source = Source(None, file)
        if node is not None:
            _collect(node, (), source)
            source = Source(loader.construct_document(node), file, source.marks)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise ConfigError([Problem("", f"is not valid YAML: {error.problem}", file, line)]) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        found = f"is not valid YAML: character #x{ord(text[error.position]):04x} is not allowed"
        raise ConfigError([Problem("", found, file, line)]) from error
    return source


def read_yaml(path: Path) -> Source:
    """Parse a YAML file.

    Raises:
        ConfigError: The file cannot be read, or as `parse_yaml`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise ConfigError([Problem("", f"cannot be read: {reason}", str(path))]) from error
    return parse_yaml(text, str(path))
