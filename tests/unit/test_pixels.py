"""Pixels: nothing is lost on the way through the cache, the denoiser and the sampler."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.transformers.transformer_prx import img2seq, seq2img

from prx import data as datasets
from prx import recipe
from prx.batches import Batches
from prx.images import to_uint8, to_unit
from prx.techniques.pixels import Pixels
from tests.helpers import running

CPU = torch.device("cpu")
DENOISER = {"width": 32, "depth": 2, "heads": 2, "patch_size": 4}
PIXELS = {"tokenizer": {"use": "pixels"}, "denoiser": DENOISER}


@pytest.fixture
def pixels() -> Pixels:
    return Pixels(Pixels.Config(use="pixels"), CPU)


def test_encoding_and_decoding_change_nothing(pixels):
    images = to_unit(torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16))
    moments = pixels.encode(images)
    assert torch.equal(pixels.latent(moments, torch.randn_like(images)), images)
    assert torch.equal(pixels.decode(moments), images)
    assert Pixels.geometry(pixels.config) == (pixels.channels, pixels.downsample) == (3, 1)


def test_decoded_images_stay_in_range(pixels):
    assert float(pixels.decode(9 * torch.randn(2, 3, 16, 16)).abs().max()) == 1.0


def test_every_byte_survives_the_cache(world):
    """Caches are float16; a picture's 256 values must come back exactly."""
    levels = to_unit(torch.arange(256, dtype=torch.uint8))
    assert torch.equal(to_uint8(levels.half().float()), to_uint8(levels))
    assert float((levels.half().float() - levels).abs().max()) < 1 / 2048
    config = world.config(**PIXELS)
    train = datasets.train_set(config.data, world.cache / "data")
    known = {
        image.numpy().tobytes()
        for where, rows in datasets.batches(train, ["image"], 48)
        for image in datasets.decode_images(where, rows["image"], 16)
    }
    batch = Batches(config, world.cache, recipe.build(config)).batch(0)
    assert {image.numpy().tobytes() for image in to_uint8(batch.clean)} <= known
    assert float(batch.clean.std()) == pytest.approx(0.58, abs=0.02)  # uniform bytes; photographs have about 0.5


def test_tokens_are_square_patches_of_three_channels(world):
    shape = recipe.shape_of(world.config(**PIXELS))
    assert (shape.channels, shape.latent_size, shape.grid) == (3, 16, (4, 4))
    assert "pixels" in shape.provides
    images = torch.randn(2, 3, 16, 16)
    tokens = img2seq(images, 4)
    assert tokens.shape == (2, 16, 48)
    assert torch.equal(tokens[0, 5].view(3, 4, 4), images[0, :, 4:8, 4:8])
    assert torch.equal(seq2img(tokens, 4, images.shape), images)


def test_batches_hold_the_pictures_themselves(world):
    config = world.config(**PIXELS)
    batch = Batches(config, world.cache, recipe.build(config)).batch(0)
    assert batch.clean.shape == batch.noise.shape == (8, 3, 16, 16)
    assert float(batch.clean.abs().max()) <= 1


def test_bottleneck_limits_the_rank_of_the_patch_embedding(world):
    """JiT embeds patches through few features; everything that reaches the blocks has that rank."""
    config = world.config(tokenizer={"use": "pixels"}, denoiser=DENOISER | {"bottleneck": 6})
    embed = recipe.build(config).denoiser.img_in
    torch.manual_seed(0)
    tokens = embed(torch.randn(200, 48))
    assert tokens.shape == (200, 32)
    centred = (tokens - tokens.mean(0)).detach()
    assert int(torch.linalg.matrix_rank(centred, rtol=1e-4)) == 6


@pytest.mark.parametrize("teacher", ["dinov2", "dinov3"])
def test_teachers_give_one_token_per_patch(world, tmp_path, teacher):
    losses = {"repa": world.repa(teacher=str(world.root / teacher))}
    with running(world, tmp_path, losses=losses, **PIXELS) as trainer:
        assert trainer.batches.batch(0).targets["repa"].shape == (8, 16, 16)
        assert torch.isfinite(torch.tensor(list(trainer.advance(2).terms.values()))).all()


def test_samples_are_pictures(world, tmp_path):
    with running(world, tmp_path, zero_stage=0, **PIXELS) as trainer:
        trainer.advance(2)
        images = trainer.sample()
    assert images.shape == (8, 3, 16, 16)
    assert images.dtype == torch.uint8
    assert images.float().std() > 10
