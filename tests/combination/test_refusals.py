"""What is refused from the configuration alone is refused with reason: forced to run, it breaks or is another run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prx import recipe
from prx.config import parse_run_config
from prx.errors import NonFiniteError, UserError
from tests.combination.test_pairs import IMPOSSIBLE, joined
from tests.helpers import CPU, running, weights
from tests.tiny import World

DEEP = {"width": 32, "depth": 4, "heads": 2, "patch_size": 1}
MUON = {"optimizer": {"use": "muon", "lr": 1e-3}}
ROUTED = {"denoiser": DEEP, "routing": {"use": "tread"}}
MAPS = {"use": "attention_alignment", "teacher": "dinov3", "student_layers": [1], "teacher_layers": [0]}
CONFLICT = {"every": 1, "start": 0, "block": 0, "num_samples": 8, "times": [0.5]}


def losses(world: World, **parts: dict[str, Any]) -> dict[str, Any]:
    """Put the tiny world's teachers where a name stands."""
    here = {name: {"teacher": str(world.root / part["teacher"])} if part.get("teacher") in ("dinov2", "dinov3") else {}
            for name, part in parts.items()}  # fmt: skip
    return {"losses": {name: part | here[name] for name, part in parts.items()}}


def convolved(world: World) -> dict[str, Any]:
    return ROUTED | losses(world, irepa={"use": "irepa", "teacher": "dinov2", "layer": 1})


def guided(**sampling: Any) -> dict[str, Any]:
    return {"sampling": {"num_steps": 2, "guidance_scale": 2.0, **sampling}}


BREAKS: dict[str, tuple[Any, str, type[Exception], str]] = {
    "bf16_pure at ZeRO 0": (
        lambda w: joined(w, ("bf16_pure", "ZeRO 0")), "infrastructure.zero_stage", AssertionError, "ZeRO Stage 1",
    ),
    "average of weights at ZeRO 3": (lambda w: joined(w, ("ema", "ZeRO 3")), "ema", RuntimeError, "size of tensor"),
    "pairs with a trained tokenizer": (
        lambda w: joined(w, ("contrastive", "repa-e end to end")), "losses.contrastive", NonFiniteError, "contrastive",
    ),
    "correction with a trained tokenizer": (
        lambda w: joined(w, ("repa-e end to end", "contrastive corrected")), "losses.away", KeyError, "moments",
    ),
    "convolution inside a route": (convolved, "losses.irepa.layer", RuntimeError, "unflatten"),
    "attention maps inside a route": (
        lambda w: ROUTED | losses(w, maps=MAPS), "losses.maps.student_layers", RuntimeError, "size of tensor",
    ),
    "pictures compared in latents": (
        lambda w: losses(w, lpips={"use": "lpips", "network": "embedded:inception"}), "losses.lpips.use",
        RuntimeError, "size of tensor",
    ),
    "patches compared in latents": (
        lambda w: losses(w, p_dino={"use": "p_dino", "teacher": "embedded:dinov2", "grid": 4}), "losses.p_dino.use",
        RuntimeError, "size of tensor",
    ),
    "conflict measured at ZeRO 3": (
        lambda w: {"zero_stage": 3, "losses": {"repa": w.repa(stop_when=CONFLICT)}}, "losses.repa.stop_when",
        RuntimeError, "size of tensor",
    ),
    "routed guidance without a router": (
        lambda w: guided(guidance="routing"), "sampling.guidance", AssertionError, "router",
    ),
    "averaged weights that are not kept": (lambda w: guided(weights="ema"), "sampling.weights", AssertionError, "^$"),
    "pairs in a batch of one": (
        lambda w: {"batch_size": 1, "losses": {"away": {"use": "contrastive"}}}, "batch_size", ValueError, "low",
    ),
    "posterior of DC-AE": (
        lambda w: {"tokenizer": {"use": "autoencoder", "path": str(w.root / "dc"), "sample": True}},
        "tokenizer.sample", UserError, "no posterior",
    ),
}  # fmt: skip


def refused(world: World, changes: dict[str, Any]) -> list[str]:
    """List the config paths that speak against a run."""
    infrastructure = CPU | {key: changes[key] for key in ("zero_stage", "micro_batch") if key in changes}
    rest = {key: value for key, value in changes.items() if key not in infrastructure}
    return [problem.path for problem in recipe.problems(parse_run_config(world.settings(
        **rest, infrastructure=infrastructure)))]  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_refused_run_would_break(world, tmp_path, name):
    make, path, error, message = BREAKS[name]
    assert refused(world, make(world)) == [path]
    with pytest.raises(error, match=message):
        trains_and_samples(world, tmp_path, make(world))


def trains_and_samples(world: World, folder: Any, changes: dict[str, Any]) -> None:
    with running(world, folder, **changes) as trainer:
        trainer.advance(2)
        trainer.sample()


def moved(world: World, folder: Any, changes: dict[str, Any], steps: int) -> dict[str, torch.Tensor]:
    with running(world, folder, **changes) as trainer:
        trainer.advance(steps)
        return weights(trainer)


def test_clipping_muon_beyond_stage_0_would_hardly_move_it(world, tmp_path):
    """DeepSpeed clips updates that Muon has already made: their joint norm is far above any clip norm."""
    name, distance = "denoiser.blocks.0.attention.img_qkv_proj.weight", {}
    for clip in (None, 1.0):
        changes = MUON | {"grad_clip": clip, "zero_stage": 1}
        assert refused(world, changes) == (["optimizer.use"] if clip else [])
        first, last = (moved(world, tmp_path / f"{clip} {steps}", changes, steps)[name] for steps in (1, 4))
        distance[clip] = float((last - first).abs().mean())
    assert distance[1.0] < 0.2 * distance[None]


def test_micro_batches_would_be_another_run_for_a_trained_tokenizer(world, tmp_path):
    """Everywhere else accumulation equals one large batch; here the statistics of each part decide."""
    changes = joined(world, ("repa-e end to end",)) | {"zero_stage": 0}
    whole = moved(world, tmp_path / "whole", changes, 3)
    parts = moved(world, tmp_path / "parts", changes | {"micro_batch": 4}, 3)
    assert refused(world, changes | {"micro_batch": 4}) == ["infrastructure.micro_batch"]
    assert max(float((whole[name] - parts[name]).abs().max()) for name in whole) > 1e-3


def test_every_impossible_pair_is_proven_here():
    proven = {"bf16_pure", "ema", "contrastive", "contrastive corrected", "micro-batches"}
    assert all(set(pair) & proven for pair in IMPOSSIBLE)
