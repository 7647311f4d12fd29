"""Muon under DeepSpeed: every stage and number of workers takes the same step, and a resumed run repeats it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.equivalence.test_workers import run_two, train, written
from tests.helpers import moments, running, same, weights

MUON: dict[str, Any] = {"optimizer": {"use": "muon", "lr": 1e-3}, "grad_clip": None, "warmup_steps": 0}


def trained(world, folder, steps: int = 3, **changes: Any) -> dict[str, torch.Tensor]:
    with running(world, folder, **MUON | {"losses": {"repa": world.repa()}} | changes) as trainer:
        trainer.advance(steps)
        return weights(trainer)


def apart(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return max(float((first[name].float() - second[name].float()).abs().max()) for name in first)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("micro_batch", [8, 2])
def test_stages_take_the_same_steps(world, tmp_path, stage, micro_batch):
    whole = trained(world, tmp_path / "zero", zero_stage=0)
    assert apart(trained(world, tmp_path / "other", zero_stage=stage, micro_batch=micro_batch), whole) < 1e-6


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_matrices_of_blocks_move_by_the_matched_size(world, tmp_path, stage):
    """AdamW's `lr` carries over: 0.185 of it, less where a gradient hardly reaches some rows, such as queries."""
    with running(world, tmp_path, zero_stage=stage, losses={"repa": world.repa(layer=1)}, **MUON) as trainer:
        trainer.advance(3)
        before = weights(trainer)
        trainer.advance(4)
        moved = {name: value - before[name] for name, value in weights(trainer).items()}
    for name in ("attention.img_qkv_proj", "down_proj", "modulation.lin"):
        size = float(moved[f"denoiser.blocks.0.{name}.weight"].square().mean().sqrt())
        assert 0.04e-3 < size < 0.25e-3, name


def test_clipping_under_zero_would_shrink_the_updates(world, tmp_path):
    """Why `problems` refuses it: the norm that DeepSpeed clips is that of the orthogonal updates."""
    start = trained(world, tmp_path / "start", 0)
    free = trained(world, tmp_path / "free", 1, zero_stage=2)
    whole = trained(world, tmp_path / "whole", 1, zero_stage=0, grad_clip=0.1)
    clipped = trained(world, tmp_path / "clipped", 1, zero_stage=2, grad_clip=0.1)
    name = "denoiser.blocks.0.modulation.lin.weight"
    sizes = [float((found[name] - start[name]).norm()) for found in (free, whole, clipped)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)
    assert sizes[2] < 0.05 * sizes[0]


MODES = [(stage, "fp32") for stage in (0, 1, 2, 3)] + [(2, "fp32_autocast_bf16")]
MODES += [(stage, "bf16_master") for stage in (0, 1, 2, 3)] + [(stage, "bf16_pure") for stage in (1, 2, 3)]


@pytest.mark.parametrize(("stage", "precision"), MODES)
def test_resumed_is_uninterrupted(world, tmp_path, stage, precision):
    changes = MUON | {"zero_stage": stage, "precision": precision, "losses": {"repa": world.repa()}, "steps": 5}
    with running(world, tmp_path / "whole", **changes) as whole:
        whole.advance(2)
        expected = [whole.advance(step).loss for step in (3, 4, 5)]
        with running(world, tmp_path / "parts", **changes) as trainer:
            trainer.advance(2)
            trainer.save()
        with running(world, tmp_path / "parts", **changes) as trainer:
            assert trainer.resume() == 2
            assert [trainer.advance(step).loss for step in (3, 4, 5)] == expected
            assert same(weights(trainer), weights(whole))
            assert all(torch.equal(a, b) for a, b in zip(moments(trainer), moments(whole), strict=True))


@pytest.mark.parametrize(("stage", "precision"), [mode for mode in MODES if mode[1].startswith("bf16")])
def test_reduced_precision_follows_full_precision(world, tmp_path, stage, precision):
    """The direction of a bfloat16 run's Muon step is that of float32; a step skipped or raw would not be."""
    start = trained(world, tmp_path / "start", 0)
    full = trained(world, tmp_path / "full")
    reduced = trained(world, tmp_path / "reduced", zero_stage=stage, precision=precision)
    for name in ("denoiser.blocks.0.modulation.lin.weight", "denoiser.blocks.0.down_proj.weight"):
        steps = [(found[name].float() - start[name]).flatten() for found in (full, reduced)]
        assert float(torch.nn.functional.cosine_similarity(*steps, dim=0)) > 0.8, name
        assert float(steps[1].norm()) == pytest.approx(float(steps[0].norm()), rel=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_workers_are_one(world, tmp_path, stage):
    """Matrices that the border between two workers cuts are made orthogonal whole."""
    changes: dict[str, Any] = {"optimizer": MUON["optimizer"], "grad_clip": None}
    alone = train(written(world, tmp_path / "one.yaml", changes), world.cache, tmp_path / "one", 3)
    (tmp_path / "two").mkdir()
    config = written(world, tmp_path / "two.yaml", changes, workers=2, micro_batch=2, zero_stage=stage)
    first, second = run_two(config, world.cache, tmp_path / "two")
    assert first["losses"] == second["losses"]
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    for name, value in alone["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name])
        torch.testing.assert_close(first["weights"][name], value, rtol=1e-3, atol=2e-5)
