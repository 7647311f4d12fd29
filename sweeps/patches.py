"""Patches over a configuration: dotted keys, what a patch may not write, and when two of them clash."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prx.errors import Problem
from prx.yamlsource import PathKeys, Source, merge

DECIDED = {
    ("name",): "name",
    ("seed",): "seeds",
    ("steps",): "trial.steps",
    ("evaluation", "every"): "trial.eval_every",
    ("infrastructure", "workers"): "trial.workers",
    ("infrastructure", "zero_stage"): "trial.zero_stage",
}
"""Configuration paths that a sweep sets elsewhere; a patch that writes one would be overruled in silence."""


def read_patch(source: Source, keys: PathKeys) -> tuple[Source, list[Problem]]:
    """Take the patch written at `keys` and spell its dotted keys out; also say what is wrong with it."""
    patch = source.at(*keys)
    data: dict[str, Any] = {}
    problems = []
    for key, value in patch.data.items():
        if not _insert(data, _split(key), value):
            problems.append(source.problem((*keys, key), "is given twice"))
    marks = {(*_split(path[0]), *path[1:]): mark for path, mark in patch.marks.items() if path}
    expanded = Source(data, patch.file, marks)
    return expanded, problems + list(_decided(expanded, keys))


def _split(key: str | int) -> tuple[str, ...]:
    return tuple(str(key).split("."))


def _insert(data: dict[str, Any], path: tuple[str, ...], value: Any) -> bool:
    """Put a value below a path; False where something stands already."""
    for key in path[:-1]:
        data = data.setdefault(key, {})
        if not isinstance(data, dict):
            return False
    last = path[-1]
    if last not in data:
        # A copy, so that a later dotted key does not write into what the user gave us.
        data[last] = dict(value) if isinstance(value, dict) else value
        return True
    if not (isinstance(value, dict) and isinstance(data[last], dict)):
        return False
    return all(_insert(data[last], (str(key),), inner) for key, inner in value.items())


def _decided(patch: Source, keys: PathKeys) -> Iterator[Problem]:
    for path, where in DECIDED.items():
        data: Any = patch.data
        for key in path:
            data = data.get(key, _ABSENT) if isinstance(data, dict) else _ABSENT
        if data is not _ABSENT:
            name = ".".join(str(key) for key in path)
            file, line = patch.mark(path)
            yield Problem(_below(keys, name), f"is decided by {where} of the sweep, got {data!r}", file, line)


_ABSENT = object()


def _below(keys: PathKeys, name: str) -> str:
    return Source(None).problem((*keys, name), "").path


def clash(base: Source, first: Source, second: Source) -> tuple[PathKeys, Any, Any] | None:
    """Find a path where two patches want different things: where their order would matter.

    Returns:
        The path, and its value with `second` last and with `first` last; None when they agree.
    """
    one = merge(merge(base, first), second).data
    other = merge(merge(base, second), first).data
    return next(differences(other, one), None)


def differences(before: Any, after: Any, keys: PathKeys = ()) -> Iterator[tuple[PathKeys, Any, Any]]:
    """List the paths at which two trees differ, with both values; what is absent on one side is None."""
    if before == after:  # first: most of two neighbouring configurations is equal, and a walk costs ten times as much
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            yield from differences(before.get(key), after.get(key), (*keys, key))
    else:
        yield keys, before, after
