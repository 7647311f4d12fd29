"""The engine against a plain loop, ZeRO stages against each other, micro-batches against one batch."""

from __future__ import annotations

import pytest
import torch

from prx import recipe
from prx.batches import Batches
from prx.config import RunConfig
from prx.engine import Engine
from tests.helpers import moments, running, same, weights

STEPS = 3


def plain_loop(config: RunConfig, cache, steps: int = STEPS) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Train with nothing but torch: AdamW, linear warm-up, torch's own clipping."""
    module = recipe.build(config)
    optimizer = recipe.optimizer(config).build(module.named_parameters())
    batches, losses = Batches(config, cache, module), []
    for step in range(steps):
        warmup = config.warmup_steps
        optimizer.param_groups[0]["lr"] = config.optimizer.lr * (min(1.0, (step + 1) / warmup) if warmup else 1.0)
        loss, _ = module(batches.batch(step))
        optimizer.zero_grad()
        loss.backward()
        if config.grad_clip:
            torch.nn.utils.clip_grad_norm_(module.parameters(), config.grad_clip)
        optimizer.step()
        losses.append(float(loss.detach()))
    return {name: parameter.detach() for name, parameter in module.named_parameters()}, losses


def everything(world) -> dict:
    second = world.repa(teacher=str(world.root / "dinov3"), layer=1, weight=0.2)
    return {"repa": world.repa(), "repa_v3": second, "contrastive": {"use": "contrastive"}}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_all_off_is_a_plain_loop_bit_for_bit(world, tmp_path, stage, decay):
    optimizer = {"use": "adamw", "lr": 1e-3, "eps": 1e-8, "weight_decay": decay}
    with running(world, tmp_path, zero_stage=stage, grad_clip=None, optimizer=optimizer) as trainer:
        initial = weights(trainer)
        losses = [trainer.advance(step + 1).loss for step in range(STEPS)]
        expected, plain_losses = plain_loop(trainer.config, world.cache)
        assert losses == plain_losses
        assert same(weights(trainer), expected)
        assert not same(initial, expected)


def test_clipping_is_torchs(world, tmp_path):
    with running(world, tmp_path, zero_stage=0, grad_clip=0.05) as trainer:
        trainer.advance(STEPS)
        expected, _ = plain_loop(trainer.config, world.cache)
        found = weights(trainer)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_clipping_bounds_the_gradient_that_adam_sees(world, tmp_path, stage):
    """After one step Adam's first moment is (1 - beta1) times the clipped gradient."""
    norms = {}
    for clip in (None, 0.05):
        with running(world, tmp_path, zero_stage=stage, grad_clip=clip) as trainer:
            trainer.advance(1)
            states = trainer.engine.optimizer.state.values()
            norms[clip] = float(torch.cat([state["exp_avg"].flatten() for state in states]).norm()) / 0.1
    assert norms[None] > 0.1
    assert norms[0.05] == pytest.approx(0.05, rel=1e-3)


def test_zero_stages_agree(world, tmp_path):
    found = []
    for stage in (0, 1, 2, 3):
        with running(world, tmp_path, zero_stage=stage, losses=everything(world)) as trainer:
            progress = trainer.advance(STEPS)
            found.append((progress.loss, progress.terms, weights(trainer)))
    loss, terms, first = found[0]
    for other_loss, other_terms, other in found[1:]:
        assert other_loss == pytest.approx(loss, rel=1e-6)
        assert other_terms == pytest.approx(terms, rel=1e-5)
        for name, value in first.items():
            torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_micro_batches_add_up_to_one_batch(world, tmp_path, stage):
    found = []
    for micro_batch in (8, 2):
        with running(world, tmp_path, zero_stage=stage, micro_batch=micro_batch, losses=everything(world)) as trainer:
            found.append((trainer.advance(STEPS), weights(trainer)))
    (whole, first), (parts, second) = found
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert parts.terms == pytest.approx(whole.terms, rel=1e-4)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=2e-5)


def test_two_runs_of_one_configuration_are_equal(world, tmp_path):
    found = []
    for folder in ("first", "second"):
        with running(world, tmp_path / folder, losses=everything(world)) as trainer:
            trainer.advance(STEPS)
            found.append((weights(trainer), moments(trainer)))
    assert same(found[0][0], found[1][0])
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_seeds_make_different_runs(world, tmp_path):
    found = []
    for seed in (0, 1):
        with running(world, tmp_path, seed=seed) as trainer:
            found.append((weights(trainer), trainer.advance(1).loss))
    assert not same(found[0][0], found[1][0])
    assert found[0][1] != found[1][1]


@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16_master"])
def test_learning_rate_warms_up_linearly(world, tmp_path, monkeypatch, stage, precision):
    rates = []
    note = Engine._note_step

    def watched(engine: Engine, optimizer: torch.optim.Optimizer, *rest) -> None:
        if engine._losses:
            rates.append(optimizer.param_groups[0]["lr"])
        note(engine, optimizer, *rest)

    monkeypatch.setattr(Engine, "_note_step", watched)
    with running(world, tmp_path, zero_stage=stage, precision=precision, warmup_steps=4, steps=6) as trainer:
        trainer.advance(6)
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3])


def test_reported_terms_are_means_over_the_chunk(world, tmp_path):
    losses = {"repa": world.repa(), "contrastive": {"use": "contrastive"}}
    with running(world, tmp_path, losses=losses) as trainer:
        single = [trainer.advance(step + 1) for step in range(4)]
    with running(world, tmp_path, losses=losses) as trainer:
        chunk = trainer.advance(4)
    assert chunk.step == 4
    assert len(chunk.step_seconds) == 4
    assert chunk.terms.keys() == {"objective", "repa", "contrastive"}
    for name, value in chunk.terms.items():
        assert value == pytest.approx(sum(part.terms[name] for part in single) / 4)
    expected = chunk.terms["objective"] + 0.5 * chunk.terms["repa"] + 0.05 * chunk.terms["contrastive"]
    assert chunk.loss == pytest.approx(expected)


def test_training_learns(world, tmp_path):
    """Overfit one batch's worth of data: the loss falls below what it was."""
    data = world.settings()["data"] | {"num_train": 8}
    optimizer = {"use": "adamw", "lr": 4e-3, "eps": 1e-8}
    with running(world, tmp_path, data=data, optimizer=optimizer, steps=60) as trainer:
        first = trainer.advance(15).loss
        trainer.advance(45)
        assert trainer.advance(60).loss < 0.9 * first
