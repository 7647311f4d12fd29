"""Files of a model folder: which ones must be there, whether they are whole, and what they hash to."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
import uuid
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from prx.errors import UserError

CONFIG = "config.json"
KEPT = frozenset({".json", ".safetensors", ".model", ".txt"})
_REMEMBERED = 1 << 26
_SETTLED_S = 2.0


def read_json(file: Path, how: str = "a model folder is what save_pretrained() writes") -> dict[str, Any]:
    """Read one JSON object; `how` says where a missing file comes from.

    Raises:
        UserError: The file is missing or holds anything else.
    """
    try:
        changed = file.stat().st_mtime_ns
    except OSError:
        raise UserError(f"{file} is missing; {how}") from None
    return _parsed(file, changed)


@lru_cache(maxsize=256)
def _parsed(file: Path, changed: int) -> dict[str, Any]:
    """Parse a file once as long as it does not change: a plan of many cells asks for it in every one."""
    del changed
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} must hold a JSON object, as save_pretrained() writes it")
    return found


def weight_files(folder: Path, stem: str, how: str) -> list[Path]:
    """List the safetensors that `stem` names, one file or the shards of its index, each of full length.

    Raises:
        UserError: A file is missing or cut short; says so too where there are only pickles.
    """
    index = folder / f"{stem}.safetensors.index.json"
    files = [folder / f"{stem}.safetensors"]
    if not files[0].is_file() and index.is_file():
        files = [folder / name for name in _shards(index)]
    for file in files:
        if not file.is_file():
            raise UserError(_missing(file, index if index.is_file() else None, how))
        _check_length(file, how)
    return files


def _shards(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} must have a weight_map that names the shards, got {weight_map!r}")
    return sorted({str(name) for name in weight_map.values()})


def _missing(file: Path, index: Path | None, how: str) -> str:
    if index is not None:
        return f"{file} is missing, a shard that {index.name} names; {how}"
    pickles = sorted(found.name for found in file.parent.glob("*.bin*"))
    if not pickles:
        return f"{file} is missing; {how}"
    return (
        f"{file} is missing: there is only {pickles[0]}, a pickle, and pickles are never read because they can run "
        "code. Pin a revision that has safetensors (ORG/NAME@REVISION; on the hub, look for a pull request of the "
        "conversion bot: refs/pr/N), or load it where you trust it and call save_pretrained()"
    )


def _check_length(file: Path, how: str) -> None:
    """Compare a safetensors file's length with what its header promises."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        header = stream.read(length) if length < size else b""
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file} is damaged: it has {size} bytes and no safetensors header; {how}") from None
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise UserError(f"{file} is damaged: it should have {expected} bytes and has {size}; {how}")


def digest(folder: Path) -> str:
    """Hash settings, vocabulary and weights, every byte of them.

    Large files are read once: their hash is kept in the user's cache folder under path, size, inode, and
    times of modification and status change. The last one cannot be set back, so an edit in place that
    restores length and modification time is still seen. Files that changed in the last seconds are not kept.
    """
    joined = hashlib.blake2b(digest_size=12)
    for file in sorted(folder.iterdir()):
        if file.suffix in KEPT and file.is_file():
            joined.update(f"{file.name}:{_file_digest(file)};".encode())
    return joined.hexdigest()


def _file_digest(file: Path) -> str:
    real, status = file.resolve(), file.stat()
    stamp = (str(real), status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
    if time.time() - max(status.st_mtime, status.st_ctime) < _SETTLED_S:
        return _hash(real)
    return _remembered(*stamp)


@lru_cache(maxsize=1024)
def _remembered(path: str, size: int, *stamp: int) -> str:
    if size < _REMEMBERED:
        return _hash(Path(path))
    name = hashlib.blake2b(repr((path, size, *stamp)).encode(), digest_size=16).hexdigest()
    memory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prx-sweeps" / "hashes" / name
    with suppress(OSError):
        return memory.read_text(encoding="ascii")
    found = _hash(Path(path))
    with suppress(OSError):  # without a cache folder the file is read again next time, nothing worse
        memory.parent.mkdir(parents=True, exist_ok=True)
        partial = memory.with_name(f"{name}.{uuid.uuid4().hex}")
        partial.write_text(found, encoding="ascii")
        partial.replace(memory)
    return found


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
