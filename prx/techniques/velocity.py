"""Rectified flow: predict the velocity from data to noise."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from prx.config import PartConfig, PositiveFloat
from prx.interfaces import Choice, LogUniform, Objective

T_MIN = 1e-3
UNIFORM_SHARE = 0.1


def shift_time(t: Any, shift: float) -> Any:
    """Move times towards noise by `shift`, as noise of standard deviation `shift` would."""
    return shift * t / (1 + (shift - 1) * t)


class Velocity(Objective):
    """Flow matching with straight paths, noised = (1 - t) clean + t noise.

    Source: Lipman et al. 2022 (arXiv:2210.02747), Liu et al. 2022 (arXiv:2209.03003). The default
    timestep distribution is PRX's: 90 % logit-normal(0, 1), shifted; 10 % uniform, not shifted.
    """

    SOURCE = "Lipman et al. 2022, arXiv:2210.02747"
    SEARCH = {
        "timesteps": Choice(("prx_mix", "logit_normal", "uniform")),
        "shift": LogUniform(0.5, 4.0),
    }

    class Config(PartConfig):
        """Settings of flow matching."""

        timesteps: Literal["prx_mix", "logit_normal", "uniform"] = "prx_mix"
        shift: PositiveFloat = 1.0

    def __init__(self, config: Config) -> None:
        self.config = config

    def timesteps(self, num: int, rng: np.random.Generator) -> Tensor:
        """Draw t, [num] float32."""
        # Both are always drawn, so that changing the distribution leaves the stream's layout alone.
        normal, uniform, mix = rng.standard_normal(num), rng.random(num), rng.random(num)
        logit_normal = shift_time(1 / (1 + np.exp(-normal)), self.config.shift)
        if self.config.timesteps == "uniform":
            t = shift_time(uniform, self.config.shift)
        elif self.config.timesteps == "logit_normal":
            t = logit_normal
        else:
            t = np.where(mix < UNIFORM_SHARE, uniform, logit_normal)
        return torch.from_numpy(np.clip(t, T_MIN, 1.0).astype(np.float32))

    def to_velocity(self, output: Tensor, noised: Tensor, t: Tensor) -> Tensor:
        """Return the output: the denoiser predicts velocity."""
        return output

    def schedule(self, num_steps: int) -> Tensor:
        """Space times evenly, then shift."""
        return shift_time(torch.linspace(1, 0, num_steps + 1), self.config.shift)
