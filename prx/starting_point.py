"""Weights that a trial starts from: a denoiser that diffusers saved, instead of random ones."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import PRXTransformer2DModel

from prx import denoiser, loaders
from prx.config import DenoiserConfig, InitConfig
from prx.errors import Problem, UserError

PATH = "denoiser.init"
ASKED_BY = {
    "in_channels": "tokenizer", "context_in_dim": "text.encoder", "hidden_size": "denoiser.width",
    "num_heads": "denoiser.heads", "axes_dim": "denoiser.width / denoiser.heads", "depth": "denoiser.depth",
    "patch_size": "denoiser.patch_size", "mlp_ratio": "denoiser.mlp_ratio", "theta": "denoiser.theta",
    "bottleneck_size": "denoiser.bottleneck", "resolution_embeds": "denoiser.resolution",
}  # fmt: skip


def problems(config: DenoiserConfig, channels: int, text_width: int) -> Iterator[Problem]:
    """Compare the saved model's config.json with what the run builds; reads no weights."""
    if config.init is None:
        return
    try:
        held = _held(config.init)
    except UserError as error:
        yield Problem(PATH, str(error))
        return
    with torch.device("meta"):
        wanted = denoiser.build(config, channels, text_width).config
    for name in _defaults():
        value = list(wanted[name]) if name == "axes_dim" else wanted[name]
        if held[name] != value:
            asked = f"{ASKED_BY[name]} asks for" if name in ASKED_BY else "must be"
            yield Problem(PATH, f"{config.init.path!r} has {name} {held[name]!r}, {asked} {value!r}")


def _held(init: InitConfig) -> dict[str, Any]:
    """Read what the saved model was built with; what its file leaves out has diffusers' default."""
    where = (init.path, init.subfolder, init.revision)
    if init.subfolder is None and _is_pipeline(init):
        raise UserError(f"{init.path!r} is a whole pipeline: set subfolder to transformer")
    found = loaders.read_config(*where)
    wanted = PRXTransformer2DModel.__name__
    if found.get("_class_name") != wanted:
        raise UserError(f"{init.path!r} holds a {found.get('_class_name')!r}, must hold a {wanted!r}")
    held = {name: found.get(name, default) for name, default in _defaults().items()}
    return held | {"axes_dim": held["axes_dim"] or [32, 32]}


def _is_pipeline(init: InitConfig) -> bool:
    try:
        loaders.read_config(init.path, None, init.revision)
    except UserError:
        pass
    else:
        return False
    try:
        return "transformer" in loaders.read_config(init.path, None, init.revision, "model_index.json")
    except UserError:
        return False


def _defaults() -> dict[str, Any]:
    parameters = inspect.signature(PRXTransformer2DModel.__init__).parameters
    return {name: item.default for name, item in parameters.items() if name != "self"}


def load(model: PRXTransformer2DModel, init: InitConfig) -> None:
    """Replace a denoiser's weights by saved ones, read in float32.

    Raises:
        UserError: Weights are missing, damaged, incomplete, or of another shape.
    """
    where = (init.path, init.subfolder, init.revision)
    saved = loaders.load(PRXTransformer2DModel, *where, torch_dtype=torch.float32)
    model.load_state_dict(saved.state_dict())
