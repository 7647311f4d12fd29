"""Images as tensors: decode, resize, normalise, draw a grid."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from prx.errors import DataError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# PIL reports a broken PNG chunk as SyntaxError, and a bomb as an exception of its own.
UNREADABLE = (
    *(UnidentifiedImageError, OSError, ValueError, TypeError),
    *(SyntaxError, Image.DecompressionBombError),
)

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Modes of 8 bits a channel; PIL cuts what is above 255 off the others, so that 16-bit pictures would be white."""


def decode(content: bytes, size: int, where: str) -> np.ndarray:
    """Decode image bytes to RGB uint8 [size, size, 3]: shorter side resized, centre cropped.

    Turned as its EXIF says, transparency laid over white, as `evaluation` reads pictures.

    Raises:
        DataError: The bytes are no image of 8 bits a channel; `where` says which row of which file.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode not in MODES:
                raise DataError(f"{where}: must have 8 bits per channel, got mode {image.mode}")
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            rgb = image.convert("RGB")
    except DataError:
        raise
    except UNREADABLE as error:
        raise DataError(f"{where}: is not a readable image ({error})") from error
    scale = size / min(rgb.size)
    if scale != 1:
        resized = (max(size, round(rgb.width * scale)), max(size, round(rgb.height * scale)))
        rgb = rgb.resize(resized, Image.Resampling.BICUBIC)
    left, top = (rgb.width - size) // 2, (rgb.height - size) // 2
    return np.asarray(rgb.crop((left, top, left + size, top + size)))


def to_unit(images: Tensor) -> Tensor:
    """Map uint8 [B, 3, S, S] to float32 in [-1, 1]."""
    return images.float().div(127.5).sub(1)


def to_uint8(images: Tensor) -> Tensor:
    """Map [-1, 1] to uint8."""
    return images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def for_teacher(images: Tensor, size: tuple[int, int], mean: list[float], std: list[float]) -> Tensor:
    """Resize uint8 images bicubically with antialiasing and normalise by channel statistics."""
    scaled = images.float().div(255)
    if scaled.shape[-2:] != size:
        scaled = F.interpolate(scaled, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    centre = torch.tensor(mean, device=images.device).view(1, -1, 1, 1)
    spread = torch.tensor(std, device=images.device).view(1, -1, 1, 1)
    return (scaled - centre) / spread


def save_grid(images: Tensor, path: Path, columns: int | None = None, zoom: int | None = None) -> None:
    """Write uint8 images [N, 3, S, S] as one PNG, row by row, small ones enlarged to be seen."""
    count, _, height, width = images.shape
    columns = columns or max(1, round(count**0.5))
    zoom = zoom or max(1, 96 // width)
    rows = -(-count // columns)
    sheet = Image.new("RGB", (columns * (width * zoom + 2) + 2, rows * (height * zoom + 2) + 2), "white")
    for position, image in enumerate(images):
        tile = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        tile = tile.resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
        row, column = divmod(position, columns)
        sheet.paste(tile, (column * (width * zoom + 2) + 2, row * (height * zoom + 2) + 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    sheet.save(partial, format="PNG")
    partial.replace(path)
