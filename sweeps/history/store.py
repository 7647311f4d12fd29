"""Entries of the history store: a record and, where kept, files; on a local folder or any object store.

HISTORY/KK/KEY/entry.json          the record: the commit marker, written last
HISTORY/KK/KEY/ATTEMPT/...         the files it names, each with its size and digest

Writers never touch what is committed; readers ignore what no record names. What is damaged is set aside
under another name, listed in `damage`, and trained again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from prx.errors import UserError

RECORD = "entry.json"
CHUNK = 1 << 22


@dataclass(frozen=True)
class Entry:
    """What is known of one key. `files` maps a relative name to (bytes, digest); `attempt` is their folder."""

    key: str
    kind: str
    record: dict[str, Any]
    attempt: str = ""
    files: dict[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Count the bytes of the files."""
        return sum(size for size, _ in self.files.values())


class HistoryStore:
    """Entries by key.

    Args:
        uri: Folder, or a URI that `pyarrow.fs` understands: s3://bucket/prefix, gs://..., file:///...

    Raises:
        UserError: The URI cannot be used; the message says what is missing.
    """

    def __init__(self, uri: str | Path) -> None:
        self.uri = str(uri)
        self.files, self.root = _open(self.uri)
        self.damage: list[str] = []

    @property
    def local(self) -> bool:
        """Tell whether entries are files of this machine."""
        return isinstance(self.files, fs.LocalFileSystem)

    def folder(self, key: str) -> str:
        """Give where a key's entry lives."""
        return f"{self.root}/{key[:2]}/{key}"

    def get(self, key: str) -> Entry | None:
        """Read an entry; None when there is none, or when it is damaged."""
        path = f"{self.folder(key)}/{RECORD}"
        content = self._read(path)
        if content is None:
            return None
        try:
            found = json.loads(content)
            files = {name: (int(size), str(code)) for name, (size, code) in found["files"].items()}
            if found["key"] != key:
                raise ValueError(f"it belongs to {found['key']}")
            return Entry(key, found["kind"], dict(found["record"]), found["attempt"], files)
        except (ValueError, KeyError, TypeError) as error:
            self._set_aside(path, f"not a record ({error})")
            return None

    def put(self, key: str, kind: str, record: Mapping[str, Any], source: Path | None = None) -> Entry:
        """Commit an entry with the files below `source`; one that is there already is kept: keys are content."""
        present = self.get(key)
        if present is not None and (source is None or present.files):
            return present
        attempt, files = "", {}
        if source is not None:
            attempt = f"{int(time.time())}-{uuid.uuid4().hex[:12]}"
            files = dict(self._upload(source, f"{self.folder(key)}/{attempt}"))
        entry = Entry(key, kind, dict(record), attempt, files)
        content = {"key": key, "kind": kind, "record": entry.record, "attempt": attempt, "files": files}
        self._write(f"{self.folder(key)}/{RECORD}", json.dumps(content, allow_nan=False).encode())
        return entry

    def fetch(self, entry: Entry, target: Path) -> bool:
        """Copy an entry's files into a folder that appears whole or not at all; False: damaged, or dropped since."""
        partial = target.with_name(f"{target.name}.partial-{uuid.uuid4().hex[:8]}")
        for name, (size, code) in entry.files.items():
            problem = self._download(f"{self.folder(entry.key)}/{entry.attempt}/{name}", partial / name, size, code)
            if problem:
                _remove(partial)
                if self._forgotten(entry):
                    return False
                self._set_aside(f"{self.folder(entry.key)}/{RECORD}", f"{name}: {problem}")
                return False
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(target)
        return True

    def _forgotten(self, entry: Entry) -> bool:
        """Tell whether somebody dropped an entry's files since it was read: nothing is damaged then."""
        now = self.get(entry.key)
        return now is None or now.attempt != entry.attempt

    def drop_files(self, entry: Entry) -> None:
        """Forget an entry's files and keep its record: first the record, so that no reader is misled."""
        content = {"key": entry.key, "kind": entry.kind, "record": entry.record, "attempt": "", "files": {}}
        self._write(f"{self.folder(entry.key)}/{RECORD}", json.dumps(content).encode())
        if entry.attempt:
            self.files.delete_dir(f"{self.folder(entry.key)}/{entry.attempt}")

    def entries(self) -> Iterator[Entry]:
        """Read every entry."""
        for info in self.files.get_file_info(fs.FileSelector(self.root, recursive=True, allow_not_found=True)):
            if info.type == fs.FileType.File and info.base_name == RECORD:
                found = self.get(info.path.split("/")[-2])
                if found is not None:
                    yield found

    def leftovers(self, older_than_s: float = 86_400.0) -> dict[str, int]:
        """Find attempts that no record names, by path with their bytes: uploads that were cut off."""
        sizes: dict[str, int] = {}
        limit = time.time() - older_than_s
        for info in self.files.get_file_info(fs.FileSelector(self.root, recursive=True, allow_not_found=True)):
            parts = info.path.removeprefix(f"{self.root}/").split("/")
            if info.type == fs.FileType.File and len(parts) > 3 and int(parts[2].partition("-")[0]) < limit:
                path = f"{self.root}/{'/'.join(parts[:3])}"
                sizes[path] = sizes.get(path, 0) + info.size
        named = {f"{self.folder(entry.key)}/{entry.attempt}" for entry in self.entries() if entry.attempt}
        return {path: size for path, size in sizes.items() if path not in named}

    def _upload(self, source: Path, target: str) -> Iterator[tuple[str, tuple[int, str]]]:
        for file in sorted(path for path in source.rglob("*") if path.is_file()):
            name = file.relative_to(source).as_posix()
            self.files.create_dir(os.path.dirname(f"{target}/{name}"), recursive=True)
            code, size = hashlib.blake2b(digest_size=16), 0
            with file.open("rb") as reader, self.files.open_output_stream(f"{target}/{name}") as writer:
                while chunk := reader.read(CHUNK):
                    code.update(chunk)
                    size += len(chunk)
                    writer.write(chunk)
            yield name, (size, code.hexdigest())

    def _download(self, path: str, target: Path, size: int, expected: str) -> str | None:
        """Copy one file; returns what is wrong with it."""
        target.parent.mkdir(parents=True, exist_ok=True)
        code, count = hashlib.blake2b(digest_size=16), 0
        try:
            with self.files.open_input_stream(path) as reader, target.open("wb") as writer:
                while chunk := reader.read(CHUNK):
                    code.update(chunk)
                    count += len(chunk)
                    writer.write(chunk)
        except FileNotFoundError:
            return "is missing"
        if count != size:
            return f"has {count} bytes instead of {size}"
        return None if code.hexdigest() == expected else "has other content than was written"

    def _read(self, path: str) -> bytes | None:
        try:
            with self.files.open_input_stream(path) as handle:
                return bytes(handle.read())
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _write(self, path: str, content: bytes) -> None:
        """Replace a small file at once: object stores do, on a local folder a rename does."""
        self.files.create_dir(os.path.dirname(path), recursive=True)
        if not self.local:
            with self.files.open_output_stream(path) as handle:
                handle.write(content)
            return
        partial = Path(f"{path}.partial-{uuid.uuid4().hex[:8]}")
        with partial.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(path)

    def _set_aside(self, path: str, what: str) -> None:
        aside = f"{path}.damaged-{int(time.time())}-{uuid.uuid4().hex[:6]}"
        self.damage.append(f"{path}: {what}; set aside as {aside}, to be trained again")
        self.files.move(path, aside)


def _open(uri: str) -> tuple[fs.FileSystem, str]:
    if "://" not in uri:
        return fs.LocalFileSystem(), str(Path(uri).absolute())
    try:
        files, root = fs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"--store: {uri!r} cannot be opened ({error})") from error
    return files, root.rstrip("/")


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
