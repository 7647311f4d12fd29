"""Write the embedded world as parquet shards with the columns that a real captioned data set has."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from prx.embedded.scenes import attributes, caption_long, caption_short, photograph, render, sample_scene

DATASET_VERSION = 1
SPLIT_SEEDS: dict[str, int] = {"train": 1001, "reference": 2002, "photos": 3003}
PHOTOGRAPHED = frozenset({"photos"})
"""Splits whose pictures are taken through a simulated camera: other pixels, the same scenes and captions."""
COLUMNS = ("id", "image", "caption_long", "caption_short", "attributes")
_MANIFEST = "_manifest.json"  # readers of parquet folders skip names with an underscore
_SCHEMA = pa.schema([(name, pa.binary() if name == "image" else pa.string()) for name in COLUMNS])


def split_folder(name: str, num: int, root: Path) -> Path:
    """Give the folder of a split's first `num` scenes, written on first use.

    Raises:
        ValueError: There is no such split.
    """
    if name not in SPLIT_SEEDS:
        raise ValueError(f"embedded split must be one of {', '.join(SPLIT_SEEDS)}, got {name!r}")
    folder = Path(root) / f"{name}-{num}-v{DATASET_VERSION}"
    write_dataset(folder, num=num, seed=SPLIT_SEEDS[name], photographed=name in PHOTOGRAPHED)
    return folder


def write_dataset(folder: Path, *, num: int, seed: int, rows_per_shard: int = 4096, photographed: bool = False) -> None:
    """Write `num` scenes; the folder appears whole or not at all, and an equal one is left alone.

    Raises:
        ValueError: A count is not positive, or the folder holds something else.
    """
    for name, value in (("num", num), ("rows_per_shard", rows_per_shard)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    folder = Path(folder)
    manifest = {"version": DATASET_VERSION, "num": num, "seed": seed, "rows_per_shard": rows_per_shard}
    manifest |= {"photographed": 1} if photographed else {}
    if _is_finished(folder, manifest):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        _write_shards(temporary, num, seed, rows_per_shard, photographed)
        (temporary / _MANIFEST).write_text(json.dumps(manifest) + "\n", encoding="utf-8")
        _publish(temporary, folder, manifest)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_finished(folder: Path, manifest: dict[str, int]) -> bool:
    if not folder.exists() or not any(folder.iterdir()):
        return False
    path = folder / _MANIFEST
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if found != manifest:
        raise ValueError(f"{folder} must be absent, empty or hold {manifest}, got {found or 'other files'}")
    return True


def _publish(temporary: Path, folder: Path, manifest: dict[str, int]) -> None:
    """Rename into place; another process that was faster has written the same bytes."""
    try:
        temporary.rename(folder)
    except OSError:
        if not _is_finished(folder, manifest):
            raise


def _write_shards(folder: Path, num: int, seed: int, rows_per_shard: int, photographed: bool) -> None:
    rng = np.random.default_rng([seed, DATASET_VERSION])
    for shard, begin in enumerate(range(0, num, rows_per_shard)):
        rows = [_row(f"{seed}-{i:08d}", rng, photographed) for i in range(begin, min(begin + rows_per_shard, num))]
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), folder / f"part-{shard:05d}.parquet")


def _row(name: str, rng: np.random.Generator, photographed: bool) -> dict[str, str | bytes]:
    scene = sample_scene(rng)
    picture = photograph(render(scene), rng) if photographed else render(scene)
    return {
        "id": name,
        "image": _png(picture),
        "caption_long": caption_long(scene),
        "caption_short": caption_short(scene),
        "attributes": json.dumps(attributes(scene)),
    }


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
