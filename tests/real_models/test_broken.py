"""Folders that lack something, or hold something else: one message that says what and how to get it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evaluation.features import load_extractor
from prx import loaders
from prx.errors import UserError
from prx.recipe import tokenizer
from prx.teachers import Teacher
from prx.techniques.autoencoder import Autoencoder
from prx.text import TextEncoder

CPU = torch.device("cpu")


def load_vae(folder: Path):
    return tokenizer(Autoencoder.Config(use="autoencoder", path=str(folder), subfolder="vae"), CPU)


def load_denoiser(folder: Path):
    from diffusers import PRXTransformer2DModel

    return loaders.load(PRXTransformer2DModel, str(folder), "transformer")


LOADERS = {
    "dinov2": (lambda folder: Teacher(str(folder), CPU), "", "model.safetensors"),
    "dinov3": (lambda folder: Teacher(str(folder), CPU), "", "model.safetensors"),
    "t5gemma": (lambda folder: TextEncoder(str(folder), 8, CPU), "", "model-00001-of-"),
    "flux": (load_vae, "vae", "diffusion_pytorch_model.safetensors"),
    "flux2": (load_vae, "vae", "diffusion_pytorch_model.safetensors"),
    "prx": (load_denoiser, "transformer", "diffusion_pytorch_model.safetensors"),
}


@pytest.fixture(params=LOADERS)
def broken(request, models, tmp_path):
    """Copy one model: how it is loaded, its folder, and one file of its weights."""
    load, subfolder, start = LOADERS[request.param]
    root = Path(shutil.copytree(models / request.param, tmp_path / request.param))
    folder = root / subfolder
    weights = next(path for path in sorted(folder.glob("*.safetensors")) if path.name.startswith(start))
    return lambda: load(root), folder, weights


def refused(load) -> str:
    with pytest.raises(UserError) as stopped:
        load()
    assert "\n" not in str(stopped.value)
    return str(stopped.value)


def test_missing_settings(broken):
    load, folder, _ = broken
    (folder / "config.json").unlink()
    message = refused(load)
    assert f"{folder}/config.json is missing" in message
    assert "hf download ORG/NAME" in message
    assert f"--local-dir {folder.parent if folder.name in {'vae', 'transformer'} else folder}" in message


def test_missing_weights(broken):
    load, _, weights = broken
    weights.unlink()
    message = refused(load)
    shard = ", a shard that model.safetensors.index.json names" if "-of-" in weights.name else ""
    assert f"{weights} is missing{shard}; a model folder is what save_pretrained() writes" in message
    assert "hf download ORG/NAME" in message


def test_pickles_only(broken):
    load, folder, _ = broken
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    pickle = folder / "pytorch_model.bin"
    torch.save({}, pickle)
    message = refused(load)
    assert "there is only pytorch_model.bin, a pickle, and pickles are never read" in message
    assert "ORG/NAME@REVISION" in message


@pytest.mark.parametrize("left", [4, 300, -1])
def test_files_cut_short(broken, left):
    load, _, weights = broken
    whole = weights.read_bytes()
    weights.write_bytes(whole[:left])
    message = refused(load)
    size = left if left > 0 else len(whole) - 1
    what = f"it should have {len(whole)} bytes and has {size}" if left < 0 else f"it has {size} bytes and no"
    assert f"{weights} is damaged: {what}" in message


def test_missing_tensor(broken):
    load, _, weights = broken
    tensors = load_file(weights)
    wanted = [name for name in tensors if "decoder" not in name or "vae" in str(weights)]
    lost = sorted(wanted)[0]
    tensors.pop(lost)
    save_file(tensors, weights, {"format": "pt"})
    message = refused(load)
    assert "the weights lack 1 tensors of " in message
    assert lost.split(".")[-1] in message


def test_tensor_of_another_shape(broken):
    load, _, weights = broken
    tensors = load_file(weights)
    name = sorted(name for name in tensors if "decoder" not in name or "vae" in str(weights))[0]
    tensors[name] = torch.zeros(*tensors[name].shape, 2)
    save_file(tensors, weights, {"format": "pt"})
    message = refused(load)
    assert "do not fit their own config.json" in message
    assert str(list(tensors[name].shape)) in message


def test_another_model(broken, models):
    load, folder, _ = broken
    other = models / "clip" / "config.json"
    shutil.copy(other, folder / "config.json")
    assert "must" in refused(load)


def test_a_model_of_another_class(models):
    from transformers import Dinov2WithRegistersModel

    with pytest.raises(UserError, match=r"holds a 'clip', must hold a 'dinov2_with_registers'"):
        loaders.load(Dinov2WithRegistersModel, str(models / "clip"))


def test_settings_that_are_no_json(broken):
    load, folder, _ = broken
    (folder / "config.json").write_text("{")
    assert f"{folder}/config.json is not valid JSON" in refused(load)


def test_text_encoder_without_a_tokenizer(models, tmp_path):
    folder = Path(shutil.copytree(models / "t5gemma", tmp_path / "t5gemma"))
    (folder / "tokenizer.json").unlink()
    message = refused(lambda: TextEncoder(str(folder), 8, CPU))
    assert message.startswith(f"{folder}/tokenizer.json is missing; ")


def test_tokenizer_that_has_nothing_for_a_dropped_caption(models, tmp_path):
    folder = Path(shutil.copytree(models / "t5gemma", tmp_path / "t5gemma"))
    found = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(found | {"post_processor": None}))
    message = refused(lambda: TextEncoder(str(folder), 8, CPU))
    assert "must give the empty caption a token, such as <bos>, got none" in message


def test_index_that_names_nothing(models, tmp_path):
    folder = Path(shutil.copytree(models / "t5gemma", tmp_path / "t5gemma"))
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "must have a weight_map that names the shards, got None" in refused(lambda: TextEncoder(str(folder), 8, CPU))


@pytest.mark.parametrize(("role", "name"), [("clip", "clip"), ("dino", "dinov2"), ("dino", "dinov3")])
def test_extractors_say_it_too(models, tmp_path, role, name):
    folder = Path(shutil.copytree(models / name, tmp_path / name))
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=f"weights folder {folder} must load as"):
        load_extractor(role, folder)
    weights.unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError) as stopped:
        load_extractor(role, folder)
    assert "must contain model.safetensors, got only pytorch_model.bin, a pickle" in str(stopped.value)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"must contain preprocessor_config\.json, got none; a published"):
        load_extractor(role, folder)


def test_extractor_without_one_shard(models, tmp_path):
    from transformers import CLIPVisionModelWithProjection

    folder = tmp_path / "clip"
    CLIPVisionModelWithProjection.from_pretrained(models / "clip").save_pretrained(folder, max_shard_size="60KB")
    shutil.copy(models / "clip" / "preprocessor_config.json", folder)
    assert load_extractor("clip", folder).width == 24
    lost = sorted(folder.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(FileNotFoundError, match=f"must contain {lost.name}, got none"):
        load_extractor("clip", folder)
