"""Samplers: functions around a velocity function."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from prx.config import SamplingConfig
from prx.train_step import TrainStep

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(noised [B, C, H, W], t [B]) -> velocity [B, C, H, W]."""

Predict = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(noised, t, text [B, L, E], mask [B, L]) -> velocity."""

Stride = Callable[[float, float], float]
"""(time now, time after) -> how far to move along the velocity."""


class PromptBatch(NamedTuple):
    """What sampling starts from.

    Shapes: `rows` int64 [B], which prompts; `text`, `null_text` [B, L, E];
    `mask`, `null_mask` [B, L]; `noise` [B, C, H, W] of unit scale.
    """

    rows: Tensor
    text: Tensor
    mask: Tensor
    null_text: Tensor
    null_mask: Tensor
    noise: Tensor

    def map(self, device: torch.device) -> PromptBatch:
        """Move to a device."""
        return PromptBatch(*(tensor.to(device) for tensor in self))


def draw(module: TrainStep, prompts: PromptBatch, config: SamplingConfig) -> Tensor:
    """Draw latents [B, C, H, W] for prompts, from their noise."""
    p = prompts
    velocity = guided(module.predict, p.text, p.mask, p.null_text, p.null_mask, config.guidance_scale)
    flow = module.objective
    return euler(velocity, p.noise * flow.noise_scale, flow.schedule(config.num_steps), flow.stride)


def guided(
    predict: Predict, text: Tensor, mask: Tensor, null_text: Tensor, null_mask: Tensor, scale: float
) -> Velocity:
    """Wrap a predictor in classifier-free guidance: v = v_null + scale (v_text - v_null).

    Scale 1 is conditional and 0 unconditional; both then cost one pass. Papers that write (1 + w) mean
    w = scale - 1.
    Source: Ho and Salimans 2022 (arXiv:2207.12598).
    """
    if scale == 1.0:
        return lambda noised, t: predict(noised, t, text, mask)
    if scale == 0.0:
        return lambda noised, t: predict(noised, t, null_text, null_mask)
    both_text, both_mask = torch.cat([null_text, text]), torch.cat([null_mask, mask])

    def velocity(noised: Tensor, t: Tensor) -> Tensor:
        null, conditional = predict(noised.repeat(2, 1, 1, 1), t.repeat(2), both_text, both_mask).chunk(2)
        return null + scale * (conditional - null)

    return velocity


def euler(velocity: Velocity, noise: Tensor, times: Tensor, stride: Stride = operator.sub) -> Tensor:
    """Integrate from noise to data along `times`, [num_steps + 1] falling from 1 to 0."""
    noised = noise
    for now, after in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        t = torch.full((len(noise),), now, dtype=torch.float32, device=noise.device)
        noised = noised - stride(now, after) * velocity(noised, t)
    return noised
