"""Models of the real classes, loaded through our one door, train and evaluate."""

from __future__ import annotations

import json
import math

import pytest
import torch

from evaluation.evaluate import EvaluationSpec
from evaluation.features import load_extractor
from prx import loaders, recipe
from prx.teachers import Teacher
from prx.text import TextEncoder, text_width
from tests.helpers import running

CPU = torch.device("cpu")
FLUX = {"use": "autoencoder", "path": "flux", "subfolder": "vae"}
FLUX2 = {"use": "autoencoder", "path": "flux2", "subfolder": "vae"}
DC = {"use": "autoencoder", "path": "dc_ae", "sample": False}


def placed(models, part):
    return part | {"path": str(models / part["path"])}


@pytest.mark.parametrize(
    ("tokenizer", "teacher", "size", "patch"),
    [(FLUX, "dinov2", 32, 1), (FLUX2, "dinov3", 32, 2), (DC, "dinov2", 64, 1)],
)
def test_two_steps_and_pictures(models, world, tmp_path, tokenizer, teacher, size, patch):
    repa = {"use": "repa", "teacher": str(models / teacher), "layer": 0}
    changes = {
        "tokenizer": placed(models, tokenizer), "losses": {"repa": repa},
        "data": world.settings()["data"] | {"image_size": size},
        "text": {"encoder": str(models / "t5gemma"), "max_tokens": 16},
        "denoiser": {"width": 32, "depth": 2, "heads": 2, "patch_size": patch},
    }  # fmt: skip
    with running(world, tmp_path, **changes) as trainer:
        assert recipe.problems(trainer.config) == []
        progress = trainer.advance(2)
        assert math.isfinite(progress.loss)
        assert progress.terms.keys() == {"objective", "repa"}
        pictures = trainer.sample()
    assert pictures.shape == (8, 3, size, size)
    assert pictures.dtype == torch.uint8


def test_text_encoder_out_of_several_shards(models):
    folder = models / "t5gemma"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert text_width(str(folder)) == 32
    encoder = TextEncoder(str(folder), 16, CPU)
    assert encoder.tokenizer.padding_side == "right"  # Gemma's own is left
    assert encoder.lengths([""]) == [1]
    embeddings, mask = encoder.encode(["red circle", ""], 6)
    assert embeddings.dtype == torch.float32
    assert embeddings[mask].isfinite().all()
    assert mask[1].tolist() == [True] + [False] * 5
    assert mask[0].sum() > 2
    names = {name for name, _ in encoder.model.named_parameters()}
    assert names
    assert not any("decoder" in name for name in names)


@pytest.mark.parametrize(("name", "patch", "registers"), [("dinov2", 14, 4), ("dinov3", 16, 4)])
def test_teachers(models, name, patch, registers):
    teacher = Teacher(str(models / name), CPU)
    assert (teacher.patch, teacher.prefix, teacher.width) == (patch, 1 + registers, 32)
    assert teacher.mean == [0.485, 0.456, 0.406]
    images = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    assert teacher.tokens(images, (4, 4)).shape == (2, 16, 32)


@pytest.mark.parametrize(
    ("role", "name", "size", "width"),
    [
        ("clip", "clip", 336, 24),
        ("clip", "clip_vision", 336, 24),
        ("dino", "dinov2", 518, 32),
        ("dino", "dinov3", 224, 32),
    ],
)
def test_extractors(models, role, name, size, width):
    extractor = load_extractor(role, str(models / name))
    assert (extractor.preprocess.height, extractor.preprocess.width) == (size, size)
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    embeddings = extractor.embed(images)
    assert embeddings.shape == (2, width)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))
    assert not torch.allclose(embeddings[0], embeddings[1], atol=1e-4)


def test_whole_clip_and_its_image_tower_agree(models):
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    whole, tower = (load_extractor("clip", models / name).embed(images) for name in ("clip", "clip_vision"))
    torch.testing.assert_close(whole, tower)
    assert EvaluationSpec(clip=str(models / "clip"), metrics=("cmmd",)).load_extractors().keys() == {"clip"}


def test_every_folder_has_a_name_of_its_own(models):
    names = [loaders.identity(str(models / name)) for name in ("clip", "clip_vision", "dinov2", "dinov3", "t5gemma")]
    names += [loaders.identity(str(models / name), "vae") for name in ("flux", "flux2")]
    assert len(set(names)) == len(names)
