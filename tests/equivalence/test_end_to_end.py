"""Training the tokenizer: one engine against three optimizers, stages, workers, checkpoints, sampling."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from prx import images as pictures
from prx import recipe
from prx.batches import Batches, seed_normalisation
from prx.checkpoint import read_module
from prx.config import RunConfig, parse_run_config
from prx.denoiser import walk
from prx.end_to_end import EndToEnd
from prx.errors import NonFiniteError
from prx.techniques.repa_e import RepaE
from prx.train_step import TrainStep
from prx.trainer import Trainer, checkpoints
from prx.yamlsource import read_yaml
from tests.equivalence.test_workers import run_two
from tests.helpers import moments, randomise, running, same, weights

STEPS = 3
OFF = {"reconstruction_weight": 0.0, "divergence_weight": 0.0, "gan_weight": None, "align_weight": 0.0}


def parts(world, **changes: Any) -> dict[str, Any]:
    """Give the settings of an end-to-end run with a small adversary."""
    tokenizer = {"use": "repa_e", "path": str(world.root / "kl"), "gan_width": 8, "gan_depth": 2}
    return {"tokenizer": tokenizer | changes, "losses": {"repa": world.repa()}}


def buffers(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in trainer.engine.module.named_buffers()}


class ThreeOptimizers:
    """REPA-E written out: tokenizer, adversary and denoiser each have a loss, a gradient and an AdamW."""

    def __init__(self, config: RunConfig, cache: Path) -> None:
        self.module = recipe.build(config)
        seed_normalisation(self.module, config, cache)
        self.batches = Batches(config, cache, self.module)
        tokenizer = self.module.tokenizer
        self.vae, self.adversary = tokenizer.vae, tokenizer.adversary
        self.mean, self.var = tokenizer.norm.running_mean.clone(), tokenizer.norm.running_var.clone()
        sides = [self.module.denoiser, self.module.losses]
        self.groups = [
            list(self.vae.parameters()), list(self.adversary.parameters()), [p for m in sides for p in m.parameters()],
        ]  # fmt: skip
        self.optimizers = [recipe.optimizer(config).build(iter([("", p) for p in group])) for group in self.groups]
        self.rate, self.warmup = config.optimizer.lr, config.warmup_steps

    def run(self) -> list[float]:
        return [self.step(number) for number in range(STEPS)]

    def step(self, number: int) -> float:
        batch = self.batches.batch(number)
        images = pictures.to_unit(batch.images)
        posterior = self.vae.encode(images).latent_dist
        latents = posterior.mean + posterior.std * batch.posterior
        fixed = F.batch_norm(latents, self.mean, self.var, training=False, eps=1e-4)
        moving = F.batch_norm(latents.detach(), self.mean, self.var, training=True, momentum=0.1, eps=1e-4)
        made = self.vae.decode(latents).sample
        whole = batch.captions["text"], batch.captions["mask"]
        first = (made - images).abs().mean() - 0.1 * self.adversary(made).mean() + 1e-6 * posterior.kl().mean()
        first = first + 1.5 * self.passed(batch, fixed, *whole)[0]
        told = F.relu(1 - self.adversary(images)).mean() + F.relu(1 + self.adversary(made.detach())).mean()
        aligned, matched = self.passed(batch, moving, batch.text, batch.mask)
        totals = [first, told / 2, matched + 0.5 * aligned]
        self.update(number, totals)
        return float(sum(totals).detach())

    def passed(self, batch, clean: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Give the alignment and the matching loss of one pass through the denoiser."""
        t = batch.t.view(-1, 1, 1, 1)
        noised = (1 - t) * clean + t * batch.noise
        velocity, taps = walk(self.module.denoiser, noised, batch.t, text, mask, tapped={0})
        projected = self.module.losses["repa"].projector(taps[0].features)
        aligned = -F.cosine_similarity(projected, batch.targets["repa"], dim=-1).mean()
        return aligned, (velocity - (batch.noise - clean)).square().mean()

    def update(self, number: int, totals: list[Tensor]) -> None:
        found = [
            torch.autograd.grad(total, group, retain_graph=True, allow_unused=True)
            for total, group in zip(totals, self.groups, strict=True)
        ]
        for group, gradients, optimizer in zip(self.groups, found, self.optimizers, strict=True):
            for parameter, gradient in zip(group, gradients, strict=True):
                parameter.grad = gradient
            optimizer.param_groups[0]["lr"] = self.rate * min(1.0, (number + 1) / self.warmup)
            optimizer.step()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_one_engine_is_three_optimizers(world, tmp_path, stage):
    """So large an eps makes Adam's step proportional to its momentum: the gradients' sizes count, too."""
    proportional = {"optimizer": {"use": "adamw", "lr": 50.0, "eps": 1e3}, "grad_clip": None}
    with running(world, tmp_path, zero_stage=stage, **proportional, **parts(world)) as trainer:
        before = weights(trainer)
        losses = [trainer.advance(step + 1).loss for step in range(STEPS)]
        reference = ThreeOptimizers(trainer.config, world.cache)
        assert losses == pytest.approx(reference.run(), rel=1e-5)
        found = weights(trainer)
        norm = trainer.engine.module.tokenizer.norm
        torch.testing.assert_close(norm.running_mean, reference.mean)
        torch.testing.assert_close(norm.running_var, reference.var)
    for name, value in reference.module.named_parameters():
        moved, wanted = found[name] - before[name], value.detach() - before[name]
        torch.testing.assert_close(moved, wanted, rtol=0, atol=5e-3 * float(wanted.abs().max()) + 1e-6)


def test_stages_agree(world, tmp_path):
    found = []
    for stage in (0, 1, 2, 3):
        with running(world, tmp_path, zero_stage=stage, **parts(world)) as trainer:
            progress = trainer.advance(STEPS)
            found.append((progress.loss, weights(trainer) | buffers(trainer)))
    for loss, values in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        for name, value in found[0][1].items():
            torch.testing.assert_close(values[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (2, "fp32"), (2, "bf16_master"), (1, "bf16_pure")])
def test_resumed_is_uninterrupted(world, tmp_path, stage, precision):
    changes = {"zero_stage": stage, "precision": precision, "steps": 5} | parts(world)
    with running(world, tmp_path / "whole", **changes) as whole:
        whole.advance(2)
        expected = [whole.advance(step).loss for step in (3, 4)]
        with running(world, tmp_path / "parts", **changes) as trainer:
            trainer.advance(2)
            trainer.save()
        with running(world, tmp_path / "parts", **changes) as trainer:
            untrained = buffers(trainer)
            assert trainer.resume() == 2
            assert not same(buffers(trainer), untrained)
            assert [trainer.advance(step).loss for step in (3, 4)] == expected
            assert same(weights(trainer) | buffers(trainer), weights(whole) | buffers(whole))
            assert all(torch.equal(a, b) for a, b in zip(moments(trainer), moments(whole), strict=True))
            assert torch.equal(trainer.sample(), whole.sample())


@pytest.mark.parametrize("stage", [0, 2])
def test_a_read_checkpoint_has_the_statistics_that_the_sampler_uses(world, tmp_path, stage):
    """They stay float32 in a bfloat16 run."""
    with running(world, tmp_path, zero_stage=stage, precision="bf16_master", **parts(world)) as trainer:
        trainer.advance(2)
        trainer.save()
        expected = buffers(trainer)
        found = dict(read_module(trainer.config, checkpoints(tmp_path)[2]).named_buffers())
    assert expected
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_every_parameter_learns(world, tmp_path):
    with running(world, tmp_path, zero_stage=0, **parts(world, perceptual="embedded:inception")) as trainer:
        before, statistics = weights(trainer), buffers(trainer)
        trainer.advance(4)
        after = weights(trainer)
        assert not any(torch.equal(value, buffers(trainer)[name]) for name, value in statistics.items())
    still = [name for name, value in before.items() if torch.equal(value, after[name])]
    assert still == [name for name in still if name.endswith("to_k.bias")]  # softmax does not see it


@pytest.mark.parametrize("stage", [0, 2])
def test_tokenizer_without_a_loss_stays_bit_for_bit(world, tmp_path, stage):
    with running(world, tmp_path, zero_stage=stage, **parts(world, **OFF)) as trainer:
        before, statistics = weights(trainer), buffers(trainer)
        assert trainer.advance(STEPS).terms.keys() == {"objective", "repa"}
        after = weights(trainer)
        assert not same(buffers(trainer), statistics)
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved
    assert not any(name.startswith("tokenizer.") for name in moved)


def test_without_alignment_and_normalisation_the_denoisers_pass_is_repa(world, monkeypatch):
    monkeypatch.setattr(RepaE, "normalise_batch", lambda self, latents: latents)
    config = world.config(**parts(world, align_weight=0.0))
    module = recipe.build(config)
    assert isinstance(module, EndToEnd)
    randomise(module.denoiser)
    batch = Batches(config, world.cache, module).batch(0)
    loss, _ = module(batch)
    loss.backward()
    plain = recipe.build(world.config(losses=config.model_dump()["losses"]))
    assert type(plain) is TrainStep
    randomise(plain.denoiser)
    with torch.no_grad():
        latents = module.tokenizer.draw(pictures.to_unit(batch.images), batch.posterior).latents
    plain(replace(batch, clean=latents, images=None))[0].backward()
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter.grad, module.get_parameter(name).grad), name


@pytest.mark.parametrize("stage", [0, 2])
def test_alignment_stops_on_both_sides(world, tmp_path, stage):
    changes = parts(world) | {"losses": {"repa": world.repa(stop_step=2)}}
    with running(world, tmp_path, zero_stage=stage, **changes) as trainer:
        before = [trainer.advance(step).terms.keys() for step in (1, 2)]
        trained = weights(trainer)
        after = trainer.advance(3).terms.keys()
        assert before == [after | {"repa", "tokenizer/repa"}] * 2
        moved = {name for name, value in weights(trainer).items() if not torch.equal(value, trained[name])}
    assert any(name.startswith("tokenizer.vae.encoder") for name in moved)


def test_broken_pictures_are_named_and_move_nothing(world, tmp_path):
    with running(world, tmp_path, **parts(world)) as trainer:
        trainer.advance(1)
        with torch.no_grad():
            trainer.tokenizer.vae.decoder.conv_out.bias.fill_(float("nan"))
        before = weights(trainer)
        with pytest.raises(NonFiniteError, match=r"^step 2: tokenizer/reconstruction became nan; the weights are"):
            trainer.advance(2)
        found = weights(trainer)
    assert all(torch.equal(value, found[name]) for name, value in before.items() if "decoder.conv_out" not in name)


def test_frozen_drop_in_has_no_parameter_and_no_gradient(world, tmp_path):
    frozen = {"tokenizer": {"use": "autoencoder", "path": str(world.root / "kl")}, "losses": {"repa": world.repa()}}
    with running(world, tmp_path, zero_stage=0, **frozen) as trainer:
        before = {name: value.clone() for name, value in trainer.tokenizer.model.state_dict().items()}
        trainer.advance(2)
        assert trainer.engine.module.tokenizer is None
        assert not any("tokenizer" in name for name in trainer.engine.module.state_dict())
        assert all(p.grad is None and not p.requires_grad for p in trainer.tokenizer.model.parameters())
        assert same(trainer.tokenizer.model.state_dict(), before)


@pytest.mark.parametrize("precision", ["fp32_autocast_bf16", "bf16_master", "bf16_pure"])
def test_precisions_train(world, tmp_path, precision):
    with running(world, tmp_path, zero_stage=1, precision=precision, **parts(world)) as trainer:
        report = trainer.advance(2)
        assert torch.isfinite(torch.tensor([report.loss, *report.terms.values()])).all()
        assert {value.dtype for value in buffers(trainer).values()} == {torch.float32}
        assert trainer.sample().dtype == torch.uint8


def test_pictures_come_from_the_trained_decoder_and_its_statistics(world, tmp_path):
    with running(world, tmp_path, **parts(world)) as trainer:
        trainer.advance(2)
        assert trainer.tokenizer is trainer.prompts.tokenizer is trainer.engine.module.tokenizer
        images, tokenizer = trainer.sample(), trainer.tokenizer
        assert trainer.engine.module.tokenizer.training
        tokenizer.norm.running_mean += 1
        assert not torch.equal(trainer.sample(), images)
        tokenizer.norm.running_mean -= 1
        with torch.no_grad():
            tokenizer.vae.decoder.conv_out.bias += 1
        assert not torch.equal(trainer.sample(), images)


def test_average_covers_tokenizer_and_statistics(world, tmp_path):
    """With decay 0 the average is the last step's; before it moves, pictures are those of the start."""
    slow = {"ema": {"decay": 0.5, "every": 100}, "sampling": {"num_steps": 2, "weights": "ema"}}
    with running(world, tmp_path, **slow, **parts(world)) as trainer:
        start = trainer.sample()
        trainer.advance(2)
        assert torch.equal(trainer.sample(), start)
        assert {"tokenizer.norm.running_mean", "tokenizer.norm.running_var"} <= trainer.engine.ema.state().keys()
    quick = slow | {"ema": {"decay": 0.0, "every": 1}}
    with running(world, tmp_path, **quick, **parts(world)) as trainer:
        trainer.advance(2)
        averaged = trainer.sample()
        with trainer.engine.ema.applied():
            assert same(trainer.engine.ema.state(), trainer.engine.module.state_dict())
        assert not torch.equal(averaged, start)


def train(config: Path, cache: Path, folder: Path, steps: int) -> dict[str, Any]:
    """Train as one worker, or as one of two."""
    trainer = Trainer(parse_run_config(read_yaml(config).data), folder=folder, cache=cache)
    reports = [trainer.advance(step + 1) for step in range(steps)]
    found = {
        "losses": [report.loss for report in reports], "terms": reports[-1].terms,
        "weights": weights(trainer), "buffers": buffers(trainer),
    }  # fmt: skip
    trainer.close()
    return found


@pytest.mark.slow
def test_two_workers_are_one(world, tmp_path):
    def written(path: Path, **changes: Any) -> Path:
        settings = parts(world) | {"infrastructure": {"threads": 1, "device": "cpu", "zero_stage": 2} | changes}
        world.config(**settings)
        path.write_text(yaml.safe_dump(world.settings(**settings)))
        return path

    alone = train(written(tmp_path / "one.yaml"), world.cache, tmp_path / "one", STEPS)
    (tmp_path / "two").mkdir()
    first, second = run_two(written(tmp_path / "two.yaml", workers=2), world.cache, tmp_path / "two", __name__)
    assert same(first["buffers"], second["buffers"])
    assert same(first["weights"], second["weights"])
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    for kind in ("buffers", "weights"):
        for name, value in alone[kind].items():
            torch.testing.assert_close(first[kind][name], value, rtol=1e-3, atol=1e-4)


if __name__ == "__main__":
    torch.set_num_threads(1)
    paths = list(map(Path, sys.argv[1:4]))
    torch.save(train(*paths, int(sys.argv[5])), f"{sys.argv[4]}.{os.environ['RANK']}")
