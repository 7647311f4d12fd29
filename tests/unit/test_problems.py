"""What cannot work is found from the configuration alone, with its path, rule, value and choices."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import yaml

import prx.__main__ as command
from prx import recipe
from prx.config import parse_run_config


def problems(world, **changes: Any) -> list[str]:
    """List problems of the tiny run; a changed section is laid over the tiny one."""
    base = world.settings()
    for key, value in changes.items():
        section = base.get(key)
        base[key] = section | value if isinstance(section, dict) and "use" not in value else value
    return [str(problem) for problem in recipe.problems(parse_run_config(base))]


def test_the_tiny_run_has_none(world):
    assert problems(world) == []
    losses = {"repa": world.repa(), "repa_v3": world.repa(layer=1), "c": {"use": "contrastive"}}
    assert problems(world, losses=losses) == []


RULES = [
    (
        {"denoiser": {"heads": 3}},
        "denoiser.heads: must divide denoiser.width (32) into heads of a multiple of 4 for rotary positions "
        "on two axes, got 3",
    ),
    (
        {"denoiser": {"heads": 16}},
        "denoiser.heads: must divide denoiser.width (32) into heads of a multiple of 4 for rotary positions "
        "on two axes, got 16",
    ),
    (
        {"data": {"image_size": 18}},
        "data.image_size: must be a multiple of 4 (tokenizer 4x, denoiser.patch_size 1), got 18",
    ),
    (
        {"denoiser": {"patch_size": 3}},
        "data.image_size: must be a multiple of 12 (tokenizer 4x, denoiser.patch_size 3), got 16",
    ),
    (
        {"infrastructure": {"workers": 3}},
        "batch_size: must be a multiple of infrastructure.workers (3), got 8",
    ),
    (
        {"infrastructure": {"workers": 2, "micro_batch": 3}},
        "infrastructure.micro_batch: must divide the 4 samples of one worker, got 3",
    ),
    (
        {"infrastructure": {"micro_batch": 16}},
        "infrastructure.micro_batch: must divide the 8 samples of one worker, got 16",
    ),
    (
        {"precision": "bf16_pure", "infrastructure": {"zero_stage": 0}},
        "infrastructure.zero_stage: must be 1..3 with precision bf16_pure (DeepSpeed keeps a float32 master "
        "copy at stage 0), got 0",
    ),
    ({"warmup_steps": 5}, "warmup_steps: must be at most steps (4), got 5"),
    ({"evaluation": {"grid": 9}}, "evaluation.grid: must be at most evaluation.num_samples (8), got 9"),
    (
        {"losses": {"c": {"use": "contrastive"}}, "batch_size": 1},
        "batch_size: must be at least 2 for a loss that pairs samples, got 1",
    ),
]


@pytest.mark.parametrize(("changes", "message"), RULES, ids=[message.split(":")[0] for _, message in RULES])
def test_rules(world, changes, message):
    assert problems(world, **changes) == [message]


@pytest.mark.parametrize("layer", [2, 40])
def test_layer_beyond_the_depth(world, layer):
    found = problems(world, losses={"mine": world.repa(layer=layer)})
    assert found == [f"losses.mine.layer: must be in 0..1 (denoiser.depth is 2), got {layer}"]


@pytest.mark.parametrize("name", ["loss", "objective", "a.b", "keys", "training", "0", ""])
def test_names_of_terms_that_are_taken(world, name):
    found = problems(world, losses={name: {"use": "contrastive"}})
    rule = "must be named by letters, digits and _, and not loss, objective or what a module has"
    assert found == [f"losses.{name}: {rule}, got {name!r}"]


def test_all_problems_come_at_once(world):
    found = problems(
        world,
        batch_size=7,
        warmup_steps=9,
        infrastructure={"workers": 2},
        losses={"repa": world.repa(layer=5), "v3": world.repa(teacher="nowhere/at/all")},
    )
    paths = [text.split(":")[0] for text in found]
    assert paths == ["batch_size", "warmup_steps", "losses.repa.layer", "losses.v3.teacher"]


def missing(folder) -> str:
    how = "a model folder is what save_pretrained() writes, or a published one: hf download ORG/NAME --local-dir"
    return f"{folder}/config.json is missing; {how} {folder}"


def test_models_that_are_missing(world, tmp_path):
    empty = str(tmp_path)
    assert problems(world, text={"encoder": empty}) == [f"text.encoder: {missing(empty)}"]
    found = problems(world, tokenizer={"use": "autoencoder", "path": empty})
    assert found == [f"tokenizer.path: {missing(empty)}"]
    found = problems(world, losses={"repa": world.repa(teacher=empty)})
    assert found == [f"losses.repa.teacher: {missing(empty)}"]


def test_hub_models_that_cannot_be_reached(world):
    path = "nobody/no-such-model"
    tokenizer = {"use": "autoencoder", "path": path, "subfolder": "vae"}
    for changes, key, file, part in (
        ({"text": {"encoder": path}}, "text.encoder", "config.json", ""),
        ({"tokenizer": tokenizer}, "tokenizer.path", "vae/config.json", ' --include "vae/*"'),
    ):
        rule = f"{path!r}: {file} is missing on this machine (nothing is downloaded with HF_HUB_OFFLINE=1)"
        assert problems(world, **changes) == [f"{key}: {rule}; get it with: hf download {path}{part}"]


def test_models_of_another_kind(world, tmp_path):
    kl, text = str(world.root / "kl"), str(world.root / "text")
    known = "dinov2, dinov2_with_registers, dinov3_vit"
    kinds = "AutoencoderKL, AutoencoderKLFlux2, AutoencoderDC"
    found = problems(world, losses={"repa": world.repa(teacher=text)})
    assert found == [f"losses.repa.teacher: teacher {text!r} is a 't5gemma', must be one of {known}"]
    found = problems(world, text={"encoder": kl})
    assert found == [f"text.encoder: {kl!r} must hold a text encoder with model_type 't5gemma', got 'AutoencoderKL'"]
    found = problems(world, tokenizer={"use": "autoencoder", "path": text})
    assert found == [f"tokenizer.path: {text!r} holds a None, must hold one of {kinds}"]
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    found = problems(world, tokenizer={"use": "autoencoder", "path": str(tmp_path)})
    assert found == [f"tokenizer.path: config.json of {str(tmp_path)!r} has no latent_channels"]
    (tmp_path / "config.json").write_text("[1")
    found = problems(world, text={"encoder": str(tmp_path)})
    assert found[0].startswith(f"text.encoder: {tmp_path}/config.json is not valid JSON: ")


@pytest.mark.parametrize("role", ["clip", "dino", "inception", "reader"])
def test_embedded_roles_of_the_evaluation(world, role):
    found = problems(world, evaluation={role: "embedded:clop"})
    assert len(found) == 1
    assert found[0].startswith(f"evaluation.{role}: ")
    assert found[0].endswith("got 'clop'")
    assert "must be one of flux, " in found[0]


def test_cuda_that_is_not_there_is_refused(world, monkeypatch):
    monkeypatch.setattr(recipe.torch.cuda, "is_available", lambda: False)
    config = parse_run_config(world.settings(infrastructure={"device": "cuda"}))
    with pytest.raises(ValueError, match=r"^infrastructure\.device: cuda is not available here, use cpu or auto$"):
        recipe.device_of(config)
    auto = parse_run_config(world.settings(infrastructure={"device": "auto"}))
    assert recipe.device_of(auto).type == "cpu"


def test_problems_agree_with_what_happens(world):
    """A head of 4 is the smallest that the rule allows; the model is built and runs."""
    config = world.config(denoiser={"width": 32, "depth": 1, "heads": 8, "patch_size": 2})
    assert recipe.problems(config) == []
    module = recipe.build(config)
    assert module.grid == (2, 2)
    assert len(module.denoiser.blocks) == 1


def test_command_line_shows_problems_as_they_are(world, tmp_path, monkeypatch, capsys):
    """One message and exit code 2; brackets in a value are text, not markup."""
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(world.settings(text={"encoder": "[bold]x[/y]", "max_tokens": 8})))
    monkeypatch.setattr(sys, "argv", ["prx", "train", str(file), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    line = next(n for n, text in enumerate(file.read_text().splitlines(), 1) if "[bold]" in text)
    rule = "text.encoder: '[bold]x[/y]' is neither an existing folder nor a hub id"
    assert shown.startswith(f"error {file}:{line}: {rule}")
    assert "Traceback" not in shown
    assert not (tmp_path / "out").exists()
