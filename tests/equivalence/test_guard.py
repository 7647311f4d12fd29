"""A loss or a gradient that is no number ends the run before the optimizer moves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from prx.errors import NonFiniteError
from prx.interfaces import LossTerm, StepView
from prx.techniques.contrastive import Contrastive
from prx.techniques.repa import Repa
from prx.techniques.velocity import Velocity
from prx.train_step import StepBatch, TrainStep
from tests.helpers import running, same, weights

MODES = [
    *((stage, "fp32") for stage in (0, 1, 2, 3)),
    *((stage, "bf16_master") for stage in (0, 1, 2, 3)),
    *((stage, "bf16_pure") for stage in (1, 2, 3)),
    (2, "fp32_autocast_bf16"),
]


class Exploding(torch.autograd.Function):
    """Zero forwards, a given gradient backwards."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, gradient: float) -> torch.Tensor:
        ctx.gradient, ctx.like = gradient, value
        return value.sum() * 0

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.full_like(ctx.like, ctx.gradient), None


def broken_value(value: float):
    return lambda self, view: view.velocity.sum() * value


def broken_gradient(gradient: float):
    def forward(self: Contrastive, view: StepView) -> torch.Tensor:
        return Exploding.apply(view.velocity, gradient)

    return forward


def breaks(world, tmp_path, monkeypatch, patch, **changes: Any) -> str:
    """Train one good step, break, and check that the failing step changed no weight; gives the message."""
    losses = {"repa": world.repa(), "apart": {"use": "contrastive"}}
    with running(world, tmp_path, losses=losses, **changes) as trainer:
        trainer.advance(1)
        before = weights(trainer)
        with monkeypatch.context() as context:
            patch(context)
            with pytest.raises(NonFiniteError) as caught:
                trainer.advance(2)
        assert same(weights(trainer), before)
        assert trainer.step == 1
    return str(caught.value)


VALUES = [(float("nan"), *mode) for mode in MODES] + [(float("inf"), 0, "fp32"), (float("inf"), 2, "bf16_master")]
GRADIENTS = [(float("inf"), *mode) for mode in MODES]
GRADIENTS += [(gradient, stage, "fp32") for gradient in (float("nan"), 3e38) for stage in (0, 2)]


@pytest.mark.parametrize(("value", "stage", "precision"), VALUES)
def test_loss_term_that_is_no_number(world, tmp_path, monkeypatch, stage, precision, value):
    message = breaks(
        world,
        tmp_path,
        monkeypatch,
        lambda patch: patch.setattr(Contrastive, "forward", broken_value(value)),
        zero_stage=stage,
        precision=precision,
    )
    assert re.fullmatch(r"step 2: losses\.apart became (nan|-?inf); the weights are those of step 1", message), message


@pytest.mark.parametrize(("gradient", "stage", "precision"), GRADIENTS)
def test_gradient_that_is_no_number_under_finite_losses(world, tmp_path, monkeypatch, stage, precision, gradient):
    message = breaks(
        world,
        tmp_path,
        monkeypatch,
        lambda patch: patch.setattr(Contrastive, "forward", broken_gradient(gradient)),
        zero_stage=stage,
        precision=precision,
    )
    rule = "the gradient is not finite while every loss term is"
    assert message == f"step 2: {rule}; the weights are those of step 1"


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_clipping_does_not_hide_a_broken_gradient(world, tmp_path, monkeypatch, stage, clip):
    message = breaks(
        world,
        tmp_path,
        monkeypatch,
        lambda patch: patch.setattr(Contrastive, "forward", broken_gradient(float("inf"))),
        zero_stage=stage,
        grad_clip=clip,
    )
    assert message.startswith("step 2: the gradient is not finite")


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_overflowing_norm_never_becomes_a_zero_gradient(world, tmp_path, monkeypatch, stage):
    """Gradients of 1e25 are finite, their norm is not: stop, or clip to the norm, but never to nothing."""
    monkeypatch.setattr(Contrastive, "forward", broken_gradient(1e25))
    losses = {"apart": {"use": "contrastive"}}
    with running(world, tmp_path, losses=losses, zero_stage=stage, grad_clip=1.0) as trainer:
        before = weights(trainer)
        try:
            trainer.advance(1)
        except NonFiniteError:
            assert same(weights(trainer), before)
        else:
            states = trainer.engine.optimizer.state.values()
            seen = torch.cat([state["exp_avg"].flatten() for state in states]).norm() / 0.1
            assert float(seen) == pytest.approx(1.0, rel=1e-3)


def test_objective_and_other_terms_are_named(world, tmp_path, monkeypatch):
    def no_number(self, velocity, sample):
        return velocity.sum() * float("nan")

    message = breaks(world, tmp_path, monkeypatch, lambda patch: patch.setattr(Velocity, "loss", no_number))
    assert message.startswith("step 2: objective became nan;")

    def empty(self, view):
        return self.projector(view.taps[0].features).sum() * float("inf")

    message = breaks(world, tmp_path, monkeypatch, lambda patch: patch.setattr(Repa, "forward", empty))
    assert message.startswith("step 2: losses.repa became ")


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_one_broken_micro_batch_is_enough(world, tmp_path, monkeypatch, stage):
    healthy, calls = Contrastive.forward, []

    def third(self: Contrastive, view: StepView) -> torch.Tensor:
        calls.append(1)
        return healthy(self, view) * (float("nan") if len(calls) == 3 else 1.0)

    message = breaks(
        world,
        tmp_path,
        monkeypatch,
        lambda patch: patch.setattr(Contrastive, "forward", third),
        zero_stage=stage,
        micro_batch=2,
    )
    assert message.startswith("step 2: losses.apart became nan;")
    assert len(calls) == 4


def test_sharding_into_many_groups_still_moves_nothing(world, tmp_path, monkeypatch):
    """ZeRO 3 steps group after group; the first must not move when a later one is broken."""
    from prx import engine

    whole = engine.deepspeed_config

    def small_groups(config):
        found = whole(config)
        found["zero_optimization"]["sub_group_size"] = 4000
        return found

    monkeypatch.setattr(engine, "deepspeed_config", small_groups)
    message = breaks(
        world, tmp_path, monkeypatch, lambda patch: patch.setattr(Repa, "forward", broken_projector()), zero_stage=3
    )
    assert message.startswith("step 2: the gradient is not finite")


def broken_projector():
    """Break the gradient of one layer, and of what comes before it, no other."""
    healthy = Repa.forward

    def last_layer(self: Repa, view: StepView) -> torch.Tensor:
        layer = self.projector[-1]
        return healthy(self, view) + Exploding.apply(layer(layer.bias.new_zeros(1, layer.in_features)), float("inf"))

    return last_layer


def broken_modulation():
    """Break the gradient of the first block's modulation alone: Muon's, where that is the optimizer."""
    healthy = TrainStep.values

    def first_block(self: TrainStep, batch: StepBatch, terms: Sequence[LossTerm]) -> dict[str, torch.Tensor]:
        found = healthy(self, batch, terms)
        broken = Exploding.apply(self.denoiser.blocks[0].modulation.lin.weight.clone(), float("inf"))
        return found | {"objective": found["objective"] + broken}

    return first_block


GROUPS = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (0, "bf16_master"), (2, "bf16_master"), (2, "bf16_pure")]


@pytest.mark.parametrize(("stage", "precision"), GROUPS)
@pytest.mark.parametrize("place", ["AdamW's group, the last", "one of Muon's"])
def test_no_group_moves_when_another_is_broken(world, tmp_path, monkeypatch, stage, precision, place):
    """ZeRO 1..3 step group after group: Muon's must wait for the check of AdamW's, and the other way round."""

    def patch(context: pytest.MonkeyPatch) -> None:
        if place == "one of Muon's":
            context.setattr(TrainStep, "values", broken_modulation())
        else:
            context.setattr(Repa, "forward", broken_projector())

    changes = {"optimizer": {"use": "muon", "lr": 1e-3}, "grad_clip": None, "zero_stage": stage}
    message = breaks(world, tmp_path, monkeypatch, patch, precision=precision, **changes)
    assert message == "step 2: the gradient is not finite while every loss term is; the weights are those of step 1"


def test_next_trial_of_the_process_is_untouched(world, tmp_path, monkeypatch):
    with running(world, tmp_path / "before") as trainer:
        trainer.advance(2)
        expected = weights(trainer)
    with monkeypatch.context() as context:
        breaks(
            world,
            tmp_path / "broken",
            context,
            lambda patch: patch.setattr(Contrastive, "forward", broken_value(float("nan"))),
        )
    with running(world, tmp_path / "after") as trainer:
        trainer.advance(2)
        assert same(weights(trainer), expected)


def test_a_picture_that_is_no_number_is_refused_not_drawn_black(world, tmp_path, monkeypatch):
    with running(world, tmp_path) as trainer:
        trainer.advance(1)
        decode = trainer.tokenizer.decode

        def broken(latents: torch.Tensor) -> torch.Tensor:
            return decode(latents).index_fill(0, torch.tensor([3]), float("nan"))

        with monkeypatch.context() as context:
            context.setattr(trainer.tokenizer, "decode", broken)
            with pytest.raises(NonFiniteError, match="step 1: a sampled picture is not finite"):
                trainer.sample()
        assert len(trainer.sample()) == 8
