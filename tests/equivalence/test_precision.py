"""What each precision keeps in which type, and what rounding does to small steps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from prx import engine, recipe
from prx.trainer import Trainer
from tests.helpers import running, weights

FP32, BF16 = torch.float32, torch.bfloat16
TABLE = (1.0, 0.5, 0.1, 0.05, 0.03, 0.02, 0.01)
FROZEN = (1.0, 0.5, 0.1, 0.05)


def held(trainer: Trainer) -> Iterator[Tensor]:
    """Give the tensors that the optimizer steps: masters, wherever the stage keeps them."""
    wrapped = trainer.engine.engine.optimizer
    if hasattr(wrapped, "fp32_partitioned_groups_flat"):
        return iter(wrapped.fp32_partitioned_groups_flat)
    return iter([p for group in trainer.engine.optimizer.param_groups for p in group["params"]])


MODES = [
    *(("fp32", stage, FP32, FP32) for stage in (0, 1, 2, 3)),
    *(("fp32_autocast_bf16", stage, FP32, FP32) for stage in (0, 1, 2, 3)),
    *(("bf16_master", stage, BF16, FP32) for stage in (0, 1, 2, 3)),
    *(("bf16_pure", stage, BF16, BF16) for stage in (1, 2, 3)),
]


@pytest.mark.parametrize(("precision", "stage", "stored", "stepped"), MODES)
def test_types_of_weights_masters_and_states(world, tmp_path, precision, stage, stored, stepped):
    losses = {"repa": world.repa(), "contrastive": {"use": "contrastive"}}
    with running(world, tmp_path, precision=precision, zero_stage=stage, losses=losses) as trainer:
        trainer.advance(2)
        assert {value.dtype for value in weights(trainer).values()} == {stored}
        assert {value.dtype for value in held(trainer)} == {stepped}
        states = list(trainer.engine.optimizer.state.values())
        assert states
        assert {state[name].dtype for state in states for name in ("exp_avg", "exp_avg_sq")} == {stepped}
        assert all(float(state["step"]) == 2 for state in states)


@pytest.mark.parametrize(("precision", "stage", "stored", "stepped"), MODES)
def test_training_starts_from_the_initial_weights(world, tmp_path, precision, stage, stored, stepped):
    """DeepSpeed's own preparations, a dry step among them, move neither weights nor masters."""
    optimizer = {"use": "adamw", "lr": 0.1, "weight_decay": 0.5}
    with running(world, tmp_path, precision=precision, zero_stage=stage, optimizer=optimizer) as trainer:
        initial = dict(recipe.build(trainer.config).named_parameters())
        assert all(torch.equal(value, initial[name].to(stored)) for name, value in weights(trainer).items())
        masters = torch.cat([value.detach().flatten() for value in held(trainer)])
        expected = torch.cat([value.detach().to(stored).to(stepped).flatten() for value in initial.values()])
        assert torch.equal(masters[: len(expected)], expected)
        assert not masters[len(expected) :].any()
        assert all(float(state["step"]) == 0 for state in trainer.engine.optimizer.state.values())


@pytest.mark.parametrize("precision", ["fp32_autocast_bf16", "bf16_master", "bf16_pure"])
def test_reduced_precision_follows_full_precision(world, tmp_path, precision):
    found = {}
    for mode in ("fp32", precision):
        with running(world, tmp_path, precision=mode, losses={"repa": world.repa()}) as trainer:
            initial = weights(trainer)
            found[mode] = (trainer.advance(3), weights(trainer))
    (full, expected), (progress, reduced) = found["fp32"], found[precision]
    assert progress.loss == pytest.approx(full.loss, rel=5e-3)
    assert progress.loss != full.loss
    assert progress.terms == pytest.approx(full.terms, abs=2e-2)
    for name, value in expected.items():
        torch.testing.assert_close(reduced[name].float(), value, rtol=1e-2, atol=6e-3)
    assert initial.keys() == expected.keys()


def test_autocast_computes_in_bfloat16_and_reads_out_in_float32(world, tmp_path):
    seen = {}

    def watch(name: str):
        return lambda module, inputs, output: seen.__setitem__(name, output.dtype)

    with running(world, tmp_path, precision="fp32_autocast_bf16") as trainer:
        module = trainer.engine.module
        module.denoiser.blocks[0].gate_proj.register_forward_hook(watch("block"))
        module.denoiser.final_layer.linear.register_forward_hook(watch("final"))
        loss, _ = module(trainer.batches.batch(0))
        predicted = module.predict(*sampling_inputs(trainer))
    assert seen == {"block": BF16, "final": BF16}
    assert loss.dtype == predicted.dtype == FP32


def sampling_inputs(trainer: Trainer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    prompts = trainer.prompts.chunk(0, 2)
    return prompts.noise, torch.full((2,), 0.5), prompts.text, prompts.mask


@pytest.mark.parametrize("precision", ["fp32", "fp32_autocast_bf16", "bf16_master", "bf16_pure"])
def test_sampling_accumulates_in_float32(world, tmp_path, precision, monkeypatch):
    seen = set()
    with running(world, tmp_path, precision=precision) as trainer:
        decode = trainer.tokenizer.decode
        monkeypatch.setattr(trainer.tokenizer, "decode", lambda latents: seen.add(latents.dtype) or decode(latents))
        trainer.sample()
        assert trainer.engine.module.predict(*sampling_inputs(trainer)).dtype == FP32
    assert seen == {FP32}


@pytest.fixture
def table(monkeypatch):
    """Start training from a final layer that holds the table's values, column by column."""
    build = recipe.build

    def filled(config):
        module = build(config)
        weight = module.denoiser.final_layer.linear.weight
        with torch.no_grad():
            weight.copy_(torch.tensor(TABLE).repeat(-(-weight.shape[1] // len(TABLE)))[: weight.shape[1]])
        return module

    monkeypatch.setattr(recipe, "build", filled)


def moved(trainer: Trainer, steps: int) -> dict[float, bool]:
    """Tell for each value of the table whether any weight that held it has changed."""
    trainer.advance(steps)
    weight = weights(trainer)["denoiser.final_layer.linear.weight"]
    start = torch.tensor(TABLE).repeat(-(-weight.shape[1] // len(TABLE)))[: weight.shape[1]].to(weight.dtype)
    changed = (weight != start).any(0)
    return {value: bool(changed[number :: len(TABLE)].any()) for number, value in enumerate(TABLE)}


SMALL = {
    "optimizer": {"use": "adamw", "lr": 1e-4, "eps": 1e-12},
    "warmup_steps": 0,
    "steps": 8,
    "grad_clip": None,
}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_pure_bfloat16_loses_small_steps(world, tmp_path, table, stage):
    """A step of 1e-4 is less than half the spacing of bfloat16 above 2^-5."""
    with running(world, tmp_path, precision="bf16_pure", zero_stage=stage, **SMALL) as trainer:
        assert moved(trainer, 8) == {value: value not in FROZEN for value in TABLE}


@pytest.mark.parametrize("precision", ["fp32", "fp32_autocast_bf16"])
def test_float32_weights_keep_small_steps(world, tmp_path, table, precision):
    with running(world, tmp_path, precision=precision, **SMALL) as trainer:
        assert moved(trainer, 1) == dict.fromkeys(TABLE, True)


def test_masters_collect_what_bfloat16_weights_do_not_show(world, tmp_path, table):
    with running(world, tmp_path, precision="bf16_master", zero_stage=2, **SMALL) as trainer:
        before = [value.detach().clone() for value in held(trainer)]
        assert moved(trainer, 1) == {value: value not in FROZEN for value in TABLE}
        steps = torch.cat([(now.detach() - then).abs() for now, then in zip(held(trainer), before, strict=True)])
        assert float(steps.max()) == pytest.approx(1e-4, rel=1e-2)
        assert moved(trainer, 8)[0.05]


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_share_of_lost_steps_is_counted(world, tmp_path, monkeypatch, stage, optimizer):
    """Weights whose moment is not zero were to move; counted at the second step, as `LOST_EVERY` says."""
    monkeypatch.setattr(engine, "LOST_EVERY", 2)
    settings = SMALL | {"optimizer": {"use": optimizer, "lr": 1e-4}}
    with running(world, tmp_path, precision="bf16_pure", zero_stage=stage, **settings) as trainer:
        assert engine.LOST not in trainer.advance(1).terms
        before = weights(trainer)
        share = trainer.advance(2).terms[engine.LOST]
        after = weights(trainer)
        meant = sum(int((moment != 0).sum()) for moment in firsts(trainer))
        assert engine.LOST not in trainer.advance(3).terms
    assert 0 < share < 1
    moved = sum(int((after[name] != before[name]).sum()) for name in before)
    assert 1 - share == pytest.approx(moved / meant, abs=2e-3)


def firsts(trainer: Trainer) -> Iterator[Tensor]:
    """Give the first moments."""
    return (s.get("exp_avg", s.get("momentum_buffer")) for s in trainer.engine.optimizer.state.values())


def test_lost_steps_grow_with_smaller_rates(world, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "LOST_EVERY", 1)
    found = []
    for lr in (1e-6, 1e-4, 1e-2):
        settings = SMALL | {"optimizer": {"use": "adamw", "lr": lr}}
        with running(world, tmp_path / str(lr), precision="bf16_pure", **settings) as trainer:
            found.append(trainer.advance(4).terms[engine.LOST])
    assert found[0] > found[1] > found[2]


@pytest.mark.parametrize("precision", ["fp32", "fp32_autocast_bf16", "bf16_master"])
def test_lost_steps_are_counted_for_pure_bfloat16_only(world, tmp_path, monkeypatch, precision):
    monkeypatch.setattr(engine, "LOST_EVERY", 1)
    with running(world, tmp_path, precision=precision) as trainer:
        assert trainer.advance(2).terms.keys() == {"objective"}
