"""Frozen image encoders that alignment compares with: DINOv2 with registers, DINOv3."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from prx import images as pictures
from prx import loaders
from prx.errors import UserError

VERSION = 1
KNOWN = ("dinov2", "dinov2_with_registers", "dinov3_vit")


def teacher_width(path: str) -> int:
    """Read E without loading weights.

    Raises:
        UserError: The folder holds no known teacher.
    """
    found = loaders.read_config(path)
    if found.get("model_type") not in KNOWN:
        raise UserError(f"teacher {path!r} is a {found.get('model_type')!r}, must be one of {', '.join(KNOWN)}")
    return int(found["hidden_size"])


def identity(path: str) -> str:
    """Name weights and preprocessing, for cache keys."""
    return f"teacher-v{VERSION}:{loaders.identity(path)}"


class Teacher:
    """Patch tokens after the final norm, without CLS and registers.

    Source: Oquab et al. 2023 (arXiv:2304.07193); Darcet et al. 2023 (arXiv:2309.16588); Siméoni et al.
    2025 (arXiv:2508.10104).
    """

    def __init__(self, path: str, device: torch.device) -> None:
        from transformers import AutoModel

        self.width = teacher_width(path)
        self.model = loaders.load(AutoModel, path, dtype=torch.float32).to(device)
        self.patch = int(self.model.config.patch_size)
        self.prefix = 1 + int(getattr(self.model.config, "num_register_tokens", 0))
        self.mean, self.std = _statistics(Path(loaders.resolve(path)))

    @torch.no_grad()
    def tokens(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Encode uint8 images [B, 3, S, S] to tokens [B, N, E], one per cell of `grid`, row-major."""
        size = (grid[0] * self.patch, grid[1] * self.patch)
        pixels = pictures.for_teacher(images, size, self.mean, self.std)
        tokens = self.model(pixel_values=pixels).last_hidden_state[:, self.prefix :]
        if tokens.shape[1] != grid[0] * grid[1]:
            raise UserError(f"teacher gives {tokens.shape[1]} tokens for a grid of {grid[0]}x{grid[1]}")
        return tokens


def _statistics(folder: Path) -> tuple[list[float], list[float]]:
    """Read channel statistics beside the weights; ImageNet's where the folder has none."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return list(pictures.IMAGENET_MEAN), list(pictures.IMAGENET_STD)
    found = json.loads(file.read_text(encoding="utf-8"))
    return found["image_mean"], found["image_std"]
