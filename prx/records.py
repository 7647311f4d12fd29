"""The plain records that techniques read and give, and the ranges they may be searched over.

Shape letters: B batch, G global batch, C latent channels, H W latent grid, N image tokens, K kept
tokens, L text tokens, D denoiser width, E teacher width. Time: t = 0 is data, t = 1 is noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class LogUniform:
    """Search range, uniform in the logarithm."""

    low: float
    high: float


@dataclass(frozen=True)
class Uniform:
    """Search range, uniform."""

    low: float
    high: float


@dataclass(frozen=True)
class Choice:
    """Search range over listed values."""

    values: tuple[Any, ...]


SearchRange = LogUniform | Uniform | Choice


@dataclass(frozen=True)
class RunShape:
    """What follows from a configuration alone: no weights, no data.

    `grid` counts tokens, (rows, columns); `channels` and `latent_size` belong to the latent; `route` names
    the first and last block that a router shortens; `provides` joins what the parts offer each other;
    `caption_dropout` is the chance that a caption is dropped.
    """

    channels: int
    latent_size: int
    depth: int
    grid: tuple[int, int]
    width: int = 32
    heads: int = 2
    route: tuple[int, int] | None = None
    zero_stage: int = 0
    grad_clip: float | None = None
    provides: frozenset[str] = frozenset()
    caption_dropout: float = 0.0

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class FlowSample:
    """One noising draw. Shapes: `clean`, `noise`, `noised` [B, C, H, W]; `t` [B] in [0, 1]."""

    clean: Tensor
    noise: Tensor
    t: Tensor
    noised: Tensor

    @property
    def velocity(self) -> Tensor:
        """Give d noised / dt = noise - clean."""
        return self.noise - self.clean


@dataclass(frozen=True)
class Tap:
    """Features after one block. Shapes: `features` [B, K, D]; `index` [B, K], None when K = N.

    `attention` holds the block's logits among image tokens, [B, heads, K, K], where a term asks for them.
    """

    features: Tensor
    index: Tensor | None = None
    attention: Tensor | None = None


@dataclass(frozen=True)
class Route:
    """Which tokens a router lets through. Shapes: `kept` sorted int64 [B, K]; `skipped` bool [B].

    K = 0 skips the routed blocks altogether; samples that are `skipped` do so alone.
    """

    kept: Tensor
    skipped: Tensor | None = None


@dataclass(frozen=True)
class PairContext:
    """What a term may know of the global batch when it pairs samples.

    Shapes: `prompts` int64 [G], equal where captions are equal; `unconditional` bool [G], dropped captions.
    """

    prompts: np.ndarray
    unconditional: np.ndarray


@dataclass(frozen=True)
class StepView:
    """What a loss term may see of one micro-batch.

    `velocity` is the prediction; `targets` holds frozen teacher tokens [B, N, E] and `partners` the
    target velocity of another sample [B, C, H, W], both by the term's name; `attention` the teacher's
    attention among patches [B, layers, heads, N, N]; `estimate` the predicted clean latent
    [B, C, H, W], where a term asks for it; `unconditional` bool [B] marks dropped captions.
    """

    sample: FlowSample
    velocity: Tensor
    taps: Mapping[int, Tap]
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    partners: Mapping[str, Tensor] = field(default_factory=dict)
    grid: tuple[int, int] = (0, 0)
    attention: Mapping[str, Tensor] = field(default_factory=dict)
    estimate: Tensor | None = None
    unconditional: Tensor | None = None


@dataclass(frozen=True)
class TeacherSpec:
    """Which frozen image encoder a term compares with. Its outputs are cached per data set and grid.

    `attention` lists the teacher's blocks whose attention maps are wanted, instead of tokens.
    """

    path: str
    grid: tuple[int, int]
    attention: tuple[int, ...] = ()


@dataclass(frozen=True)
class Drawn:
    """Latents of one batch as a trained tokenizer makes them, [B, C, H, W], and their posterior's divergence."""

    latents: Tensor
    divergence: Tensor


def gather(tokens: Tensor, index: Tensor | None) -> Tensor:
    """Take tokens [B, N, D] at index [B, K]; None keeps all."""
    if index is None:
        return tokens
    return torch.gather(tokens, 1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
