"""Samplers: functions around a velocity function."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from prx.config import SamplingConfig
from prx.interfaces import Route
from prx.rng import stream
from prx.train_step import TrainStep

ROUTE_SEED = 42
"""Seed of the routes that guidance draws: the same for every trial, as the noise."""

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
    flow = module.objective
    times = flow.schedule(config.num_steps)
    return euler(velocity_of(module, prompts, config), prompts.noise * flow.noise_scale, times, flow.stride)


def velocity_of(module: TrainStep, prompts: PromptBatch, config: SamplingConfig) -> Velocity:
    """Choose the prediction that guidance moves away from; scale 1 needs none, whatever its kind."""
    p, scale = prompts, config.guidance_scale
    if config.guidance == "text" or scale == 1.0:
        return guided(module.predict, p.text, p.mask, p.null_text, p.null_mask, scale)
    weak = routed(module, p, config.num_steps) if config.guidance == "routing" else without_path(module, p)
    return steered(weak, lambda noised, t: module.predict(noised, t, p.text, p.mask), scale)


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


def steered(weak: Velocity, strong: Velocity, scale: float) -> Velocity:
    """Move away from a weak prediction: v = v_weak + scale (v_strong - v_weak); at scale 0 it is all there is."""
    if scale == 0.0:
        return weak

    def velocity(noised: Tensor, t: Tensor) -> Tensor:
        low = weak(noised, t)
        return low + scale * (strong(noised, t) - low)

    return velocity


def routed(module: TrainStep, prompts: PromptBatch, num_steps: int) -> Velocity:
    """Predict with the same captions through the router; one call a step, in the sampler's order.

    Source: self-guidance of TREAD models, Krause et al. 2025 (arXiv:2501.04765); scales as for captions.
    """
    p, routes = prompts, iter(routes_of(module, prompts, num_steps))
    return lambda noised, t: module.predict(noised, t, p.text, p.mask, next(routes))


def routes_of(module: TrainStep, prompts: PromptBatch, num_steps: int) -> list[Route]:
    """Draw kept tokens for every step: a function of the prompt's row and the step, not of the batch.

    No sample skips the routed blocks here.
    """
    assert module.router is not None, "recipe.problems refuses this guidance without a router"
    streams = (stream(ROUTE_SEED, "guidance", row) for row in prompts.rows.tolist())
    drawn = [module.router.draw(num_steps, module.grid, rng).kept for rng in streams]
    return [Route(kept) for kept in torch.stack(drawn, dim=1).to(prompts.noise.device)]


def without_path(module: TrainStep, prompts: PromptBatch) -> Velocity:
    """Predict with null captions and without the routed blocks, at the cost of the others alone.

    Source: path-drop guidance, Park et al. 2025 (arXiv:2510.21986).
    """
    p, nothing = prompts, Route(prompts.rows.new_empty(len(prompts.rows), 0))
    return lambda noised, t: module.predict(noised, t, p.null_text, p.null_mask, nothing)


def euler(velocity: Velocity, noise: Tensor, times: Tensor, stride: Stride = operator.sub) -> Tensor:
    """Integrate from noise to data along `times`, [num_steps + 1] falling from 1 to 0."""
    noised = noise
    for now, after in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        t = torch.full((len(noise),), now, dtype=torch.float32, device=noise.device)
        noised = noised - stride(now, after) * velocity(noised, t)
    return noised
