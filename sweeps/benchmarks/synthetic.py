"""Batches and model folders made of nothing, so that speed can be measured without data or weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prx import loaders, recipe, registry, teachers
from prx.config import RunConfig
from prx.interfaces import LossTerm
from prx.rng import stream
from prx.train_step import StepBatch, TrainStep

STAND_INS: dict[str, dict[str, Any]] = {
    "google/t5gemma-2b-2b-ul2": {"model_type": "t5gemma", "encoder": {"hidden_size": 2304}},
    "facebook/dinov2-with-registers-large": {
        "model_type": "dinov2_with_registers", "hidden_size": 1024, "num_attention_heads": 16,
        "num_hidden_layers": 24, "patch_size": 14,
    },
    "facebook/dinov2-with-registers-base": {
        "model_type": "dinov2_with_registers", "hidden_size": 768, "num_attention_heads": 12,
        "num_hidden_layers": 12, "patch_size": 14,
    },
    "timm/vgg16.tv_in1k": {"architecture": "vgg16"},
    "facebook/dinov3-vitl16-pretrain-lvd1689m": {
        "model_type": "dinov3_vit", "hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24,
        "patch_size": 16,
    },
}  # fmt: skip
"""The sizes of published models, as far as the shape of a training step depends on them."""


def write_stand_ins(folder: Path) -> None:
    """Write a config.json, and no weights, for every model whose sizes are known, below its hub id."""
    for name, content in STAND_INS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(content), encoding="utf-8")


def stood_in(data: Any, folder: Path) -> Any:
    """Replace the hub ids in a configuration tree by the folders of `write_stand_ins`."""
    if isinstance(data, dict):
        return {key: stood_in(value, folder) for key, value in data.items()}
    return str(folder / data) if isinstance(data, str) and data in STAND_INS else data


def batch_of(config: RunConfig, module: TrainStep, device: torch.device) -> StepBatch:
    """Make one global batch of random numbers in the shapes of a real one, with captions of full length."""
    shape, num = recipe.shape_of(config), config.batch_size
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(num, *size, generator=generator)

    clean, noise = (normal(shape.channels, shape.latent_size, shape.latent_size) for _ in range(2))
    pairing = [name for name, term in module.losses.items() if getattr(type(term), "pair", None) is not LossTerm.pair]
    route = module.router.draw(num, shape.grid, stream(0, "routing")) if module.router is not None else None
    length, width = config.text.max_tokens, module.denoiser.txt_in.in_features
    taught = _taught(config)
    batch = StepBatch(
        clean, noise, module.objective.timesteps(num, stream(0, "timestep")), normal(length, width),
        torch.ones(num, length, dtype=torch.bool),
        targets={name: normal(*size) for name, size in taught.items() if len(size) == 2},
        attention={name: normal(*size).softmax(-1) for name, size in taught.items() if len(size) == 4},
        partners={name: (noise - clean).roll(1, 0) for name in pairing},
        kept=None if route is None else route.kept, skipped=None if route is None else route.skipped,
        unconditional=torch.zeros(num, dtype=torch.bool),
    )  # fmt: skip
    return batch.map(lambda tensor: tensor.to(device))


def _taught(config: RunConfig) -> Mapping[str, tuple[int, ...]]:
    """Give the shape of what each teacher says of one image."""
    shape = recipe.shape_of(config)
    found: dict[str, tuple[int, ...]] = {}
    for name, part in config.losses.items():
        spec = registry.resolve("loss", part.use).teacher(part, shape)
        if spec is not None and spec.attention:
            heads = int(loaders.read_config(spec.path)["num_attention_heads"])
            found[name] = (len(spec.attention), heads, shape.num_tokens, shape.num_tokens)
        elif spec is not None:
            found[name] = (shape.num_tokens, teachers.teacher_width(spec.path))
    return found
