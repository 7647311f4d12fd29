"""The straight path between data and noise: which times are trained, which are sampled, how large noise is.

Time: t = 0 is data, t = 1 is noise. What objectives share whatever their network predicts.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from prx.config import PartConfig, PositiveFloat
from prx.interfaces import Choice, LogUniform, Objective, RunShape, SearchRange

T_MIN = 1e-3
UNIFORM_SHARE = 0.1

SEARCH: dict[str, SearchRange] = {
    "timesteps": Choice(("prx_mix", "logit_normal", "uniform")),
    "shift": LogUniform(0.5, 4.0),
}


class PathConfig(PartConfig):
    """Times and noise of a straight path.

    JiT's distribution (arXiv:2511.13720), logit-normal(-0.8, 0.8) in its reversed time, is `logit_normal` with
    `mean` 0.8 and `std` 0.8 here. A noise scale s without a shift shows the denoiser the signal-to-noise ratios
    of unit noise with `shift` s, of larger inputs.

    Args:
        timesteps: Distribution of training times; `prx_mix` is 90 % logit-normal, shifted, and 10 % uniform, not.
        mean: Mean of the normal behind the logit-normal.
        std: Standard deviation of it.
        shift: Moves times, the sampler's too, towards noise (above 1) or data.
        noise_scale: Multiplies the noise, the sampler's starting noise too.
    """

    timesteps: Literal["prx_mix", "logit_normal", "uniform"] = "prx_mix"
    mean: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    std: PositiveFloat = 1.0
    shift: PositiveFloat = 1.0
    noise_scale: PositiveFloat = 1.0


def shift_time(t: Any, shift: float) -> Any:
    """Move times towards noise by `shift`, as noise of standard deviation `shift` would."""
    return shift * t / (1 + (shift - 1) * t)


def draw(config: PathConfig, num: int, rng: np.random.Generator) -> Tensor:
    """Draw t, [num] float32 in [T_MIN, 1]."""
    # All three are always drawn, so that changing the distribution leaves the stream's layout alone.
    normal, uniform, mix = rng.standard_normal(num), rng.random(num), rng.random(num)
    logit_normal = shift_time(1 / (1 + np.exp(-(config.mean + config.std * normal))), config.shift)
    if config.timesteps == "uniform":
        t = shift_time(uniform, config.shift)
    elif config.timesteps == "logit_normal":
        t = logit_normal
    else:
        t = np.where(mix < UNIFORM_SHARE, uniform, logit_normal)
    return torch.from_numpy(np.clip(t, T_MIN, 1.0).astype(np.float32))


class StraightPath(Objective):
    """An objective on noised = (1 - t) clean + t noise; what the network predicts is left open."""

    SEARCH = SEARCH

    def __init__(self, config: Any) -> None:
        self.config = config
        self.noise_scale = config.noise_scale

    @classmethod
    def problems(cls, config: PathConfig, shape: RunShape) -> list[tuple[str, str]]:
        """Refuse a shape of the logit-normal where none is drawn."""
        del shape
        if config.timesteps != "uniform":
            return []
        rule = "acts on timesteps prx_mix and logit_normal only: must be left out with uniform"
        given = (("mean", config.mean, 0.0), ("std", config.std, 1.0))
        return [(key, f"{rule}, got {value}") for key, value, default in given if value != default]

    def timesteps(self, num: int, rng: np.random.Generator) -> Tensor:
        """Draw t, [num] float32."""
        return draw(self.config, num, rng)

    def schedule(self, num_steps: int) -> Tensor:
        """Space times evenly, then shift."""
        return shift_time(torch.linspace(1, 0, num_steps + 1), self.config.shift)
