"""Rectified flow: predict the velocity from data to noise."""

from __future__ import annotations

from torch import Tensor

from prx.timesteps import PathConfig, StraightPath


class Velocity(StraightPath):
    """Flow matching with straight paths: the denoiser's output is the velocity, noise - clean.

    The loss is mean|v - (noise - clean)|² over every element, the same weight at every t; the sampler
    takes Euler steps along v.
    Source: Lipman et al. 2022 (arXiv:2210.02747), Liu et al. 2022 (arXiv:2209.03003). The default
    timestep distribution is PRX's: 90 % logit-normal(0, 1), shifted; 10 % uniform, not shifted. Where PRX
    redraws a time outside [0.001, 1), ours is clipped.
    """

    SOURCE = "Lipman et al. 2022, arXiv:2210.02747"

    class Config(PathConfig):
        """Settings of flow matching."""

    def to_velocity(self, output: Tensor, noised: Tensor, t: Tensor) -> Tensor:
        """Return the output: the denoiser predicts velocity."""
        return output
