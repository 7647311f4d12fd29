"""Frozen autoencoders: scaling both ways, the FLUX.2 batch norm, moments, and folders that do not fit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_prx import img2seq

from prx import recipe, registry
from prx.config import parse_run_config
from prx.embedded.scenes import render, sample_scene
from prx.errors import UserError
from prx.interfaces import RunShape
from prx.techniques.autoencoder import Autoencoder

CPU = torch.device("cpu")


def tokenizer(world, name: str, **settings) -> Autoencoder:
    return Autoencoder(Autoencoder.Config(use="autoencoder", path=str(world.root / name), **settings), CPU)


@pytest.fixture(params=["kl", "flux2"])
def frozen(request, world):
    return tokenizer(world, request.param)


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.rand(5, 3, 16, 16) * 2 - 1


def patchify(latents: torch.Tensor) -> torch.Tensor:
    """Stack 2x2 patches on channels in the order (channel, row, column), written out."""
    corners = [latents[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)]
    return torch.stack(corners, dim=2).flatten(1, 2)


def unpatchify(patches: torch.Tensor) -> torch.Tensor:
    batch, channels, height, width = patches.shape
    out = torch.empty(batch, channels // 4, 2 * height, 2 * width)
    for number, (row, column) in enumerate((row, column) for row in (0, 1) for column in (0, 1)):
        out[:, :, row::2, column::2] = patches[:, number::4]
    return out


def test_geometry_comes_from_the_config_alone(world, tmp_path):
    for name, channels in (("kl", 4), ("flux2", 8), ("dc", 8)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text((world.root / name / "config.json").read_text())
        config = Autoencoder.Config(use="autoencoder", path=str(folder))
        assert Autoencoder.geometry(config) == (channels, 4)
    declared = Autoencoder.Config(use="autoencoder", path="nowhere", channels=16, downsample=8)
    assert Autoencoder.geometry(declared) == (16, 8)


def test_shapes_agree_with_the_geometry(frozen, images):
    moments = frozen.encode(images)
    assert moments.shape == (5, 2 * frozen.channels, 16 // frozen.downsample, 16 // frozen.downsample)
    assert frozen.decode(frozen.latent(moments, None)).shape == images.shape


def test_normalising_and_denormalising_are_inverse(frozen, images):
    raw = torch.randn(2, frozen.channels, 4, 4)
    torch.testing.assert_close(frozen._denormalise(frozen._normalise(raw)), raw, rtol=1e-5, atol=1e-5)
    latents = frozen.latent(frozen.encode(images), None)
    assert not torch.allclose(latents, frozen.model.encode(images).latent_dist.mean, atol=1e-3)
    direct = frozen.model.decode(frozen.model.encode(images).latent_dist.mean).sample.clamp(-1, 1)
    torch.testing.assert_close(frozen.decode(latents), direct, rtol=1e-4, atol=1e-4)


def test_kl_scaling_is_shift_then_factor(world, images):
    frozen = tokenizer(world, "kl")
    posterior = frozen.model.encode(images).latent_dist
    mean, std = frozen.encode(images).chunk(2, dim=1)
    torch.testing.assert_close(mean, (posterior.mean - 0.1) * 0.7)
    torch.testing.assert_close(std, posterior.std * 0.7, rtol=1e-4, atol=1e-6)


def test_flux2_scaling_is_a_batch_norm_over_two_by_two_patches(world, images):
    frozen = tokenizer(world, "flux2")
    bn = frozen.model.bn
    assert not torch.allclose(bn.running_var, torch.ones_like(bn.running_var), atol=0.1), "weights were not loaded"
    posterior = frozen.model.encode(images).latent_dist
    scale = (bn.running_var + frozen.model.config.batch_norm_eps).sqrt().view(1, -1, 1, 1)
    expected = unpatchify((patchify(posterior.mean) - bn.running_mean.view(1, -1, 1, 1)) / scale)
    mean, std = frozen.encode(images).chunk(2, dim=1)
    torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(std, unpatchify(patchify(posterior.std) / scale), rtol=1e-4, atol=1e-6)
    assert torch.equal(unpatchify(patchify(posterior.mean)), posterior.mean)


def test_normalised_latents_have_unit_statistics_when_the_model_says_so(world):
    frozen = tokenizer(world, "flux2")
    torch.manual_seed(0)
    raw = torch.randn(4000, 4 * frozen.channels, 1, 1) * frozen.model.bn.running_var.sqrt().view(1, -1, 1, 1)
    latents = frozen._normalise(unpatchify(raw + frozen.model.bn.running_mean.view(1, -1, 1, 1)))
    per_place = latents.flatten(1)
    assert per_place.mean(0).abs().max() < 0.08
    assert (per_place.std(0) - 1).abs().max() < 0.06


def test_flux2_statistics_of_real_latents_are_those_of_unit_noise():
    """Mean and spread of each of the 128 channels of 2x2 patches, over trained weights and their own pictures."""
    frozen = Autoencoder(Autoencoder.Config(use="autoencoder", path="embedded:flux2"), CPU)
    rng = np.random.default_rng(5)
    scenes = np.stack([render(sample_scene(rng)) for _ in range(256)])
    images = torch.from_numpy(scenes).permute(0, 3, 1, 2) / 127.5 - 1
    moments = torch.cat([frozen.encode(part) for part in images.split(64)])
    latents = patchify(frozen.latent(moments, torch.randn(256, 32, 8, 8)))
    assert latents.shape[1] == 128
    assert latents.mean((0, 2, 3)).abs().max() < 0.15
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.15


def test_flux2_channel_of_a_place_is_four_times_the_channel_plus_its_corner(world):
    frozen = tokenizer(world, "flux2")
    frozen.model.bn.running_mean.copy_(torch.arange(4 * frozen.channels))
    mean, _ = frozen._patch_statistics(torch.zeros(1, frozen.channels, 4, 6))
    channel, row, column = torch.meshgrid(torch.arange(8), torch.arange(4), torch.arange(6), indexing="ij")
    assert torch.equal(mean[0], (channel * 4 + row % 2 * 2 + column % 2).float())
    stacked = patchify(mean)
    assert torch.equal(stacked[0, :, 0, 0], torch.arange(32.0))
    assert torch.equal(unpatchify(stacked), mean)


def test_flux2_tokens_are_those_of_the_stacked_latent():
    latents = torch.arange(2 * 32 * 6 * 4, dtype=torch.float32).view(2, 32, 6, 4)
    tokens = img2seq(latents, 2)
    assert tokens.shape == (2, 6, 128)
    assert torch.equal(tokens, img2seq(patchify(latents), 1))


def test_encoding_moves_no_statistic_of_the_batch_norm(world, images):
    frozen = tokenizer(world, "flux2")
    before = {name: value.clone() for name, value in frozen.model.bn.named_buffers()}
    frozen.decode(frozen.latent(frozen.encode(images), None))
    assert before.keys() == {"running_mean", "running_var", "num_batches_tracked"}
    assert all(torch.equal(value, before[name]) for name, value in frozen.model.bn.named_buffers())


def problems(world, name: str, latent_size: int, channels: int = 8, **settings) -> list[tuple[str, str]]:
    config = Autoencoder.Config(use="autoencoder", path=str(world.root / name), **settings)
    return Autoencoder.problems(config, RunShape(channels, latent_size, depth=2, grid=(4, 4)))


def test_only_flux2_needs_an_even_latent(world, images):
    assert problems(world, "flux2", 4) == []
    assert problems(world, "flux2", 5) == [("path", "needs an even latent size for its 2x2 patches, got 5")]
    assert problems(world, "kl", 5, channels=32) == []
    assert problems(world, "dc", 5, channels=32, sample=False) == []
    with pytest.raises(RuntimeError):
        tokenizer(world, "flux2").encode(torch.zeros(1, 3, 20, 20))


def test_declared_geometry_is_believed_where_no_folder_can_be_read():
    config = Autoencoder.Config(use="autoencoder", path="nowhere/model", channels=32, downsample=8)
    assert Autoencoder.problems(config, RunShape(32, 5, depth=2, grid=(5, 5))) == []


def test_dc_latents_are_scaled_and_come_back(world, images):
    frozen = tokenizer(world, "dc", sample=False)
    raw = frozen.model.encode(images).latent
    latents = frozen.encode(images)
    torch.testing.assert_close(latents, raw * 0.5)
    assert latents.shape == (5, frozen.channels, 4, 4)
    assert torch.equal(frozen.latent(latents, torch.randn_like(latents)), latents)
    torch.testing.assert_close(frozen.decode(latents), frozen.model.decode(raw).sample.clamp(-1, 1))


def test_dc_has_nothing_to_sample_from(world):
    rule = "must be false, AutoencoderDC has no posterior to draw from, got true"
    assert problems(world, "dc", 4) == [("sample", rule)]
    assert problems(world, "dc", 4, sample=False) == []
    with pytest.raises(UserError, match=rf"^tokenizer\.sample: {rule}$"):
        tokenizer(world, "dc")


def test_latent_draws_from_the_posterior(frozen):
    mean, std = torch.randn(1, frozen.channels, 4, 4), torch.rand(1, frozen.channels, 4, 4)
    moments, noise = torch.cat([mean, std], dim=1), torch.randn(1, frozen.channels, 4, 4)
    assert torch.equal(frozen.latent(moments, None), mean)
    assert torch.equal(frozen.latent(moments, noise), mean + std * noise)


def test_without_sampling_only_the_mode_is_kept(world, images):
    sampled, mode = tokenizer(world, "kl"), tokenizer(world, "kl", sample=False)
    moments = mode.encode(images)
    assert torch.equal(moments, sampled.encode(images).chunk(2, dim=1)[0])
    assert torch.equal(mode.latent(moments, torch.randn_like(moments)), moments)
    assert Autoencoder.identity(mode.config) != Autoencoder.identity(sampled.config)


def test_decoded_images_stay_in_range(frozen):
    images = frozen.decode(100 * torch.randn(2, frozen.channels, 4, 4))
    assert float(images.abs().max()) == 1.0


def test_weights_are_frozen(frozen):
    assert not any(parameter.requires_grad for parameter in frozen.model.parameters())
    assert not frozen.model.training


def test_identity_follows_the_weights(world, tmp_path):
    assert Autoencoder.identity(tokenizer(world, "kl").config) != Autoencoder.identity(tokenizer(world, "flux2").config)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(name.encode()[:5] * 10)
    one, two = (Autoencoder.Config(use="autoencoder", path=str(tmp_path / name)) for name in ("first", "second"))
    assert Autoencoder.identity(one) != Autoencoder.identity(two)


def test_another_class_of_model_is_refused(world, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny", "latent_channels": 4}))
    config = Autoencoder.Config(use="autoencoder", path=str(tmp_path))
    known = "AutoencoderKL, AutoencoderKLFlux2, AutoencoderDC"
    message = f"{str(tmp_path)!r} holds a AutoencoderTiny, must hold one of {known}"
    with pytest.raises(UserError, match="AutoencoderTiny") as caught:
        Autoencoder.geometry(config)
    assert message in str(caught.value)
    with pytest.raises(UserError, match="holds a None"):
        tokenizer(world, "dinov2")


def test_declared_geometry_must_be_the_models(world):
    with pytest.raises(UserError, match=r"tokenizer\.channels: .* has 4 channels.*got 8"):
        tokenizer(world, "kl", channels=8, downsample=4)
    with pytest.raises(UserError, match=r"tokenizer\.downsample: .*reduces 4x.*got 8"):
        tokenizer(world, "kl", channels=4, downsample=8)


def test_recipe_shares_one_frozen_tokenizer(world):
    config = world.config()
    assert recipe.tokenizer(config.tokenizer, CPU) is recipe.tokenizer(config.tokenizer, CPU)
    other = parse_run_config(world.settings(tokenizer={"use": "autoencoder", "path": str(world.root / "flux2")}))
    assert recipe.tokenizer(other.tokenizer, CPU) is not recipe.tokenizer(config.tokenizer, CPU)
    assert registry.resolve("tokenizer", "autoencoder") is Autoencoder
