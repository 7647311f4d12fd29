"""Frozen autoencoders: scaling both ways, the FLUX.2 batch norm, moments, and folders that do not fit."""

from __future__ import annotations

import json

import pytest
import torch

from prx import recipe, registry
from prx.config import parse_run_config
from prx.errors import UserError
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
    for name, channels in (("kl", 4), ("flux2", 8)):
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
    assert not torch.allclose(bn.running_var, torch.ones_like(bn.running_var), atol=0.1), (
        "weights were not loaded"
    )
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
    assert Autoencoder.identity(tokenizer(world, "kl").config) != Autoencoder.identity(
        tokenizer(world, "flux2").config
    )
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(name.encode()[:5] * 10)
    one, two = (
        Autoencoder.Config(use="autoencoder", path=str(tmp_path / name)) for name in ("first", "second")
    )
    assert Autoencoder.identity(one) != Autoencoder.identity(two)


def test_another_class_of_model_is_refused(world, tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"_class_name": "AutoencoderTiny", "latent_channels": 4})
    )
    config = Autoencoder.Config(use="autoencoder", path=str(tmp_path))
    message = f"{str(tmp_path)!r} holds a AutoencoderTiny, must hold one of AutoencoderKL, AutoencoderKLFlux2"
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
    other = parse_run_config(
        world.settings(tokenizer={"use": "autoencoder", "path": str(world.root / "flux2")})
    )
    assert recipe.tokenizer(other.tokenizer, CPU) is not recipe.tokenizer(config.tokenizer, CPU)
    assert registry.resolve("tokenizer", "autoencoder") is Autoencoder
