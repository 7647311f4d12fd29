"""Bring uint8 images to what each role's network expects.

Shape letters: B batch, C=3 channels, H W image grid, S network input side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.weights import read_json

PREPROCESSOR_FILE = "preprocessor_config.json"
# Frozen in every stored embedding's identity: raise a role's number when its pixels change in any way.
PREPROCESSING_VERSIONS = {
    "clip": "shorter-side-bicubic-aa-centre-crop-uint8-v1",
    "dino": "squash-bicubic-v1",
    "inception": "squash-bilinear-aa-v1",
}


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop and standardise for one role.

    Shapes: height and width are the network's input; mean and std have one entry per channel.
    Units: mean and std for pixel values in 0..1.
    """

    role: str
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def version(self) -> str:
        """Name the recipe and its constants."""
        return f"{PREPROCESSING_VERSIONS[self.role]}-{self.height}x{self.width}"

    def __call__(self, images: Tensor) -> Tensor:
        """Return standardised float32 input.

        Shapes: uint8 [B, 3, H, W] -> float32 [B, 3, S, S].
        """
        pixels = _RESIZERS[self.role](images.float(), self.height, self.width)
        mean = torch.tensor(self.mean, device=pixels.device)[:, None, None]
        std = torch.tensor(self.std, device=pixels.device)[:, None, None]
        return (pixels / 255.0 - mean) / std


def checked_images(images: Tensor) -> Tensor:
    """Return the images if they are uint8 RGB, else say what they are."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images must be uint8 of shape [B, 3, H, W], got {str(images.dtype).removeprefix('torch.')} "
            f"of shape {list(images.shape)}"
        )
    return images


def read_preprocessing(role: str, folder: Path, model_size: int | None) -> Preprocessing:
    """Read size, mean and standard deviation from a folder's preprocessor file.

    A squash has no shorter side: where `size` names one (a crop recipe) the dino and inception roles take the
    image size the model was built for, and without that the crop size.
    """
    file = folder / PREPROCESSOR_FILE
    settings = read_json(file)
    height, width = _input_size(role, settings, model_size, file)
    mean, std = (_channels(settings, key, file) for key in ("image_mean", "image_std"))
    if min(std) <= 0:
        raise ValueError(f"{file}: image_std must be positive, got {list(std)}")
    return Preprocessing(role, height, width, mean, std)


def _input_size(
    role: str, settings: Mapping[str, Any], model_size: int | None, file: Path
) -> tuple[int, int]:
    size, crop = settings.get("size"), settings.get("crop_size")
    if role == "clip":
        found = _height_width(crop) or _height_width(size) or _shortest_edge(size)
    else:
        found = _height_width(size) or (model_size and (model_size, model_size)) or _height_width(crop)
        found = found or _shortest_edge(size)
    if not found:
        raise ValueError(f"{file}: size must be a number, height and width, or shortest_edge, got {size!r}")
    if role == "clip" and found[0] != found[1]:
        raise ValueError(f"{file}: the clip role needs a square input, got {found[0]}x{found[1]}")
    return found


def _height_width(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int):
        return value, value
    if isinstance(value, Mapping) and "height" in value and "width" in value:
        return int(value["height"]), int(value["width"])
    return None


def _shortest_edge(value: Any) -> tuple[int, int] | None:
    if isinstance(value, Mapping) and "shortest_edge" in value:
        return int(value["shortest_edge"]), int(value["shortest_edge"])
    return None


def _channels(settings: Mapping[str, Any], key: str, file: Path) -> tuple[float, ...]:
    value = settings.get(key)
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError(f"{file}: {key} must be a list of 3 numbers, got {value!r}")
    return tuple(float(number) for number in value)


def _clip_resize(pixels: Tensor, height: int, width: int) -> Tensor:
    rows, columns = pixels.shape[-2:]
    shorter = min(rows, columns)
    # Integer arithmetic, so that the longer side is cut alike on every platform.
    target = (rows * height // shorter, columns * width // shorter)
    if target != (rows, columns):
        pixels = F.interpolate(pixels, size=target, mode="bicubic", antialias=True).clamp(0, 255).round()
    top, left = (target[0] - height) // 2, (target[1] - width) // 2
    return pixels[..., top : top + height, left : left + width]


def _dino_resize(pixels: Tensor, height: int, width: int) -> Tensor:
    if tuple(pixels.shape[-2:]) == (height, width):
        return pixels
    return F.interpolate(pixels, size=(height, width), mode="bicubic", antialias=False).clamp(0, 255)


def _inception_resize(pixels: Tensor, height: int, width: int) -> Tensor:
    if tuple(pixels.shape[-2:]) == (height, width):
        return pixels
    return F.interpolate(pixels, size=(height, width), mode="bilinear", antialias=True)


_RESIZERS = {"clip": _clip_resize, "dino": _dino_resize, "inception": _inception_resize}
