"""What several test modules share: a trainer that closes itself, its full weights, random denoisers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import PRXTransformer2DModel
from torch import Tensor, nn

from prx import denoiser
from prx.config import DenoiserConfig
from prx.trainer import Trainer
from tests.tiny import World

CPU = {"threads": 1, "device": "cpu"}


@contextmanager
def running(world: World, folder: Path, **changes: Any) -> Iterator[Trainer]:
    """Give a trainer of the tiny world; keys of `infrastructure` may be given directly."""
    infrastructure = CPU | {key: changes.pop(key) for key in ("zero_stage", "micro_batch") if key in changes}
    config = world.config(infrastructure=infrastructure, **changes)
    trainer = Trainer(config, folder=folder, cache=world.cache)
    try:
        yield trainer
    finally:
        trainer.close()


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """Copy every parameter, whole at any ZeRO stage."""
    import deepspeed

    named = dict(trainer.engine.module.named_parameters())
    sharded = [p for p in named.values() if hasattr(p, "ds_id")]
    with deepspeed.zero.GatheredParameters(sharded, enabled=bool(sharded)):
        return {name: parameter.detach().clone() for name, parameter in named.items()}


def moments(trainer: Trainer) -> list[Tensor]:
    """Copy the optimizer's tensors, in order."""
    states = trainer.engine.optimizer.state.values()
    return [value.clone() for state in states for value in state.values() if isinstance(value, Tensor)]


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Tell whether two sets of weights agree bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def randomise(module: nn.Module, seed: int = 0, scale: float = 0.2) -> None:
    """Replace every parameter, zero-initialised ones included, by normal values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))


def random_denoiser(depth: int = 4, patch_size: int = 2) -> PRXTransformer2DModel:
    """Build a small denoiser in which nothing is zero: 3 channels, text width 8, width 32."""
    config = DenoiserConfig(width=32, depth=depth, heads=2, patch_size=patch_size, mlp_ratio=2.0)
    model = denoiser.build(config, channels=3, text_width=8)
    randomise(model)
    return model
