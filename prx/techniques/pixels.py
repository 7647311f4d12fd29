"""No tokenizer at all: the denoiser works on pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prx.config import PartConfig
from prx.interfaces import ImageTokenizer

VERSION = 1


class Pixels(ImageTokenizer):
    """Images in [-1, 1] as they are: 3 channels, not reduced; tokens are `denoiser.patch_size` pixels wide.

    Their standard deviation is about 0.5, not 1, so that the signal is weaker at equal t than a latent's; the
    objective's noise scale and shift are the knobs for that, as in the paper.
    Source: JiT, Li and He 2025 (arXiv:2511.13720); PRX's identity VAE.
    """

    SOURCE = "Li and He 2025, arXiv:2511.13720"
    PROVIDES = frozenset({"pixels"})
    channels, downsample = 3, 1

    class Config(PartConfig):
        """There is nothing to set."""

    def __init__(self, config: Config, device: torch.device) -> None:
        del device
        self.config = config

    @classmethod
    def geometry(cls, config: Any) -> tuple[int, int]:
        """Give (channels, downsample)."""
        del config
        return cls.channels, cls.downsample

    @classmethod
    def identity(cls, config: Any) -> str:
        """Name this file's version of the scaling."""
        del config
        return f"pixels-v{VERSION}"

    def encode(self, images: Tensor) -> Tensor:
        """Keep images [B, 3, S, S] in [-1, 1]."""
        return images

    def latent(self, moments: Tensor, noise: Tensor | None) -> Tensor:
        """Keep the images; there is nothing to draw."""
        del noise
        return moments

    def decode(self, latents: Tensor) -> Tensor:
        """Clamp to [-1, 1], for display and measuring."""
        return latents.clamp(-1, 1)
