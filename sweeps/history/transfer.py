"""Files between a trial's folder and a store's file system, each with its size and digest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyarrow import fs

CHUNK = 1 << 22
LOCAL = fs.LocalFileSystem()


def upload(files: fs.FileSystem, source: Path, target: str) -> Iterator[tuple[str, tuple[int, str]]]:
    """Copy the files below a folder; gives each one's name with its (bytes, digest)."""
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        name = file.relative_to(source).as_posix()
        make_folder(files, f"{target}/{name}")
        linked = is_local(files) and _link(file, Path(f"{target}/{name}"))
        with file.open("rb") as reader, _sink(files, f"{target}/{name}", linked) as writer:
            yield name, _pump(reader, writer)


def download(files: fs.FileSystem, path: str, target: Path, size: int, expected: str) -> str | None:
    """Copy one file; gives what is wrong with it, or None."""
    target.parent.mkdir(parents=True, exist_ok=True)
    linked = is_local(files) and _link(Path(path), target)
    try:
        with files.open_input_stream(path) as reader, _sink(LOCAL, str(target), linked) as writer:
            count, code = _pump(reader, writer)
    except OSError:
        if not absent(files, path):
            raise
        return "is missing"
    if count != size:
        return f"has {count} bytes instead of {size}"
    return None if code == expected else "has other content than was written"


def absent(files: fs.FileSystem, path: str) -> bool:
    """Tell whether there is nothing at a path."""
    return bool(files.get_file_info(path).type == fs.FileType.NotFound)


def is_local(files: fs.FileSystem) -> bool:
    """Tell whether a file system is this machine's."""
    return isinstance(files, fs.LocalFileSystem)


def make_folder(files: fs.FileSystem, path: str) -> None:
    """Make the folder of a file; object stores have none, and keep an empty object for each that is made."""
    if is_local(files):
        Path(path).parent.mkdir(parents=True, exist_ok=True)


def _pump(reader: Any, writer: Any) -> tuple[int, str]:
    code, size = hashlib.blake2b(digest_size=16), 0
    while chunk := reader.read(CHUNK):
        code.update(chunk)
        size += len(chunk)
        writer.write(chunk)
    return size, code.hexdigest()


def _sink(files: fs.FileSystem, path: str, linked: bool) -> Any:
    """Open what a copy is written to; of a file that was linked nothing needs to be written."""
    return Path(os.devnull).open("wb") if linked else files.open_output_stream(path)


def _link(file: Path, target: Path) -> bool:
    """Give a file a second name: no bytes are copied, and checkpoints are replaced, never changed.

    False where the file system has no such links or the names lie on two of them: then it must be copied.
    """
    try:
        os.link(file, target)
    except OSError:
        return False
    return True
