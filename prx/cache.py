"""Outputs of frozen encoders: written once, named by what they depend on, memory-mapped by every trial."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from prx.errors import DataError

FORMAT = 1
ROWS_PER_SHARD = 8192
SHARD_BYTES = 1 << 30
"""A shard is put together in memory; 8192 captions of T5Gemma's 256 tokens alone would be 10 GB."""


@dataclass(frozen=True)
class CacheKey:
    """What a cached encoding depends on; equal keys hold equal rows."""

    kind: str
    encoder: str
    data: str

    @property
    def digest(self) -> str:
        """Name the folder."""
        text = f"{FORMAT}|{self.kind}|{self.encoder}|{self.data}"
        return f"{self.kind}-{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}"


class Encoded:
    """Rows of one cache. Each column is read without copying the file into memory."""

    def __init__(self, folder: Path, key: CacheKey) -> None:
        self.manifest = _manifest(folder, key)
        self.num = int(self.manifest["rows"])
        self._shards = [
            self._map(folder / name, size) for name, size in zip(*self._files(), strict=True)
        ]  # fmt: skip
        self.rows_per_shard = int(self.manifest["rows_per_shard"])

    def _files(self) -> tuple[list[str], list[int]]:
        return self.manifest["shards"], self.manifest["sizes"]

    def _map(self, file: Path, size: int) -> dict[str, np.ndarray]:
        if not file.is_file() or file.stat().st_size != size:
            raise DataError(f"{file} is damaged: it should have {size} bytes; remove {file.parent} to encode it again")
        try:
            batch = pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0)
        except (pa.ArrowException, OSError) as error:
            message = f"{file} is damaged ({error}); remove {file.parent} to encode it again"
            raise DataError(message) from error
        found = {}
        for name, (dtype, shape) in self.manifest["columns"].items():
            buffer = batch.column(name).buffers()[1]
            rows = np.frombuffer(buffer, dtype=np.dtype(dtype), count=batch.num_rows * int(np.prod(shape)))
            found[name] = rows.reshape(batch.num_rows, *shape)
        return found

    def has(self, column: str) -> bool:
        """Tell whether there is such a column."""
        return column in self.manifest["columns"]

    def shape(self, column: str) -> tuple[int, ...]:
        """Give the shape of one row."""
        return tuple(self.manifest["columns"][column][1])

    def take(self, column: str, index: np.ndarray) -> Tensor:
        """Gather rows: [len(index), *shape]; floats come as float32."""
        shard, row = np.divmod(index, self.rows_per_shard)
        first = self._shards[0][column]
        out = np.empty((len(index), *first.shape[1:]), dtype=first.dtype)
        for number in np.unique(shard):
            chosen = shard == number
            out[chosen] = self._shards[number][column][row[chosen]]
        result = torch.from_numpy(out)
        return result.float() if result.is_floating_point() else result


class Joined:
    """Several caches as one: the rows of each follow those of the one before.

    Rows of different length, as of captions, are filled up with zeros at their end.
    """

    def __init__(self, parts: Sequence[Encoded]) -> None:
        self.parts = parts
        self._starts = np.concatenate([[0], np.cumsum([part.num for part in parts])])
        self.num = int(self._starts[-1])

    def has(self, column: str) -> bool:
        """Tell whether there is such a column."""
        return self.parts[0].has(column)

    def take(self, column: str, index: np.ndarray) -> Tensor:
        """Gather rows: [len(index), *shape]; floats come as float32."""
        shape = tuple(map(max, zip(*(part.shape(column) for part in self.parts), strict=True)))
        owner = np.searchsorted(self._starts, index, side="right") - 1
        out = self.parts[0].take(column, index[:0]).new_zeros(len(index), *shape)
        for number in np.unique(owner).tolist():
            mine = owner == number
            rows = self.parts[number].take(column, index[mine] - self._starts[number])
            missing = [(0, want - have) for want, have in zip(shape, rows.shape[1:], strict=True)]
            out[torch.from_numpy(mine)] = torch.nn.functional.pad(rows, [*chain.from_iterable(reversed(missing))])
        return out


Rows = Encoded | Joined


def _manifest(folder: Path, key: CacheKey) -> dict:
    file = folder / "manifest.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(f"{file} is missing or damaged ({error}); remove {folder} to encode it again") from error
    expected = [key.kind, key.encoder, key.data]
    if found.get("key") != expected:
        raise DataError(f"{file} belongs to {found.get('key')}, expected {expected}; remove {folder}")
    return found


def exists(root: Path, key: CacheKey) -> bool:
    """Tell whether a complete cache is there; the manifest is written last."""
    return (root / key.digest / "manifest.json").is_file()


def read(root: Path, key: CacheKey) -> Encoded:
    """Map a cache.

    Raises:
        DataError: It is missing, damaged, or of another key.
    """
    return Encoded(root / key.digest, key)


def write(root: Path, key: CacheKey, parts: Iterator[Mapping[str, Tensor]]) -> None:
    """Write a cache from consecutive batches of columns; it appears whole or not at all."""
    root.mkdir(parents=True, exist_ok=True)
    partial = root / f".{key.digest}.{uuid.uuid4().hex}"
    partial.mkdir()
    try:
        manifest = _write_shards(partial, parts)
        manifest["key"] = [key.kind, key.encoder, key.data]
        (partial / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        if not exists(root, key):
            _publish(partial, root, key)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, root: Path, key: CacheKey) -> None:
    """Give a whole cache its name, unless another driver was faster: its rows are equal, and may be read already."""
    target = root / key.digest
    try:
        partial.rename(target)
    except OSError:
        if exists(root, key):
            return
        shutil.rmtree(target)  # what is left of a removed one
        partial.rename(target)


def _write_shards(folder: Path, parts: Iterator[Mapping[str, Tensor]]) -> dict:
    names: list[str] = []
    sizes: list[int] = []
    columns: dict[str, tuple[str, list[int]]] = {}
    total = 0
    first = next(parts, {})
    length = _rows_per_shard(first)
    for number, rows in enumerate(_shards(chain([first] if first else [], parts), length)):
        file = folder / f"{number:05d}.arrow"
        arrays, columns = [], {}
        for name, values in rows.items():
            array = np.ascontiguousarray(values.numpy())
            columns[name] = (array.dtype.str, list(array.shape[1:]))
            width = array.nbytes // len(array)
            data = pa.py_buffer(array)
            arrays.append(pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(array), [None, data]))
        batch = pa.record_batch(arrays, names=list(rows))
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        names.append(file.name)
        sizes.append(file.stat().st_size)
        total += batch.num_rows
    return {"rows": total, "rows_per_shard": length, "columns": columns, "shards": names, "sizes": sizes}


def _rows_per_shard(part: Mapping[str, Tensor]) -> int:
    """Count the rows of a shard by the size of those in a batch."""
    size = sum(values[0].nbytes for values in part.values())
    return max(1, min(ROWS_PER_SHARD, SHARD_BYTES // max(1, size)))


def _shards(parts: Iterator[Mapping[str, Tensor]], length: int) -> Iterator[dict[str, Tensor]]:
    """Regroup batches into shards of equal length, the last one shorter."""
    held: list[Mapping[str, Tensor]] = []
    count = 0
    for part in parts:
        held.append(part)
        count += len(next(iter(part.values())))
        while count >= length:
            joined = {name: torch.cat([p[name] for p in held]) for name in held[0]}
            yield {name: values[:length] for name, values in joined.items()}
            count -= length
            held = [{name: values[length:] for name, values in joined.items()}]
    if count:
        yield {name: torch.cat([p[name] for p in held]) for name in held[0]}
