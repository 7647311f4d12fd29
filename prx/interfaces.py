"""What a technique is: five kinds, plain records between them, no hooks.

Shape letters: B batch, G global batch, C latent channels, H W latent grid, N image tokens, K kept
tokens, L text tokens, D denoiser width, E teacher width. Time: t = 0 is data, t = 1 is noise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from prx.config import PartConfig
from prx.records import (
    Choice,
    Drawn,
    FlowSample,
    LogUniform,
    PairContext,
    Route,
    RunShape,
    SearchRange,
    StepView,
    Tap,
    TeacherSpec,
    Uniform,
    gather,
)

__all__ = [
    "Choice",
    "Drawn",
    "FlowSample",
    "ImageTokenizer",
    "LogUniform",
    "LossTerm",
    "Objective",
    "OptimizerFactory",
    "PairContext",
    "Route",
    "RunShape",
    "SearchRange",
    "StepView",
    "Tap",
    "TeacherSpec",
    "Technique",
    "TokenRouter",
    "TrainedTokenizer",
    "Uniform",
    "gather",
]


class Technique:
    """What every kind shares: a typed configuration, its ranges, and what it cannot work with.

    `PROVIDES` is what others may ask for in `RunShape.provides`; `REQUIRES` and `CONFLICTS` tell people, in
    a few words, what `problems` enforces. `DRAWN` names settings of a loss term that act only when pictures
    are drawn: runs that differ in nothing else are trained once.
    """

    Config: ClassVar[type[PartConfig]]
    SEARCH: ClassVar[Mapping[str, SearchRange]] = {}
    SOURCE: ClassVar[str] = ""
    PROVIDES: ClassVar[frozenset[str]] = frozenset()
    REQUIRES: ClassVar[tuple[str, ...]] = ()
    CONFLICTS: ClassVar[tuple[str, ...]] = ()
    DRAWN: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def problems(cls, config: Any, shape: RunShape) -> list[tuple[str, str]]:
        """Find what cannot work, from the configuration alone: (key below the part, message)."""
        del config, shape
        return []


class Objective(Technique, ABC):
    """Sole owner of timestep sampling, loss weighting and clamps."""

    noise_scale: float = 1.0

    @abstractmethod
    def timesteps(self, num: int, rng: np.random.Generator) -> Tensor:
        """Draw t for `num` samples: [num] in [0, 1]."""

    def sample(self, clean: Tensor, noise: Tensor, t: Tensor) -> FlowSample:
        """Interpolate linearly between clean [B, C, H, W] and scaled noise at t [B]."""
        time, scaled = t.view(-1, 1, 1, 1), noise * self.noise_scale if self.noise_scale != 1.0 else noise
        return FlowSample(clean, scaled, t, (1 - time) * clean + time * scaled)

    def target(self, sample: FlowSample) -> Tensor:
        """Give the velocity that a perfect prediction has [B, C, H, W]."""
        return sample.velocity

    def to_clean(self, velocity: Tensor, noised: Tensor, t: Tensor) -> Tensor:
        """Read a velocity as the clean latent it leads to [B, C, H, W]; differentiable."""
        return noised - t.view(-1, 1, 1, 1) * velocity

    def stride(self, now: float, after: float) -> float:
        """Say how far along the velocity a sampler moves from time `now` to `after`."""
        return now - after

    @abstractmethod
    def to_velocity(self, output: Tensor, noised: Tensor, t: Tensor) -> Tensor:
        """Read the denoiser's output as a velocity [B, C, H, W]; differentiable."""

    def loss(self, velocity: Tensor, sample: FlowSample) -> Tensor:
        """Compare a predicted velocity with the target; mean over every element."""
        return (velocity - self.target(sample)).square().mean()

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


class TrainedTokenizer(nn.Module, ImageTokenizer, ABC):
    """A tokenizer that learns with the denoiser; part of `TrainStep`, so trained and checkpointed with it.

    Its normalisation stands between its own latents and the denoiser, whose latents have unit scale.
    `align_weight` weighs alignment in its loss, where a term's own weight counts for the denoiser.
    """

    align_weight: float

    @abstractmethod
    def draw(self, images: Tensor, noise: Tensor) -> Drawn:
        """Encode images in [-1, 1] and draw latents, not normalised yet; differentiable."""

    @abstractmethod
    def normalise(self, latents: Tensor) -> Tensor:
        """Bring latents to unit scale by running statistics; differentiable."""

    @abstractmethod
    def normalise_batch(self, latents: Tensor) -> Tensor:
        """Bring latents to unit scale by their own statistics, which the running ones follow; no gradient."""

    @abstractmethod
    def losses(self, images: Tensor, drawn: Drawn) -> dict[str, tuple[float, Tensor]]:
        """Compute the tokenizer's own losses: (weight, value) by name."""

    @abstractmethod
    def measure(self, images: Tensor) -> Tensor:
        """Give the mean and the mean square of every channel of these images' latents: [2, C]."""

    @abstractmethod
    def start_from(self, mean: Tensor, var: Tensor) -> None:
        """Begin with running statistics [C] measured on the training data."""


class LossTerm(nn.Module, Technique, ABC):
    """A term added to the objective's loss, unweighted; `TrainStep` applies the weight, once.

    Frozen networks that a term needs at every step are not registered as its modules: DeepSpeed would
    shard them.
    """

    wants_estimate: ClassVar[bool] = False

    def __init__(self, name: str, config: Any, shape: RunShape, teacher_width: int = 0) -> None:
        super().__init__()
        del shape, teacher_width
        self.name = name
        self.config = config

    @property
    def layer(self) -> int | None:
        """Name the block whose output this term reads, 0-based."""
        return None

    @property
    def attended(self) -> tuple[int, ...]:
        """Name the blocks whose attention this term reads, 0-based."""
        return ()

    @classmethod
    def teacher(cls, config: Any, shape: RunShape) -> TeacherSpec | None:
        """Name the frozen features this term needs, if any."""
        del config, shape
        return None

    def pair(self, context: PairContext, rng: np.random.Generator) -> np.ndarray | None:
        """Choose for each sample of the global batch another one, int64 [G], or None."""
        del context, rng
        return None

    def correct(self, velocity: Tensor, mean_clean: Tensor, weight: float) -> Tensor:
        """Undo at sampling what the term, trained with `weight`, does to the velocity [B, C, H, W].

        `mean_clean` [C, H, W] is the mean latent of the training data.
        """
        del mean_clean, weight
        return velocity

    @property
    def corrects(self) -> bool:
        """Tell whether `correct` changes anything."""
        return False

    @abstractmethod
    def forward(self, view: StepView) -> Tensor:
        """Compute the unweighted term, a scalar."""


class TokenRouter(nn.Module, Technique, ABC):
    """Let only some tokens through blocks `start`..`end`, inclusive."""

    def __init__(self, config: Any, shape: RunShape) -> None:
        super().__init__()
        self.config = config
        self.start, self.end = type(self).span(config, shape)

    @classmethod
    @abstractmethod
    def span(cls, config: Any, shape: RunShape) -> tuple[int, int]:
        """Give the first and the last routed block, 0-based."""

    @abstractmethod
    def draw(self, num: int, grid: tuple[int, int], rng: np.random.Generator) -> Route:
        """Choose kept tokens for `num` samples."""

    def draw_dense(self, num: int, grid: tuple[int, int], rng: np.random.Generator) -> Route | None:
        """Choose what is left to chance once no token is dropped any more."""
        del num, grid, rng
        return None

    @abstractmethod
    def merge(self, kept: Tensor, full: Tensor, route: Route | None) -> Tensor:
        """Put kept tokens [B, K, D] back among those before block `start`, `full` [B, N, D].

        Without a route, as when sampling, all tokens went through: `kept` is [B, N, D].
        """


class OptimizerFactory(Technique, ABC):
    """Build the optimizer that DeepSpeed shards."""

    @abstractmethod
    def build(self, named_parameters: Iterator[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Group the parameters and build the optimizer."""

    def groups(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, list[str]]:
        """Report which parameters `build` puts into which group, by name."""
        return {"all": [name for name, _ in named_parameters]}

    def zero_optimization(self, stage: int) -> dict[str, Any]:
        """Give what DeepSpeed's `zero_optimization` must say at a stage, beside the stage itself."""
        del stage
        return {}
