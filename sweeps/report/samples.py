"""Sample grids of the cells beside each other: same prompts, same noise, step by step, small enough to embed."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError

if TYPE_CHECKING:
    from sweeps.report.gather import Material

SIDE = 448
"""Pixels of a grid's longer side at the most: it is shown at half of that on a phone."""

MOST_BYTES = 6 * 1024**2
MOST_STEPS = 8
QUALITY = 82
_NAME = re.compile(r"step-(\d{8})\.png")


@dataclass(frozen=True)
class Picture:
    """A grid at a step, as a data URI."""

    step: int
    uri: str


@dataclass(frozen=True)
class Grid:
    """A cell's grids over the steps."""

    cell_id: str
    name: str
    state: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Samples:
    """What is shown, at which steps, which prompts they answer, and how many cells did not fit."""

    grids: tuple[Grid, ...]
    steps: tuple[int, ...]
    prompts: tuple[str, ...]
    without: int


def samples(material: Material) -> Samples | None:
    """Take the baseline's grids and then the best cells', up to the limit of bytes; None where nothing was drawn."""
    order = sorted(material.ranked, key=lambda result: result.name != _baseline(material))
    cells = {cell.name: cell.cell_id for cell in material.cells}
    there = {r.name: paths for r in order if (paths := _paths(material, cells[r.name]))}
    steps = _thinned(sorted({step for paths in there.values() for step in paths}))
    grids: list[Grid] = []
    size = 0
    for result in order:
        if result.name not in there:
            continue
        pictures = tuple(_pictures(there[result.name], steps))
        size += sum(len(picture.uri) for picture in pictures)
        if grids and size > MOST_BYTES:
            break
        grids.append(Grid(cells[result.name], result.name, result.state, pictures))
    if not grids:
        return None
    return Samples(tuple(grids), tuple(steps), prompts(material), len(there) - len(grids))


def _baseline(material: Material) -> str:
    return next((cell.name for cell in material.cells if cell.is_baseline), "")


def _paths(material: Material, cell_id: str) -> dict[int, Path]:
    folder = material.folder.trial(material.first_trial(cell_id)) / "samples"
    found = ((_NAME.fullmatch(path.name), path) for path in sorted(folder.glob("step-*.png")))
    return {int(match.group(1)): path for match, path in found if match}


def _thinned(steps: Sequence[int]) -> list[int]:
    """Keep the last step, and others spread evenly before it."""
    if len(steps) <= MOST_STEPS:
        return list(steps)
    return [steps[-1 - round(i * (len(steps) - 1) / (MOST_STEPS - 1))] for i in reversed(range(MOST_STEPS))]


def _pictures(paths: dict[int, Path], steps: Sequence[int]) -> Iterator[Picture]:
    for step in steps:
        if step in paths:
            uri = _uri(paths[step], paths[step].stat().st_mtime_ns)
            if uri:
                yield Picture(step, uri)


@lru_cache(maxsize=4096)
def _uri(path: Path, changed: int) -> str:
    """Encode a grid; empty where the file is no whole picture. `changed` makes a rewritten file another one."""
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError):
        return ""
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    target = io.BytesIO()
    small.save(target, "WEBP", quality=QUALITY, method=2)
    return "data:image/webp;base64," + base64.b64encode(target.getvalue()).decode()


def prompts(material: Material) -> tuple[str, ...]:
    """Read the prompts of the baseline's grid from its reference data, where those are still there."""
    cell = next((cell for cell in material.cells if cell.is_baseline), None)
    config = material.config(cell.cell_id) if cell else None
    if config is None:
        return ()
    data = config["data"]
    folder = _reference(str(data["reference"]), data["num_reference"], material.folder.cache)
    return _first_texts(folder, str(data["prompt_column"]), int(config["evaluation"]["grid"]))


def _reference(location: str, num: int | None, cache: Path) -> Path:
    """Find the folder of the reference data, without making any."""
    from prx.embedded.dataset import DATASET_VERSION

    name = location.removeprefix("embedded:")
    return Path(location) if name == location else cache / "data" / f"{name}-{num}-v{DATASET_VERSION}"


def _first_texts(folder: Path, column: str, count: int) -> tuple[str, ...]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: list[str] = []
    for file in sorted(folder.glob("*.parquet")):
        try:
            rows = next(pq.ParquetFile(file).iter_batches(batch_size=count, columns=[column]), None)
        except (pa.ArrowException, OSError):
            return ()
        if rows is not None and rows.num_columns:
            found += [str(text) for text in rows.column(0).to_pylist()]
        if len(found) >= count:
            break
    return tuple(found[:count])
