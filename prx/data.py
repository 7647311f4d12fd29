"""Image-caption pairs in parquet: opened, checked, fingerprinted, read in order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from prx import images as pictures
from prx import registry
from prx.config import DataConfig, RunConfig
from prx.errors import DataError
from prx.loaders import EMBEDDED

_FOOTER = 1 << 16


@dataclass(frozen=True)
class Dataset:
    """The first `num` rows of a folder of parquet files, in file order."""

    key: str
    files: tuple[Path, ...]
    num: int
    fingerprint: str


@dataclass(frozen=True)
class ReferenceSet:
    """Held-out images that metrics compare with, and the prompts that generated images answer.

    Shapes: `images` uint8 [N, 3, S, S].
    """

    images: Tensor
    prompts: list[str]
    attributes: list[dict[str, str]] | None
    fingerprint: str


def open_dataset(key: str, location: str, num: int | None, columns: Sequence[str], root: Path) -> Dataset:
    """Open a folder of parquet files and check what can be checked without reading the rows.

    Args:
        key: Config path that named the location, for messages.
        location: Folder, or `embedded:NAME`, which is generated below `root`.
        num: Rows to use; None takes all.
        columns: Columns that must be there.

    Raises:
        DataError: Folder or file missing, corrupt, without a column, or with too few rows.
    """
    folder = _folder(key, location, num, root)
    if not folder.is_dir():
        raise DataError(f"{key}: must be an existing folder of parquet files or {EMBEDDED}NAME, got {location!r}")
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise DataError(f"{key}: {folder} holds no *.parquet file")
    available = sum(_rows(key, file, columns) for file in files)
    if not available:
        raise DataError(f"{key}: the *.parquet files in {folder} hold no row")
    if num is not None and available < num:
        raise DataError(f"{key}: {num} rows are asked for, {folder} has {available}")
    num = num or available
    digest = hashlib.blake2b(f"rows={num}".encode(), digest_size=12)
    for file in files:
        digest.update(f"{file.name}:{file.stat().st_size}".encode() + _footer(file))
    return Dataset(key, tuple(files), num, digest.hexdigest())


def _folder(key: str, location: str, num: int | None, root: Path) -> Path:
    if not location.startswith(EMBEDDED):
        return Path(location)
    from prx.embedded.dataset import SPLIT_SEEDS, split_folder

    name = location.removeprefix(EMBEDDED)
    if name not in SPLIT_SEEDS:
        raise DataError(f"{key}: {registry.choices(name, sorted(SPLIT_SEEDS))}")
    if num is None:
        section, _, leaf = key.rpartition(".")
        raise DataError(f"{key}: the embedded world is endless; set how many rows, as {section}.num_{leaf}")
    return split_folder(name, num, root)


def _rows(key: str, file: Path, columns: Sequence[str]) -> int:
    try:
        metadata = pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{key}: {file} is not a readable parquet file ({error})") from error
    names = metadata.schema.to_arrow_schema().names
    for column in columns:
        if column not in names:
            raise DataError(f"{key}: {file} has no such column; {registry.choices(column, names)}")
    return int(metadata.num_rows)


def _footer(file: Path) -> bytes:
    with file.open("rb") as handle:
        handle.seek(max(0, file.stat().st_size - _FOOTER))
        return handle.read()


def batches(dataset: Dataset, columns: Sequence[str], size: int) -> Iterator[tuple[str, dict[str, list[Any]]]]:
    """Read columns in order: (where the batch stands, column -> values).

    Raises:
        DataError: A file breaks while it is read.
    """
    left = dataset.num
    for file in dataset.files:
        if not left:
            return
        row = 0
        try:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=size, columns=list(columns)):
                batch = batch.slice(0, left)
                if batch.num_rows:
                    yield f"{dataset.key}: {file}, row {row}", batch.to_pydict()
                row, left = row + batch.num_rows, left - batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{dataset.key}: {file} breaks after row {row} ({error})") from error


def decode_images(where: str, contents: list[Any], size: int) -> Tensor:
    """Decode a batch of image bytes to uint8 [B, 3, S, S].

    Raises:
        DataError: Names the row that is no image.
    """
    rows = []
    for offset, content in enumerate(contents):
        # Hugging Face data sets keep {"bytes": ..., "path": ...} where plain parquet keeps bytes.
        data = content.get("bytes") if isinstance(content, dict) else content
        rows.append(pictures.decode(data or b"", size, f"{where} + {offset}"))
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous()


def _attributes(where: str, rows: list[Any]) -> list[dict[str, str]]:
    """Parse JSON objects of attributes.

    Raises:
        DataError: Names the row that is none.
    """
    found = []
    for offset, row in enumerate(rows):
        try:
            parsed = json.loads(row)
        except (TypeError, json.JSONDecodeError) as error:
            raise DataError(f"{where} + {offset}: attributes must be a JSON object ({error})") from error
        if not isinstance(parsed, dict):
            raise DataError(f"{where} + {offset}: attributes must be a JSON object, got {row!r}")
        found.append(parsed)
    return found


def train_set(config: DataConfig, root: Path) -> Dataset:
    """Open the training data, where there is one set."""
    (dataset,) = train_sets(config, root)
    return dataset


def train_sets(config: DataConfig, root: Path) -> list[Dataset]:
    """Open every training set, in the order they are written.

    Raises:
        DataError: As `open_dataset`, or the subset asks for more rows than there are.
    """
    columns = [config.image_column, *config.captions]
    found = []
    for key, source in config.sources.items():
        found.append(open_dataset(key, source.train, source.num_train, columns, root))
        subset_size(config, key, found[-1].num)
    return found


def subset_size(config: DataConfig, key: str, size: int) -> int:
    """Count the rows of a training set of `size` rows that are trained on: one at the least.

    Raises:
        DataError: The subset asks for more rows than there are.
    """
    subset = config.subset
    if subset is None:
        return size
    if subset.rows is None:
        return max(1, round(float(subset.share or 1) * size))
    if subset.rows > size:
        raise DataError(f"data.subset.rows: {subset.rows} rows are asked for, {key} has {size}")
    return subset.rows


def reference_data(config: DataConfig, root: Path) -> Dataset:
    """Open the held-out data."""
    columns = [config.image_column, config.prompt_column]
    columns += [config.attributes_column] if config.attributes_column else []
    return open_dataset("data.reference", config.reference, config.num_reference, columns, root)


def reference_set(config: RunConfig, cache: Path) -> ReferenceSet:
    """Read the first `evaluation.num_samples` held-out rows.

    Raises:
        DataError: As `open_dataset`, or there are fewer rows than samples, or a row is unreadable.
    """
    data = config.data
    dataset = reference_data(data, cache / "data")
    num = config.evaluation.num_samples
    if dataset.num < num:
        raise DataError(f"evaluation.num_samples: {num} samples need as many held-out rows, there are {dataset.num}")
    dataset = Dataset(dataset.key, dataset.files, num, dataset.fingerprint)
    columns = [data.image_column, data.prompt_column, *([data.attributes_column] if data.attributes_column else [])]
    found: list[Tensor] = []
    prompts: list[str] = []
    attributes: list[dict[str, str]] = []
    for where, batch in batches(dataset, columns, 512):
        found.append(decode_images(where, batch[data.image_column], data.image_size))
        prompts += [str(text) for text in batch[data.prompt_column]]
        if data.attributes_column:
            attributes += _attributes(where, batch[data.attributes_column])
    fingerprint = f"{dataset.fingerprint}-{num}-{data.image_size}"
    return ReferenceSet(torch.cat(found), prompts, attributes if data.attributes_column else None, fingerprint)
