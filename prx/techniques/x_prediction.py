"""Predict the clean latent, and compare velocities."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from prx.interfaces import FlowSample
from prx.timesteps import PathConfig, StraightPath


class XPrediction(StraightPath):
    """Let the denoiser put out the clean latent, x, and train its velocity (noised - x) / max(t, clamp).

    The target is clamped alike, so that the loss is |x - clean|² with weight 1 / max(t, clamp)²: 400 at
    most, 11 on average under logit-normal times, 14 under PRX's mix. The first loss is that weight times
    the data's power, and gradients are larger than with velocity prediction: clipping acts differently.
    The sampler's last step returns x; going on with the clamped division would leave up to 1.6 % of the
    starting offset.
    Source: Li and He 2025 (arXiv:2511.13720), whose time runs the other way. PRX does the same, without
    the exact last step. The paper's times are `logit_normal` with `mean` 0.8 and `std` 0.8, and its
    bottleneck is `denoiser.bottleneck`.
    """

    SOURCE = "Li and He 2025, arXiv:2511.13720"
    PROVIDES = frozenset({"clean_prediction"})

    class Config(PathConfig):
        """Settings of x-prediction.

        Args:
            clamp: Smallest t that is divided by.
        """

        clamp: Annotated[float, Field(gt=0, lt=1)] = 0.05

    def _divisor(self, t: Tensor) -> Tensor:
        return t.clamp(min=self.config.clamp).view(-1, 1, 1, 1)

    def to_velocity(self, output: Tensor, noised: Tensor, t: Tensor) -> Tensor:
        """Give the velocity that leads from the noised latent to the output."""
        return (noised - output) / self._divisor(t)

    def target(self, sample: FlowSample) -> Tensor:
        """Give the clamped velocity of the clean latent."""
        return (sample.noised - sample.clean) / self._divisor(sample.t)

    def to_clean(self, velocity: Tensor, noised: Tensor, t: Tensor) -> Tensor:
        """Undo `to_velocity`, clamp included."""
        return noised - self._divisor(t) * velocity

    def stride(self, now: float, after: float) -> float:
        """Move by the difference in time; to time 0, to the predicted clean latent itself."""
        return now - after if after > 0 else max(now, self.config.clamp)
