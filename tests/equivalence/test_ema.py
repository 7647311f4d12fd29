"""Averaging the weights watches a run and never changes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from prx.config import parse_run_config
from prx.config_evaluation import AlsoConfig
from prx.trainer import Trainer
from tests.equivalence.test_workers import run_two, train, written
from tests.helpers import moments, running, same, weights

EMA = {"decay": 0.5, "every": 1}
SAMPLING = {"num_steps": 2, "guidance_scale": 2.0}
MODES = [
    *((stage, "fp32") for stage in (0, 1, 2)),
    *((stage, "bf16_master") for stage in (0, 1, 2)),
    *((stage, "bf16_pure") for stage in (1, 2)),
    (2, "fp32_autocast_bf16"),
]


def averaged(trainer: Trainer) -> dict[str, Tensor]:
    assert trainer.engine.ema is not None
    return {name: value.clone() for name, value in trainer.engine.ema.state().items()}


@pytest.mark.parametrize(("stage", "precision"), MODES)
def test_average_follows_training_without_touching_it(world, tmp_path, stage, precision):
    changes: dict[str, Any] = {"zero_stage": stage, "precision": precision, "losses": {"repa": world.repa()}}
    with running(world, tmp_path / "plain", **changes) as trainer:
        expected = [weights(trainer)]
        for step in (1, 2, 3):
            trainer.advance(step)
            expected.append(weights(trainer))
        states = moments(trainer)
    sampling = SAMPLING | {"weights": "ema"}
    with running(world, tmp_path / "average", ema=EMA, sampling=sampling, **changes) as trainer:
        for step in (1, 2, 3):
            trainer.advance(step)
            trainer.sample()
            assert same(weights(trainer), expected[step])
        assert all(torch.equal(a, b) for a, b in zip(moments(trainer), states, strict=True))
        found = averaged(trainer)
    assert {value.dtype for value in found.values() if value.is_floating_point()} == {torch.float32}
    for name in expected[0]:
        first, second, third, last = (found_weights[name].float() for found_weights in expected)
        torch.testing.assert_close(found[name], first / 8 + second / 8 + third / 4 + last / 2, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("stage", "precision"), MODES)
def test_resumed_average_is_uninterrupted(world, tmp_path, stage, precision):
    changes: dict[str, Any] = {"zero_stage": stage, "precision": precision, "ema": EMA, "steps": 5}
    with running(world, tmp_path / "whole", **changes) as whole:
        whole.advance(5)
        with running(world, tmp_path / "parts", **changes) as trainer:
            trainer.advance(2)
            trainer.save()
        with running(world, tmp_path / "parts", **changes) as trainer:
            assert trainer.resume() == 2
            trainer.advance(5)
            assert same(averaged(trainer), averaged(whole))
            assert same(weights(trainer), weights(whole))


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_pictures_are_drawn_with_the_weights_that_are_asked_for(world, tmp_path, stage):
    def pictures(name: str, **changes: Any) -> Tensor:
        with running(world, tmp_path / name, zero_stage=stage, **LARGE | changes) as trainer:
            trainer.advance(3)
            return trainer.sample()

    model = pictures("model")
    average = SAMPLING | {"weights": "ema"}
    assert torch.equal(pictures("unused", ema=EMA), model)
    assert torch.equal(pictures("copy", ema=EMA | {"decay": 0.0}, sampling=average), model)
    assert torch.equal(pictures("early", ema=EMA | {"start": 3}, sampling=average), model)
    assert not torch.equal(pictures("average", ema=EMA, sampling=average), model)


def test_one_run_is_drawn_under_several_settings(world, tmp_path):
    """Its own weights, their average and another scale, as runs of those settings would draw them."""
    def pictures(name: str, sampling: dict[str, Any], *others: dict[str, Any]) -> list[Tensor]:
        with running(world, tmp_path / name, ema=EMA, sampling=sampling, **LARGE) as trainer:
            trainer.advance(3)
            asked = [AlsoConfig(**other).applied(trainer.config.sampling) for other in others]
            return [trainer.sample(), *(trainer.sample(settings) for settings in asked), trainer.sample()]

    average, strong = {"weights": "ema"}, {"guidance_scale": 3.0, "num_steps": 2}
    first, averaged, guided, again = pictures("one", SAMPLING, average, strong)
    assert torch.equal(first, again)
    assert torch.equal(averaged, pictures("average", SAMPLING | average)[0])
    assert torch.equal(guided, pictures("strong", SAMPLING | strong)[0])
    assert not torch.equal(averaged, first)


LARGE = {"optimizer": {"use": "adamw", "lr": 0.05}, "warmup_steps": 0}


def test_average_of_a_bfloat16_run_is_drawn_in_float32(world, tmp_path):
    seen = set()
    sampling = SAMPLING | {"weights": "ema"}
    with running(world, tmp_path, precision="bf16_pure", ema=EMA, sampling=sampling) as trainer:
        trainer.advance(1)
        hook = trainer.engine.module.denoiser.blocks[0].register_forward_hook(lambda *a: seen.add(a[2].dtype))
        trainer.sample()
        assert seen == {torch.float32}
        hook.remove()
        assert {value.dtype for value in weights(trainer).values()} == {torch.bfloat16}


def test_checkpoint_without_an_average_is_refused(world, tmp_path):
    with running(world, tmp_path) as trainer:
        trainer.advance(1)
        trainer.save()
    with running(world, tmp_path, ema=EMA) as trainer, pytest.raises(FileNotFoundError, match=r"ema\.pt"):
        trainer.resume()


def test_late_start_is_resumed_before_and_after(world, tmp_path):
    changes: dict[str, Any] = {"ema": EMA | {"start": 3}, "steps": 5}
    with running(world, tmp_path / "whole", **changes) as whole:
        whole.advance(5)
        expected = averaged(whole)
    for stop in (2, 3, 4):
        folder = tmp_path / f"parts{stop}"
        with running(world, folder, **changes) as trainer:
            trainer.advance(stop)
            trainer.save()
        with running(world, folder, **changes) as trainer:
            assert trainer.resume() == stop
            trainer.advance(5)
            assert same(averaged(trainer), expected)


@pytest.mark.slow
def test_two_workers_hold_one_average(world, tmp_path):
    changes: dict[str, Any] = {"ema": EMA, "sampling": SAMPLING | {"weights": "ema"}}
    alone = train(written(world, tmp_path / "one.yaml", changes), world.cache, tmp_path / "one", 3)
    (tmp_path / "two").mkdir()
    config = written(world, tmp_path / "two.yaml", changes, workers=2, micro_batch=2)
    first, second = run_two(config, world.cache, tmp_path / "two")
    assert len(second["images"]) == 0
    assert (first["images"].int() - alone["images"].int()).abs().max() <= 1


def test_ema_is_part_of_what_a_run_is(world):
    from prx.config import config_id

    plain, average = (parse_run_config(world.settings(**changes)) for changes in ({}, {"ema": EMA}))
    assert config_id(plain) != config_id(average)
