"""Extractors give their library model's output and refuse folders that are not complete."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionModelWithProjection,
    Dinov2WithRegistersModel,
    DINOv3ViTModel,
    ResNetForImageClassification,
)

from evaluation.features import load_extractor

ROLE_FOLDERS = [("clip", "clip"), ("dino", "dino"), ("dino", "dinov3"), ("inception", "inception")]
VIT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def standardised(images: Tensor) -> Tensor:
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    return (images.float() / 255 - mean[:, None, None]) / std[:, None, None]


EXPECTED: dict[str, Callable[[Path, Tensor], Tensor]] = {
    "clip": lambda path, x: CLIPVisionModelWithProjection.from_pretrained(path)(x).image_embeds,
    "dino": lambda path, x: Dinov2WithRegistersModel.from_pretrained(path)(x).pooler_output,
    "dinov3": lambda path, x: DINOv3ViTModel.from_pretrained(path)(x).pooler_output,
    "inception": lambda path, x: ResNetForImageClassification.from_pretrained(path).resnet(x)[1].flatten(1),
}


@pytest.mark.parametrize(("role", "folder"), ROLE_FOLDERS)
def test_embeds_as_the_library_model(
    weights: dict[str, Path], images: Tensor, role: str, folder: str
) -> None:
    extractor = load_extractor(role, weights[folder])
    with torch.no_grad():
        expected = EXPECTED[folder](weights[folder], standardised(images))
    if role != "inception":
        expected = expected / expected.norm(dim=1, keepdim=True)
    found = extractor.embed(images, batch_size=7)
    assert found.dtype == torch.float32
    assert found.shape == (len(images), extractor.width)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not found.requires_grad


def test_no_images_give_no_rows(weights: dict[str, Path], images: Tensor) -> None:
    extractor = load_extractor("clip", weights["clip"])
    assert extractor.embed(images[:0]).shape == (0, extractor.width)


@pytest.mark.parametrize(("role", "folder"), ROLE_FOLDERS)
def test_takes_other_sizes(weights: dict[str, Path], images: Tensor, role: str, folder: str) -> None:
    extractor = load_extractor(role, weights[folder])
    wide = torch.cat([images, images, images], dim=3)[:3]
    assert extractor.embed(wide).shape == (3, extractor.width)
    assert bool(extractor.embed(wide).isfinite().all())


def test_refuses_other_pixels(weights: dict[str, Path], images: Tensor) -> None:
    extractor = load_extractor("clip", weights["clip"])
    with pytest.raises(ValueError, match=r"images must be uint8 of shape \[B, 3, H, W\], got float32"):
        extractor.embed(images.float())
    with pytest.raises(ValueError, match=r"got uint8 of shape \[3, 16, 16\]"):
        extractor.embed(images[0])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        extractor.embed(images, batch_size=0)


def test_version_freezes_weights_and_preprocessing(weights: dict[str, Path], tmp_path: Path) -> None:
    first = load_extractor("clip", weights["clip"]).version
    copy = shutil.copytree(weights["clip"], tmp_path / "copy")
    assert load_extractor("clip", copy).version == first
    tensors = load_file(copy / "model.safetensors")
    save_file(
        {name: value * 1.01 for name, value in tensors.items()}, copy / "model.safetensors", {"format": "pt"}
    )
    changed = load_extractor("clip", copy).version
    settings = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.1, 0.1, 0.1]}))
    assert len({first, changed, load_extractor("clip", copy).version}) == 3
    assert first.startswith("clip:shorter-side-bicubic-aa-centre-crop-uint8-v1-16x16:")


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_names_a_missing_file(weights: dict[str, Path], tmp_path: Path, missing: str) -> None:
    folder = shutil.copytree(weights["dino"], tmp_path / "dino")
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError) as raised:
        load_extractor("dino", folder)
    how = f"a published model is copied there by: hf download ORG/NAME --local-dir {folder}"
    assert str(raised.value) == f"weights folder {folder} must contain {missing}, got none; {how}"


def test_names_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"weights folder .*/nowhere must exist"):
        load_extractor("clip", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="weights folder nowhere must exist"):
        load_extractor("clip", "nowhere")


def test_hub_id_out_of_reach_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(hub_id: str, **_: object) -> str:
        raise FileNotFoundError("not cached and no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(
        FileNotFoundError, match="'someone/clip' must be a local folder or a reachable hub id"
    ):
        load_extractor("clip", "someone/clip")


def test_hub_id_loads_its_snapshot(weights: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(weights["clip"]))
    assert load_extractor("clip", "someone/clip").version == load_extractor("clip", weights["clip"]).version


def test_refuses_roles_and_models_that_do_not_fit(weights: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="role must be one of clip, dino, inception, got 'resnet'"):
        load_extractor("resnet", weights["clip"])
    with pytest.raises(ValueError, match=r"model_type for role dino must be one of .*, got 'resnet'"):
        load_extractor("dino", weights["inception"])


def test_refuses_weights_that_leave_tensors_random(weights: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(weights["inception"], tmp_path / "inception")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("classifier.1.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"must fill ResNetForImageClassification, got no classifier\.1\.weight"
    ):
        load_extractor("inception", folder)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("model.safetensors", "must load as Dinov2WithRegistersModel, got"),
        ("config.json", r"config\.json must be JSON, got"),
        ("preprocessor_config.json", r"preprocessor_config\.json must be JSON, got"),
    ],
)
def test_names_a_damaged_file(weights: dict[str, Path], tmp_path: Path, file: str, message: str) -> None:
    folder = shutil.copytree(weights["dino"], tmp_path / "dino")
    (folder / file).write_bytes((folder / file).read_bytes()[:40])
    with pytest.raises(ValueError, match=message):
        load_extractor("dino", folder)


def test_full_clip_model_gives_its_image_tower(
    weights: dict[str, Path], images: Tensor, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = VIT | {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    vision = VIT | {"image_size": 16, "patch_size": 8}
    full = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=10)).eval()
    full.save_pretrained(tmp_path)
    shutil.copy(weights["clip"] / "preprocessor_config.json", tmp_path)
    capfd.readouterr()
    extractor = load_extractor("clip", tmp_path)
    assert capfd.readouterr() == ("", "")
    with torch.no_grad():
        features = full.visual_projection(full.vision_model(standardised(images)).pooler_output)
    expected = features / features.norm(dim=1, keepdim=True)
    torch.testing.assert_close(extractor.embed(images), expected, rtol=1e-4, atol=1e-5)
