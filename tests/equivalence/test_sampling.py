"""Pictures for a metric: fixed prompts and noise, whatever the trial did before."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from prx import sampling
from prx.trainer import Trainer
from tests.helpers import running, same, weights


def test_same_weights_give_the_same_pictures(world, tmp_path):
    with running(world, tmp_path) as trainer:
        trainer.advance(1)
        first, before = trainer.sample(), weights(trainer)
        assert trainer.engine.module.training
        torch.manual_seed(99)
        assert torch.equal(trainer.sample(), first)
        assert same(weights(trainer), before)
        trainer.advance(3)
        assert not torch.equal(trainer.sample(), first)
    assert first.shape == (8, 3, 16, 16)
    assert first.dtype == torch.uint8


def test_the_first_pictures_alone_are_those_of_the_whole_set(world, tmp_path):
    with running(world, tmp_path) as trainer:
        trainer.advance(1)
        assert torch.equal(trainer.sample(num=4), trainer.sample()[:4])


def test_sampling_does_not_disturb_training(world, tmp_path):
    found = []
    for sampled in (False, True):
        with running(world, tmp_path) as trainer:
            for step in (1, 2, 3):
                trainer.advance(step)
                if sampled:
                    trainer.sample()
            found.append(weights(trainer))
    assert same(*found)


def test_noise_and_prompts_do_not_depend_on_the_trials_seed_or_terms(world, tmp_path):
    chunks = []
    for changes in ({"seed": 0}, {"seed": 1}, {"seed": 1, "losses": {"repa": world.repa()}}):
        with running(world, tmp_path, **changes) as trainer:
            chunks.append(trainer.prompts.chunk(0, 8))
    for other in chunks[1:]:
        assert all(torch.equal(a, b) for a, b in zip(chunks[0], other, strict=True))


def test_noise_belongs_to_the_prompt_not_to_the_batch(world, tmp_path):
    evaluation = world.settings()["evaluation"]
    found = []
    for size in (8, 3):
        with running(world, tmp_path, evaluation=evaluation | {"batch_size": size}) as trainer:
            whole = trainer.prompts.chunk(0, 8)
            parts = [trainer.prompts.chunk(start, min(8, start + size)) for start in range(0, 8, size)]
            assert all(torch.equal(torch.cat(p), w) for p, w in zip(zip(*parts, strict=True), whole, strict=True))
            trainer.advance(2)
            found.append(trainer.sample().int())
    assert (found[0] - found[1]).abs().max() <= 1


@pytest.mark.parametrize("stage", [0, 3])
def test_pictures_do_not_depend_on_sharding(world, tmp_path, stage):
    found = []
    for zero_stage in (1, stage):
        with running(world, tmp_path, zero_stage=zero_stage) as trainer:
            trainer.advance(2)
            found.append(trainer.sample())
    assert torch.equal(*found)


def by_hand(trainer: Trainer, scale: float, num_steps: int) -> torch.Tensor:
    """Integrate the first prompts with a loop written out."""
    _, text, mask, null_text, null_mask, noised = trainer.prompts.chunk(0, 4)
    times = torch.linspace(1, 0, num_steps + 1)
    with torch.no_grad():
        for now, after in pairwise(times):
            t = now.repeat(4)
            null = trainer.engine.module.predict(noised, t, null_text, null_mask)
            conditional = trainer.engine.module.predict(noised, t, text, mask)
            noised = noised + (after - now) * (null + scale * (conditional - null))
        images = trainer.tokenizer.decode(noised)
    return ((images + 1) * 127.5).round().clamp(0, 255).int()


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0, 5.0])
def test_guided_sampling_is_the_written_out_loop(world, tmp_path, scale):
    settings = {"num_steps": 3, "guidance_scale": scale}
    with running(world, tmp_path, sampling=settings, optimizer={"use": "adamw", "lr": 1e-2}) as trainer:
        trainer.advance(4)
        assert (trainer.sample()[:4].int() - by_hand(trainer, scale, 3)).abs().max() <= 1


def test_guidance_and_steps_reach_the_sampler(world, tmp_path, monkeypatch):
    calls = []
    guided = sampling.guided

    def watched(predict, text, mask, null_text, null_mask, scale):
        calls.append(scale)
        return guided(predict, text, mask, null_text, null_mask, scale)

    monkeypatch.setattr("prx.sampling.guided", watched)
    with running(world, tmp_path, sampling={"num_steps": 2, "guidance_scale": 4.5}) as trainer:
        trainer.sample()
    assert calls == [4.5, 4.5]
