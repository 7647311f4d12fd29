"""What a technique is: five kinds, plain records between them, no hooks.

Shape letters: B batch, G global batch, C latent channels, H W latent grid, N image tokens, K kept
tokens, L text tokens, D denoiser width, E teacher width. Time: t = 0 is data, t = 1 is noise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from prx.config import PartConfig


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
    """Sizes that follow from a configuration alone: no weights, no data.

    `grid` counts tokens, (rows, columns); `channels` and `latent_size` belong to the latent.
    """

    channels: int
    latent_size: int
    depth: int
    grid: tuple[int, int]

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
    """Features after one block. Shapes: `features` [B, K, D]; `index` [B, K], None when K = N."""

    features: Tensor
    index: Tensor | None = None


@dataclass(frozen=True)
class StepView:
    """What a loss term may see of one micro-batch.

    `velocity` is the prediction; `targets` holds frozen teacher tokens [B, N, E] and `partners` the
    velocity of another sample [B, C, H, W], both by the term's name.
    """

    sample: FlowSample
    velocity: Tensor
    taps: Mapping[int, Tap]
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    partners: Mapping[str, Tensor] = field(default_factory=dict)
    grid: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class TeacherSpec:
    """Which frozen image encoder a term compares with. Its tokens are cached per data set and grid."""

    path: str
    grid: tuple[int, int]


class Technique:
    """What every kind shares: a typed configuration, its ranges, and what it cannot work with."""

    Config: ClassVar[type[PartConfig]]
    SEARCH: ClassVar[Mapping[str, SearchRange]] = {}
    SOURCE: ClassVar[str] = ""

    @classmethod
    def problems(cls, config: Any, shape: RunShape) -> list[tuple[str, str]]:
        """Find what cannot work, from the configuration alone: (key below the part, message)."""
        del config, shape
        return []


class Objective(Technique, ABC):
    """Sole owner of timestep sampling, loss weighting and clamps."""

    @abstractmethod
    def timesteps(self, num: int, rng: np.random.Generator) -> Tensor:
        """Draw t for `num` samples: [num] in [0, 1]."""

    @abstractmethod
    def sample(self, clean: Tensor, noise: Tensor, t: Tensor) -> FlowSample:
        """Noise clean latents to time t."""

    @abstractmethod
    def to_velocity(self, output: Tensor, noised: Tensor, t: Tensor) -> Tensor:
        """Read the denoiser's output as a velocity [B, C, H, W]; differentiable."""

    @abstractmethod
    def loss(self, velocity: Tensor, sample: FlowSample) -> Tensor:
        """Compare a predicted velocity with the sample's; mean over every element."""

    @abstractmethod
    def schedule(self, num_steps: int) -> Tensor:
        """Give the sampler's times, [num_steps + 1], from 1 down to 0."""


class ImageTokenizer(Technique, ABC):
    """Frozen map between images [B, 3, S, S] in [-1, 1] and latents of unit scale [B, C, H, W]."""

    channels: int
    downsample: int

    @classmethod
    @abstractmethod
    def geometry(cls, config: Any) -> tuple[int, int]:
        """Give (channels, downsample) without loading weights."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Encode to what the cache keeps: [B, M, H, W], the posterior's moments stacked on channels."""

    @abstractmethod
    def latent(self, moments: Tensor, noise: Tensor | None) -> Tensor:
        """Draw the latent from cached moments; `noise` None takes the mode."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Decode to images in [-1, 1]."""

    @classmethod
    @abstractmethod
    def identity(cls, config: Any) -> str:
        """Name weights and preprocessing, for cache keys."""


class LossTerm(nn.Module, Technique, ABC):
    """A term added to the objective's loss, unweighted; `TrainStep` applies the weight, once."""

    def __init__(self, name: str, config: Any) -> None:
        super().__init__()
        self.name = name
        self.weight: float = config.weight

    @property
    def layer(self) -> int | None:
        """Name the block whose output this term reads, 0-based."""
        return None

    @classmethod
    def teacher(cls, config: Any, shape: RunShape) -> TeacherSpec | None:
        """Name the frozen features this term needs, if any."""
        del config, shape
        return None

    def pair(self, num: int, rng: np.random.Generator) -> np.ndarray | None:
        """Choose for each of `num` samples of the global batch another one, or None."""
        del num, rng
        return None

    @abstractmethod
    def forward(self, view: StepView) -> Tensor:
        """Compute the unweighted term, a scalar."""


class TokenRouter(nn.Module, Technique, ABC):
    """Let only some tokens through blocks `start`..`end`, inclusive."""

    start: int
    end: int

    @abstractmethod
    def select(self, num: int, num_tokens: int, rng: np.random.Generator) -> Tensor:
        """Choose kept tokens for `num` samples: sorted int64 [num, K]."""

    @abstractmethod
    def merge(self, kept: Tensor, full: Tensor, index: Tensor) -> Tensor:
        """Put kept tokens [B, K, D] back among all [B, N, D]."""


class OptimizerFactory(Technique, ABC):
    """Build the optimizer that DeepSpeed shards."""

    @abstractmethod
    def build(self, named_parameters: Iterator[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Group the parameters and build the optimizer."""


def gather(tokens: Tensor, index: Tensor | None) -> Tensor:
    """Take tokens [B, N, D] at index [B, K]; None keeps all."""
    if index is None:
        return tokens
    return torch.gather(tokens, 1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
