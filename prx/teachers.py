"""Frozen image encoders that alignment compares with: DINOv2 with registers, DINOv3."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

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


def teacher_heads(path: str) -> int:
    """Read the number of attention heads without loading weights."""
    return int(loaders.read_config(path)["num_attention_heads"])


def identity(path: str) -> str:
    """Name weights and preprocessing, for cache keys."""
    return f"teacher-v{VERSION}:{loaders.identity(path)}"


class Teacher:
    """Patch tokens after the final norm, without CLS and registers.

    Source: Oquab et al. 2023 (arXiv:2304.07193); Darcet et al. 2023 (arXiv:2309.16588); Siméoni et al.
    2025 (arXiv:2508.10104).
    """

    def __init__(self, path: str, device: torch.device, *, attention: bool = False) -> None:
        from transformers import AutoModel

        self.width = teacher_width(path)
        kind = "eager" if attention else "sdpa"  # fused attention does not show its maps
        self.model = loaders.load(AutoModel, path, dtype=torch.float32, attn_implementation=kind).to(device)
        self.patch = int(self.model.config.patch_size)
        self.prefix = 1 + int(getattr(self.model.config, "num_register_tokens", 0))
        self.mean, self.std = _statistics(loaders.folder(path))

    def _pixels(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        size = (grid[0] * self.patch, grid[1] * self.patch)
        return pictures.for_teacher(images, size, self.mean, self.std)

    @torch.no_grad()
    def attention(self, images: Tensor, grid: tuple[int, int], layers: Sequence[int]) -> Tensor:
        """Give attention among patches, rows summing to 1: [B, layers, heads, N, N] for uint8 images.

        CLS and registers are left out of rows and columns, and the rest normalised again.
        """
        found = self.model(pixel_values=self._pixels(images, grid), output_attentions=True).attentions
        maps = torch.stack([found[layer][:, :, self.prefix :, self.prefix :] for layer in layers], dim=1)
        return maps / maps.sum(dim=-1, keepdim=True)

    @torch.no_grad()
    def tokens(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Encode uint8 images [B, 3, S, S] to tokens [B, N, E], one per cell of `grid`, row-major."""
        tokens = self.model(pixel_values=self._pixels(images, grid)).last_hidden_state[:, self.prefix :]
        if tokens.shape[1] != grid[0] * grid[1]:
            raise UserError(f"teacher gives {tokens.shape[1]} tokens for a grid of {grid[0]}x{grid[1]}")
        return tokens

    def features(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Encode images [B, 3, S, S] in [-1, 1] to tokens [B, N, E], differentiable and therefore unclamped."""
        size, scaled = (grid[0] * self.patch, grid[1] * self.patch), images.float().add(1).div(2)
        if scaled.shape[-2:] != size:
            scaled = functional.interpolate(scaled, size=size, mode="bicubic", antialias=True)
        mean, std = (scaled.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return self.model(pixel_values=(scaled - mean) / std).last_hidden_state[:, self.prefix :]


def _statistics(folder: Path) -> tuple[list[float], list[float]]:
    """Read channel statistics beside the weights; ImageNet's where the folder has none."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return list(pictures.IMAGENET_MEAN), list(pictures.IMAGENET_STD)
    found = json.loads(file.read_text(encoding="utf-8"))
    return found["image_mean"], found["image_std"]
