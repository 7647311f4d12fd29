"""Entries of the history store: a record and, where kept, files; on a local folder or any object store.

HISTORY/history.json               whose states these are; see `sweeps.history.marker`
HISTORY/KK/KEY/entry.json          the record: the commit marker, written last
HISTORY/KK/KEY/ATTEMPT/...         the files it names, each with its size and digest
HISTORY/leases/KEY/...             who trains towards a state now; see `sweeps.history.leases`

Writers never touch what is committed; readers ignore what no record names. What is damaged is set aside
under another name, listed in `damage`, and trained again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyarrow import fs

from prx.errors import UserError
from sweeps.history import marker
from sweeps.history.address import open_address, reason, without_credentials
from sweeps.history.transfer import absent, download, make_folder, upload

RECORD = "entry.json"
DAMAGED = "damaged"
_ATTEMPT = re.compile(r"(?P<path>[0-9a-f]{2}/[0-9a-f]+/(?P<started>\d+)-[0-9a-f]+)/")


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
        uri: Folder, or a URI that `pyarrow.fs` understands: s3://bucket/prefix?options, gs://..., file:///...
        warn: Told of everything damaged, when it is found; `damage` lists it in any case.

    Raises:
        UserError: The URI cannot be used, or holds something else; the message says what is missing.
    """

    def __init__(self, uri: str | Path, warn: Callable[[str], None] = lambda line: None) -> None:
        self.files, self.root = open_address(uri)
        self.uri = without_credentials(uri)
        self.damage: list[str] = []
        self._warn = warn
        try:
            if self.local:
                check_folder(Path(self.root), "--history")
            self._marked = self._recognised()
        except OSError as error:
            raise UserError(f"--history: {self.uri} cannot be read ({reason(error)})") from None

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
        try:
            found = self.read_json(path)
            if found is None:
                return None
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
            files = dict(upload(self.files, source, f"{self.folder(key)}/{attempt}"))
        entry = Entry(key, kind, dict(record), attempt, files)
        content = {"key": key, "kind": kind, "record": entry.record, "attempt": attempt, "files": files}
        self._write(f"{self.folder(key)}/{RECORD}", json.dumps(content, allow_nan=False).encode())
        return entry

    def fetch(self, entry: Entry, target: Path) -> bool:
        """Copy an entry's files into a folder that appears whole or not at all; False: damaged, or dropped since."""
        partial = target.with_name(f"{target.name}.partial-{uuid.uuid4().hex[:8]}")
        try:
            for name, (size, code) in entry.files.items():
                path = f"{self.folder(entry.key)}/{entry.attempt}/{name}"
                problem = download(self.files, path, partial / name, size, code)
                if problem:
                    if not self._forgotten(entry):
                        self._set_aside(f"{self.folder(entry.key)}/{RECORD}", f"{name}: {problem}")
                    return False
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.rename(target)
            return True
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _forgotten(self, entry: Entry) -> bool:
        """Tell whether somebody dropped an entry's files since it was read: nothing is damaged then."""
        now = self.get(entry.key)
        return now is None or now.attempt != entry.attempt

    def drop_files(self, entry: Entry) -> None:
        """Forget an entry's files and keep its record: first the record, so that no reader is misled."""
        content = {"key": entry.key, "kind": entry.kind, "record": entry.record, "attempt": "", "files": {}}
        self._write(f"{self.folder(entry.key)}/{RECORD}", json.dumps(content).encode())
        if entry.attempt:
            self.delete(f"{self.folder(entry.key)}/{entry.attempt}")

    def delete(self, path: str) -> None:
        """Delete a file or a folder with all that is in it; what is gone already is fine."""
        try:
            if self.files.get_file_info(path).type == fs.FileType.Directory:
                self.files.delete_dir(path)
            else:
                self.files.delete_file(path)
        except FileNotFoundError:
            return

    def listing(self, path: str, *, recursive: bool = False) -> list[fs.FileInfo]:
        """List a folder; one that is not there is empty."""
        return list(self.files.get_file_info(fs.FileSelector(path, recursive=recursive, allow_not_found=True)))

    def entries(self) -> Iterator[Entry]:
        """Read every entry."""
        for info in self.listing(self.root, recursive=True):
            if info.type == fs.FileType.File and info.base_name == RECORD:
                found = self.get(info.path.split("/")[-2])
                if found is not None:
                    yield found

    def leftovers(self, older_than_s: float = 86_400.0) -> dict[str, int]:
        """Find attempts that no record names, by path with their bytes: uploads that were cut off."""
        sizes: dict[str, int] = {}
        limit = time.time() - older_than_s
        for info in self.listing(self.root, recursive=True):
            attempt = _ATTEMPT.match(info.path.removeprefix(f"{self.root}/"))
            if info.type == fs.FileType.File and attempt and int(attempt["started"]) < limit:
                path = f"{self.root}/{attempt['path']}"
                sizes[path] = sizes.get(path, 0) + info.size
        named = {f"{self.folder(entry.key)}/{entry.attempt}" for entry in self.entries() if entry.attempt}
        return {path: size for path, size in sizes.items() if path not in named}

    def read_json(self, path: str) -> Any | None:
        """Read a small file; None when there is none.

        Object stores are asked for a size, then for so many bytes: what is replaced between the two looks cut off,
        so only what reads the same twice is damaged.

        Raises:
            ValueError: It is no JSON.
        """
        content = self._read(path)
        while content is not None:
            try:
                return json.loads(content)
            except ValueError:
                again = self._read(path)
                if again == content:
                    raise
                content = again
        return None

    def _read(self, path: str) -> bytes | None:
        for patience in (2, 1, 0):
            try:
                with self.files.open_input_stream(path) as handle:
                    return bytes(handle.read())
            except (FileNotFoundError, NotADirectoryError):
                return None
            except OSError:  # deleted or replaced between the question for its size and the answer, or worse
                if absent(self.files, path):
                    return None
                if not patience:
                    raise
        return None

    def _write(self, path: str, content: bytes) -> None:
        """Replace a small file at once, after the marker that says whose it is."""
        if not self._marked:
            self._replace(f"{self.root}/{marker.MARKER}", marker.content())
            self._marked = True
        self._replace(path, content)

    def _replace(self, path: str, content: bytes) -> None:
        """Replace a small file at once: object stores do, on a local folder a rename does."""
        if not self.local:
            with self.files.open_output_stream(path) as handle:
                handle.write(content)
            return
        make_folder(self.files, path)
        partial = Path(f"{path}.partial-{uuid.uuid4().hex[:8]}")
        with partial.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(path)

    def _set_aside(self, path: str, what: str) -> None:
        aside = f"{path}.{DAMAGED}-{int(time.time())}-{uuid.uuid4().hex[:6]}"
        try:
            self.files.move(path, aside)
        except OSError:
            if not absent(self.files, path):
                raise
            return  # somebody else found it first
        line = f"{path}: {what}; set aside as {aside}, to be trained again"
        self.damage.append(line)
        self._warn(line)

    def _recognised(self) -> bool:
        """Tell whether the marker is there; refuse what is no history of this version."""
        found = self._read(f"{self.root}/{marker.MARKER}")
        names = [] if found is not None else [info.base_name for info in self.listing(self.root)]
        if marker.MARKER in names:  # somebody began the history between the two looks
            return self._recognised()
        marker.check(self.uri, found, names)
        return found is not None


def check(uri: str | Path) -> None:
    """Refuse a history that cannot be used, before anything is trained; leaves nothing behind.

    Raises:
        UserError: It cannot be opened, read or written, or holds something else.
    """
    store = HistoryStore(uri)
    if store.local:
        return
    probe = f"{store.root}/{marker.MARKER}.probe-{uuid.uuid4().hex[:8]}"
    try:
        bucket = store.root.partition("/")[0]
        if absent(store.files, bucket):
            raise UserError(f"--history: {store.uri}: there is no bucket {bucket}; create it, or name another")
        store._replace(probe, b"")
        store.files.delete_file(probe)
    except OSError as error:
        raise UserError(f"--history: {store.uri} cannot be written ({reason(error)})") from None


def check_folder(folder: Path, option: str) -> None:
    """Refuse a folder that can be neither made nor written; makes nothing.

    Raises:
        UserError: As it says, naming the option that gave the folder.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{option}: {folder} must be a folder that can be written; {there} is not")
