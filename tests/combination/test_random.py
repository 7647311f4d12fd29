"""Fifty random admissible combinations of many techniques at once, drawn from a fixed seed, trained five steps."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch

from prx import recipe
from prx.config import parse_run_config
from tests.helpers import CPU, running, weights
from tests.tiny import World

NUM, SEED = 50, 20261123
STEPS = 5
"""A zero output hides the gates, these hide what is behind them, and so on: the last layer hears at the fifth."""

Options = dict[str, dict[str, Any]]
SLOTS: dict[str, Options] = {
    "objective": {
        "velocity": {"use": "velocity"},
        "shifted": {"use": "velocity", "timesteps": "logit_normal", "shift": 3.0},
        "x": {"use": "x_prediction"},
    },
    "tokenizer": {
        "kl": {"use": "autoencoder", "path": "kl"},
        "flux2": {"use": "autoencoder", "path": "flux2"},
        "dc": {"use": "autoencoder", "path": "dc", "sample": False},
        "pixels": {"use": "pixels"},
        "end to end": {"use": "repa_e", "path": "kl", "gan_width": 8, "gan_depth": 2},
    },
    "routing": {"none": {}, "tread": {"use": "tread"}, "sprint": {"use": "sprint", "path_drop": 0.2}},
    "optimizer": {"adamw": {"use": "adamw", "lr": 1e-2, "eps": 1e-8}, "muon": {"use": "muon", "lr": 1e-2}},
    "captions": {"long": {"caption_long": 1.0}, "mixed": {"caption_long": 1.0, "caption_short": 1.0}},
    "resolution": {name: {"resolution": name} for name in ("off", "vec", "token")},
}
LOSSES: Options = {
    "repa": {"use": "repa", "teacher": "dinov2", "layer": 1, "schedule": "cosine"},
    "irepa": {"use": "irepa", "teacher": "dinov3", "layer": 0},
    "maps": {"use": "attention_alignment", "teacher": "dinov3", "student_layers": [3], "teacher_layers": [0]},
    "away": {"use": "contrastive", "negatives": "different_prompt", "correct_sampling": True},
    "lpips": {"use": "lpips", "network": "embedded:inception"},
    "p_dino": {"use": "p_dino", "teacher": "embedded:dinov2", "grid": 4},
}
PRECISIONS = ("fp32", "fp32_autocast_bf16", "bf16_master", "bf16_pure")


def draw(rng: np.random.Generator) -> tuple[str, dict[str, Any]]:
    """Draw one combination: its name, and its settings with the tiny world's folders by name."""
    chosen = {slot: str(rng.choice(list(options))) for slot, options in SLOTS.items()}
    losses = [name for name in LOSSES if rng.random() < 0.35]
    precision, stage, ema = str(rng.choice(PRECISIONS)), int(rng.integers(4)), bool(rng.random() < 0.3)
    micro = int(rng.choice([8, 4]))
    part = {slot: SLOTS[slot][option] for slot, option in chosen.items()}
    size = {"width": 32, "depth": 4, "heads": 2, "patch_size": 4 if chosen["tokenizer"] == "pixels" else 1}
    settings = {
        "objective": part["objective"], "tokenizer": part["tokenizer"], "routing": part["routing"] or None,
        "optimizer": part["optimizer"], "losses": {name: LOSSES[name] for name in losses},
        "captions": part["captions"], "denoiser": size | part["resolution"], "precision": precision,
        "ema": {"decay": 0.5, "every": 1} if ema else None, "zero_stage": stage, "micro_batch": micro,
        "steps": 2 * STEPS, "grad_clip": None if chosen["optimizer"] == "muon" else 1.0,
    }  # fmt: skip
    name = " + ".join([*chosen.values(), *losses, precision, f"ZeRO {stage}", f"{micro} at a time", *["ema"] * ema])
    return name, settings


def placed(world: World, settings: dict[str, Any]) -> dict[str, Any]:
    """Put the tiny world's folders where the settings name a model."""

    def located(part: dict[str, Any]) -> dict[str, Any]:
        here = {k: str(world.root / v) for k, v in part.items() if k in ("path", "teacher") and ":" not in v}
        return part | here

    data = world.settings()["data"] | {"captions": settings["captions"]}
    return {k: v for k, v in settings.items() if k != "captions"} | {
        "tokenizer": located(settings["tokenizer"]), "data": data,
        "losses": {name: located(part) for name, part in settings["losses"].items()},
    }  # fmt: skip


def admissible(world: World, settings: dict[str, Any]) -> bool:
    """Ask the configuration alone."""
    infrastructure = CPU | {key: settings.pop(key) for key in ("zero_stage", "micro_batch")}
    return recipe.problems(parse_run_config(world.settings(**settings, infrastructure=infrastructure))) == []


@lru_cache(maxsize=1)
def combinations(world: World) -> list[tuple[str, dict[str, Any]]]:
    """Draw until there are enough that nothing speaks against."""
    rng, found = np.random.default_rng(SEED), []
    while len(found) < NUM:
        name, settings = draw(rng)
        if admissible(world, placed(world, settings)):
            found.append((name, settings))
    return found


@pytest.mark.parametrize("number", range(NUM))
def test_random_combination_trains(world, tmp_path, number):
    name, settings = combinations(world)[number]
    with running(world, tmp_path, **placed(world, settings)) as trainer:
        before = weights(trainer)
        for step in range(1, STEPS + 1):
            report = trainer.advance(step)
            values = torch.tensor([report.loss, *report.terms.values()])
            assert torch.isfinite(values).all(), (name, report)
        assert set(settings["losses"]) <= report.terms.keys(), name
        named = dict(trainer.engine.module.named_parameters())
        after = weights(trainer)
        still = [key for key, value in after.items() if named[key].requires_grad and torch.equal(value, before[key])]
    assert still == [], name


def test_combinations_are_many_sided(world):
    """What is drawn covers every option of every slot, so that the fifty mean something."""
    names = " + ".join(name for name, _ in combinations(world))
    options = [option for choices in SLOTS.values() for option in choices] + [*LOSSES, *PRECISIONS, "ema"]
    assert [option for option in options if option not in names] == []
    assert all(f"ZeRO {stage}" in names for stage in range(4))
