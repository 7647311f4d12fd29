"""Read folders of PNG and JPEG images of any mix of sizes.

Shape letters: B batch, H W image grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from evaluation.features import BATCH_SIZE, Extractor

SUFFIXES = (".png", ".jpg", ".jpeg")
# Modes with more than 8 bits would be cut, not scaled, on the way to RGB.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


def list_images(folder: Path) -> list[Path]:
    """List a folder's images in name order, without its subfolders.

    Raises: FileNotFoundError if there is no such folder; ValueError if it holds no image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"image folder {folder} must exist, got no such folder")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise ValueError(f"image folder {folder} must hold {', '.join(SUFFIXES)} files, got none")
    return files


def read_image(file: Path) -> Tensor:
    """Return one image as RGB, turned as its EXIF says, transparency laid over white.

    Shapes: uint8 [3, H, W].
    Raises: ValueError naming a file that cannot be read.
    """
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {file} must be a readable PNG or JPEG, got {error}") from error
    if image.mode not in MODES:
        raise ValueError(f"image {file} must have 8 bits per channel, got mode {image.mode}")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def image_batches(files: Sequence[Path], batch_size: int = BATCH_SIZE) -> Iterator[tuple[list[int], Tensor]]:
    """Yield positions and pixels of images of one size at a time.

    No more than four batches wait for others of their size, so memory is bounded in a folder of odd sizes.

    Shapes: uint8 [B, 3, H, W].
    """
    waiting: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
    for position, file in enumerate(files):
        image = read_image(file)
        group = waiting.setdefault(tuple(image.shape), [])
        group.append((position, image))
        if len(group) == batch_size or sum(map(len, waiting.values())) >= 4 * batch_size:
            fullest = max(waiting, key=lambda size: len(waiting[size]))
            yield _stacked(waiting.pop(fullest))
    yield from map(_stacked, waiting.values())


def embed_files(
    files: Sequence[Path], extractors: Mapping[str, Extractor], *, batch_size: int = BATCH_SIZE
) -> dict[str, Tensor]:
    """Embed every file with every extractor, decoding each once.

    Shapes: each entry float32 [files, width], in the order of the files.
    """
    found = {name: torch.empty(len(files), extractor.width) for name, extractor in extractors.items()}
    for positions, images in image_batches(files, batch_size):
        for name, extractor in extractors.items():
            found[name][positions] = extractor.embed(images, batch_size=batch_size)
    return found


def _stacked(group: list[tuple[int, Tensor]]) -> tuple[list[int], Tensor]:
    return [position for position, _ in group], torch.stack([image for _, image in group])
