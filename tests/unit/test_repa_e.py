"""A tokenizer that is trained: its losses, who gets which gradient, its caches, what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from prx import cache, prepare, recipe
from prx import images as pictures
from prx.batches import Batches, seed_normalisation
from prx.config import parse_run_config
from prx.end_to_end import EndToEnd
from prx.errors import UserError
from prx.perceptual_net import PerceptualNetwork
from prx.techniques.repa_e import RepaE
from prx.train_step import StepBatch, TrainStep
from tests.helpers import randomise

CPU = torch.device("cpu")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def settings(world, **changes: Any) -> dict[str, Any]:
    """Give the tokenizer's settings, with a small adversary."""
    return {"use": "repa_e", "path": str(world.root / "kl"), "gan_width": 8, "gan_depth": 2} | changes


def built(world, text: dict | None = None, routing: dict | None = None, **changes: Any) -> tuple[EndToEnd, StepBatch]:
    """Build a step in which nothing of the denoiser is zero, and its first batch."""
    config = world.config(
        tokenizer=settings(world, **changes), losses={"repa": world.repa()}, routing=routing,
        text=world.settings()["text"] | (text or {}),
    )  # fmt: skip
    module = recipe.build(config)
    for child in (module.denoiser, module.losses):
        randomise(child)
    seed_normalisation(module, config, world.cache)
    assert isinstance(module, EndToEnd)
    return module, Batches(config, world.cache, module).batch(0)


# The gradient table of techniques.md, section 6

PARTS = {"encoder": "tokenizer.vae.encoder", "decoder": "tokenizer.vae.decoder", "denoiser": "denoiser.",
         "projector": "losses.", "adversary": "tokenizer.adversary"}  # fmt: skip
TABLE = {
    "objective": {"denoiser"},
    "repa": {"denoiser", "projector"},
    "tokenizer/repa": {"encoder"},
    "tokenizer/reconstruction": {"encoder", "decoder"},
    "tokenizer/gan": {"encoder", "decoder"},
    "tokenizer/perceptual": {"encoder", "decoder"},
    "tokenizer/divergence": {"encoder"},
    "tokenizer/adversary": {"adversary"},
}


def every_loss(module: EndToEnd, batch: StepBatch) -> dict[str, Tensor]:
    """Compute each loss by itself, as `forward` adds them up."""
    images = pictures.to_unit(batch.images)
    found = module.tokenizer.draw(images, batch.posterior)
    parts = {name: value for name, (_, value) in module.tokenizer_losses(batch, images, found).items()}
    clean = module.tokenizer.normalise_batch(found.latents.detach())
    here = TrainStep.values(module, replace(batch, clean=clean, images=None), list(module.losses.values()))
    return parts | here


@pytest.mark.parametrize("name", TABLE)
def test_gradients_reach_what_the_table_says_and_nothing_else(world, name):
    module, batch = built(world, perceptual="embedded:inception")
    values = every_loss(module, batch)
    assert values.keys() == TABLE.keys()
    named = dict(module.named_parameters())
    gradients = torch.autograd.grad(values[name], list(named.values()), allow_unused=True)
    reached = set()
    for (parameter, _), gradient in zip(named.items(), gradients, strict=True):
        if gradient is not None and gradient.any():
            reached |= {part for part, prefix in PARTS.items() if parameter.startswith(prefix)}
    assert reached == TABLE[name]


def test_alignment_stops_at_the_tap_in_both_passes(world):
    module, batch = built(world)
    values = every_loss(module, batch)
    behind = [*module.denoiser.blocks[1].parameters(), *module.denoiser.final_layer.parameters()]
    for name in ("repa", "tokenizer/repa"):
        assert torch.autograd.grad(values[name], behind, allow_unused=True, retain_graph=True) == (None,) * len(behind)


def test_one_backward_pass_gives_the_sum_of_the_table(world):
    module, batch = built(world)
    loss, terms = module(batch)
    loss.backward()
    other, same_batch = built(world)
    weights = {"objective": 1.0, "repa": 0.5, "tokenizer/repa": 1.5, "tokenizer/reconstruction": 1.0,
               "tokenizer/divergence": 1e-6, "tokenizer/gan": 0.1, "tokenizer/adversary": 1.0}  # fmt: skip
    values = every_loss(other, same_batch)
    assert terms.keys() == values.keys() == weights.keys()
    total = sum(weights[name] * value for name, value in values.items())
    torch.testing.assert_close(loss, total)
    total.backward()
    for (name, found), expected in zip(module.named_parameters(), other.parameters(), strict=True):
        assert found.grad is not None, name
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-6)


def test_tokenizer_pass_moves_nothing_on_the_other_side(world):
    module, batch = built(world)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    images = pictures.to_unit(batch.images)
    parts = module.tokenizer_losses(batch, images, module.tokenizer.draw(images, batch.posterior))
    sum(weight * value for weight, value in parts.values()).backward()
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(p.grad is None for part in (module.denoiser, module.losses) for p in part.parameters())
    assert all(p.requires_grad for p in module.parameters())


def test_tokenizer_pass_uses_the_statistics_that_the_step_began_with(world):
    module, batch = built(world)
    alone = every_loss(module, batch)["tokenizer/repa"].detach()
    module, batch = built(world)
    _, terms = module(batch)
    assert torch.equal(terms["tokenizer/repa"], alone)
    assert not torch.equal(module(batch)[1]["tokenizer/repa"], alone)


def test_tokenizer_pass_sees_every_caption(world):
    """Dropping all captions changes the denoiser's pass and nothing in the tokenizer's."""
    kept, none = (module(batch)[1] for module, batch in (built(world, text={"caption_dropout": p}) for p in (0.0, 1.0)))
    assert kept["objective"] != none["objective"]
    assert kept["repa"] != none["repa"]
    assert kept["tokenizer/repa"] == none["tokenizer/repa"]


def test_tokenizer_pass_drops_no_token(world):
    found = []
    for route in (True, False):
        module, batch = built(world, routing={"use": "tread", "start": 0})
        assert batch.kept.shape == (8, 8)
        found.append(module(batch if route else replace(batch, kept=None))[1])
    routed, dense = found
    assert routed["tokenizer/repa"] == dense["tokenizer/repa"]
    assert routed["repa"] != dense["repa"]


@pytest.mark.parametrize(("weight", "share"), [(0.5, 1.0), (0.125, 0.25)])
def test_alignment_falls_with_its_schedule_on_both_sides(world, weight, share):
    module, batch = built(world)
    images = pictures.to_unit(batch.images)
    found = module.tokenizer.draw(images, batch.posterior)
    parts = module.tokenizer_losses(replace(batch, weights={"repa": weight}), images, found)
    assert parts["tokenizer/repa"][0] == pytest.approx(1.5 * share)
    assert "tokenizer/repa" not in module.tokenizer_losses(replace(batch, weights={}), images, found)


def test_losses_that_are_switched_off_are_not_computed(world, monkeypatch):
    off = {"reconstruction_weight": 0.0, "divergence_weight": 0.0, "gan_weight": None, "align_weight": 0.0}
    module, batch = built(world, **off)
    monkeypatch.setattr(module.tokenizer.vae, "decode", lambda *_: pytest.fail("nobody looks at the picture"))
    loss, terms = module(batch)
    assert terms.keys() == {"objective", "repa"}
    loss.backward()
    assert all(p.grad is None for p in module.tokenizer.parameters())


def test_conflict_of_gradients_can_be_measured(world):
    module, batch = built(world)
    before = module.tokenizer.norm.running_mean.clone()
    term, objective = module.term_and_objective(batch, "repa")
    assert torch.isfinite(term)
    assert torch.isfinite(objective)
    assert torch.equal(module.tokenizer.norm.running_mean, before)


# Encoding, decoding, caches


def tokenizer(world, **changes: Any) -> RepaE:
    return RepaE(RepaE.Config(**settings(world, **changes)), CPU)


def test_divergence_and_draw_are_the_posteriors(world):
    trained, images = tokenizer(world), drawn(3, 3, 16, 16).tanh()
    posterior = trained.vae.encode(images).latent_dist
    noise = drawn(*posterior.mean.shape, seed=1)
    found = trained.draw(images, noise)
    torch.testing.assert_close(found.divergence, posterior.kl().mean())
    torch.testing.assert_close(found.latents, posterior.mean + posterior.std * noise)


def test_decoding_undoes_normalisation_and_encoding(world):
    trained, images = tokenizer(world), drawn(3, 3, 16, 16).tanh()
    trained.start_from(drawn(4), drawn(4, seed=1).square() + 0.1)
    posterior, moments = trained.vae.encode(images).latent_dist, trained.encode(images)
    expected = trained.vae.decode(posterior.mean).sample.clamp(-1, 1)
    torch.testing.assert_close(trained.decode(trained.latent(moments, None)), expected, rtol=1e-4, atol=1e-4)
    noise = drawn(*posterior.mean.shape, seed=2)
    expected = trained.normalise(trained.draw(images, noise).latents)
    torch.testing.assert_close(trained.latent(moments, noise), expected, rtol=1e-4, atol=1e-4)


def test_cache_holds_pictures_whatever_the_weights(world):
    losses = {"repa": world.repa()}
    config = world.config(tokenizer=settings(world), losses=losses)
    found = prepare.plan(config, world.cache).latents[0].key
    assert found.kind == "images"
    other = parse_run_config(world.settings(tokenizer=settings(world, path="elsewhere", channels=4, downsample=4)))
    assert prepare._image_job(other, prepare.datasets.train_sets(other.data, world.cache)[0]).key == found
    kept = cache.read(world.cache, found).take("images", np.array([5, 0]))
    assert kept.dtype == torch.uint8
    assert kept.shape == (2, 3, 16, 16)
    module = recipe.build(config)
    batches = Batches(config, world.cache, module)
    batch = batches.batch(0)
    assert torch.equal(batch.images, batches.latents.take("images", batches.order(0)))
    assert batch.clean.isnan().all()
    assert batch.clean.shape == batch.noise.shape == batch.posterior.shape == (8, 4, 4, 4)


def test_normalisation_begins_with_the_latents_own_statistics(world, monkeypatch):
    monkeypatch.setattr(prepare, "MEASURED", 20)
    monkeypatch.setattr(prepare, "BATCH", 16)
    config = world.config(tokenizer=settings(world), losses={"repa": world.repa()})
    module = recipe.build(config)
    seed_normalisation(module, config, world.cache)
    images = Batches(config, world.cache, module).latents.take("images", np.arange(20))
    posterior = module.tokenizer.vae.encode(pictures.to_unit(images)).latent_dist
    torch.testing.assert_close(module.tokenizer.norm.running_mean, posterior.mean.mean((0, 2, 3)))
    var = posterior.mean.var((0, 2, 3), unbiased=False) + posterior.var.mean((0, 2, 3))
    torch.testing.assert_close(module.tokenizer.norm.running_var, var, rtol=1e-4, atol=1e-5)


def test_parts_begin_alike_whatever_the_others_are(world):
    """The denoiser starts as with a frozen tokenizer; the adversary has a stream of its own."""
    losses = {"repa": world.repa()}
    plain = recipe.build(world.config(losses=losses))
    trained = recipe.build(world.config(losses=losses, tokenizer=settings(world)))
    for name, value in plain.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name])


def test_perceptual_loss_is_the_networks_distance(world):
    module, batch = built(world, perceptual="embedded:inception")
    images = pictures.to_unit(batch.images)
    found = module.tokenizer.draw(images, batch.posterior)
    weight, value = module.tokenizer.losses(images, found)["perceptual"]
    distance = PerceptualNetwork("embedded:inception", CPU).distance(
        module.tokenizer.vae.decode(found.latents).sample, images
    )
    assert weight == 1.0
    torch.testing.assert_close(value, distance.mean())
    assert {name.partition(".")[0] for name, _ in module.tokenizer.named_parameters()} == {"vae", "adversary"}


# What cannot work


def problems(world, **changes: Any) -> list[str]:
    base = world.settings(tokenizer=settings(world), losses={"repa": world.repa()}) | changes
    return [str(problem) for problem in recipe.problems(parse_run_config(base))]


def test_what_works_has_no_problem(world):
    assert problems(world) == []
    assert problems(world, routing={"use": "tread"}, objective={"use": "x_prediction"}, ema={}) == []


REFUSED = [
    (
        {"losses": {}},
        "losses: must have an alignment term, such as repa, through which tokenizer repa_e learns, got no loss",
    ),
    (
        {"infrastructure": {"device": "cpu", "micro_batch": 4}},
        "infrastructure.micro_batch: must be the whole share of a worker (8) with tokenizer repa_e, whose batch "
        "statistics depend on it, got 4",
    ),
]


@pytest.mark.parametrize(("changes", "expected"), REFUSED)
def test_impossible_settings_are_refused(world, changes, expected):
    assert problems(world, **changes) == [expected]


def test_losses_that_pair_samples_are_refused(world):
    losses = {"repa": world.repa(), "away": {"use": "contrastive"}}
    expected = "losses.away: must not pair samples with tokenizer repa_e, which makes each worker's latents in the step"
    assert problems(world, losses=losses) == [f"{expected}, got 'contrastive'"]
    assert problems(world, losses={"away": {"use": "contrastive"}})[0].endswith("got away")


def test_perceptual_networks_are_checked(world):
    found = problems(world, tokenizer=settings(world, perceptual=str(world.root / "dinov2")))
    assert found[0].startswith("tokenizer.perceptual: perceptual network ")
    assert len(found) == 1


def test_only_kl_autoencoders_can_be_trained(world):
    found = problems(world, tokenizer=settings(world, path=str(world.root / "flux2")))
    assert found[0].startswith("tokenizer.path: ")
    assert found[0].endswith("holds a AutoencoderKLFlux2, must hold an AutoencoderKL to be trained")
    for key, value in (("channels", 8), ("downsample", 2)):
        with pytest.raises(UserError, match=f"^tokenizer.{key}: .*, got {value}$"):
            tokenizer(world, **{"channels": 4, "downsample": 4} | {key: value})
    declared = RepaE.Config(**settings(world, path="nowhere", channels=16, downsample=8))
    assert RepaE.geometry(declared) == (16, 8)


def test_reconstruction_is_the_mean_absolute_error(world):
    module, batch = built(world)
    images = pictures.to_unit(batch.images)
    found = module.tokenizer.draw(images, batch.posterior)
    made = module.tokenizer.vae.decode(found.latents).sample
    torch.testing.assert_close(module.tokenizer.losses(images, found)["reconstruction"][1], F.l1_loss(made, images))
