"""All pairs of technique settings: two steps, finite, a gradient everywhere, a checkpoint that comes back."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch

from prx import recipe
from prx.config import parse_run_config
from prx.end_to_end import PREFIX
from tests.helpers import CPU, moments, running, same, weights
from tests.tiny import World

ATTENDED = {"student_layers": [0], "teacher_layers": [0]}
# Each entry is one setting; a pair may not set one slot twice. `losses` entries are merged.
SETTINGS: dict[str, dict[str, Any]] = {
    "repa dinov2": {"losses": {"repa": {"teacher": "dinov2", "layer": 0}}},
    "repa dinov3": {"losses": {"repa_v3": {"teacher": "dinov3", "layer": 1}}},
    "irepa": {"losses": {"irepa": {"use": "irepa", "teacher": "dinov2", "layer": 0}}},
    "attention": {"losses": {"maps": {"use": "attention_alignment", "teacher": "dinov3", **ATTENDED}}},
    "contrastive": {"losses": {"contrastive": {"use": "contrastive"}}},
    "tread": {"routing": {"use": "tread"}},
    "sprint": {"routing": {"use": "sprint", "path_drop": 0.3}},
    "flux2": {"tokenizer": {"use": "autoencoder", "path": "flux2"}},
    "dc": {"tokenizer": {"use": "autoencoder", "path": "dc", "sample": False}},
    "pixels": {"tokenizer": {"use": "pixels"}, "denoiser": {"width": 32, "depth": 2, "heads": 2, "patch_size": 4}},
    "kl mode": {"tokenizer": {"use": "autoencoder", "path": "kl", "sample": False}},
    "repa-e end to end": {
        "tokenizer": {"use": "repa_e", "path": "kl", "gan_width": 8, "gan_depth": 2},
        "losses": {"repa": {"teacher": "dinov2", "layer": 0}},
    },
    "x-prediction": {"objective": {"use": "x_prediction"}},
    "contrastive corrected": {"losses": {"away": {"use": "contrastive", "correct_sampling": True}}},
    "resolution token": {"denoiser": {"width": 32, "depth": 2, "heads": 2, "patch_size": 1, "resolution": "token"}},
    "resolution vec": {"denoiser": {"width": 32, "depth": 2, "heads": 2, "patch_size": 1, "resolution": "vec"}},
    "shifted t": {"objective": {"use": "velocity", "shift": 3.0}},
    "mixed captions": {"data": {"captions": {"caption_long": 1.0, "caption_short": 2.0}, "subset": {"share": 0.5}}},
    "autocast": {"precision": "fp32_autocast_bf16"},
    "bf16_master": {"precision": "bf16_master"},
    "bf16_pure": {"precision": "bf16_pure"},
    "muon": {"optimizer": {"use": "muon", "lr": 1e-3}, "grad_clip": None},
    "ema": {"ema": {"decay": 0.5, "every": 1}},
    "ZeRO 0": {"zero_stage": 0},
    "ZeRO 3": {"zero_stage": 3},
    "micro-batches": {"micro_batch": 4},
}


def slots(name: str) -> set[str]:
    return set(SETTINGS[name]) - {"losses"}


def placed(world: World, part: dict[str, Any]) -> dict[str, Any]:
    """Complete a loss, with the tiny world's folder where it names a teacher."""
    found = part if "use" in part else world.repa(**part)
    return found | ({"teacher": str(world.root / part["teacher"])} if "teacher" in part else {})


def resolved(world: World, key: str, value: Any) -> Any:
    """Put the tiny world's folders where the settings name a model."""
    if key == "losses":
        return {name: placed(world, part) for name, part in value.items()}
    if key == "tokenizer":
        return value | ({"path": str(world.root / value["path"])} if "path" in value else {})
    return world.settings()["data"] | value if key == "data" else value


def joined(world: World, names: tuple[str, ...]) -> dict[str, Any]:
    """Lay settings over each other."""
    found: dict[str, Any] = {}
    for name in names:
        for key, value in SETTINGS[name].items():
            new = resolved(world, key, value)
            found[key] = found[key] | new if key in found else new
    return found


PAIRS = [pair for pair in combinations(SETTINGS, 2) if not slots(pair[0]) & slots(pair[1])]
IMPOSSIBLE = {
    ("bf16_pure", "ZeRO 0"): "infrastructure.zero_stage",
    ("ema", "ZeRO 3"): "ema",
    ("contrastive", "repa-e end to end"): "losses.contrastive",
    ("repa-e end to end", "contrastive corrected"): "losses.away",
    ("repa-e end to end", "micro-batches"): "infrastructure.micro_batch",
}


@pytest.mark.parametrize("pair", sorted(IMPOSSIBLE), ids=" + ".join)
def test_impossible_pairs_are_found_before_training(world, pair):
    changes = joined(world, pair)
    infrastructure = {key: changes.pop(key) for key in ("zero_stage", "micro_batch") if key in changes} | CPU
    config = parse_run_config(world.settings(**changes, infrastructure=infrastructure))
    assert [problem.path for problem in recipe.problems(config)] == [IMPOSSIBLE[pair]]


def trains(world: World, folder, changes: dict[str, Any]) -> None:
    """Take two steps and come back from a checkpoint.

    At the first step only the final layer and the projectors have a gradient, because the output and
    every block's gates start at zero; two steps reach the gates, a third everything behind them.
    """
    with running(world, folder, **changes) as trainer:
        assert recipe.problems(trainer.config) == []
        initial = weights(trainer)
        progress = [trainer.advance(step) for step in (1, 2)]
        for report in progress:
            assert torch.isfinite(torch.tensor([report.loss, *report.terms.values()])).all()
        terms = {name for name in progress[0].terms if not name.startswith(PREFIX)}
        assert terms == {"objective", *changes.get("losses", {})}
        trainer.save()
        trained, states = weights(trainer), moments(trainer)
        assert not same(trained, initial)
        following = trainer.advance(3).loss
    with running(world, folder, **changes) as trainer:
        assert trainer.resume() == 2
        assert same(weights(trainer), trained)
        assert all(torch.equal(a, b) for a, b in zip(moments(trainer), states, strict=True))
        assert trainer.advance(3).loss == following


@pytest.mark.parametrize("pair", [p for p in PAIRS if p not in IMPOSSIBLE], ids=" + ".join)
def test_pair(world, tmp_path, pair):
    trains(world, tmp_path, joined(world, pair))


def test_everything_at_once(world, tmp_path):
    names = ("repa dinov2", "repa dinov3", "contrastive", "flux2", "shifted t", "mixed captions", "micro-batches")
    trains(world, tmp_path, joined(world, (*names, "autocast", "ZeRO 3")))


PERCEPTUAL = {
    "lpips": {"use": "lpips", "network": "embedded:inception", "max_t": 0.7},
    "p_dino": {"use": "p_dino", "teacher": "embedded:dinov2", "grid": 4},
}


@pytest.mark.parametrize(
    "names",
    [
        ("ZeRO 0",),
        ("ZeRO 3",),
        ("autocast", "micro-batches"),
        ("bf16_pure",),
        ("repa dinov2", "tread"),
        ("bf16_master", "ema"),
    ],
    ids=" + ".join,
)
def test_perceptual_losses_on_predicted_pictures(world, tmp_path, names):
    """They work with pixels and x-prediction only, so pairs cannot show them."""
    changes = joined(world, ("pixels", *names)) | {"objective": {"use": "x_prediction"}}
    trains(world, tmp_path, changes | {"losses": changes.get("losses", {}) | PERCEPTUAL})


GRADIENTS = [
    *((name,) for name in ("repa dinov2", "irepa", "contrastive", "flux2", "kl mode")),
    ("repa-e end to end",),
    ("tread", "repa dinov3"),
    ("sprint", "repa dinov3"),
    ("x-prediction", "resolution token"),
    ("contrastive corrected", "resolution vec"),
    ("repa dinov2", "repa dinov3", "contrastive"),
    ("repa dinov2", "repa dinov3", "contrastive", "bf16_master"),
]


@pytest.mark.parametrize("names", GRADIENTS, ids=" + ".join)
def test_every_parameter_gets_a_gradient(world, tmp_path, names):
    """Adam's second moment is positive wherever a gradient has ever arrived."""
    with running(world, tmp_path, zero_stage=0, **joined(world, names)) as trainer:
        trainer.advance(4)
        named = [name for name, _ in trainer.engine.module.named_parameters()]
        states = trainer.engine.optimizer.state
        held = [p for group in trainer.engine.optimizer.param_groups for p in group["params"]]
        silent = [n for n, p in zip(named, held, strict=True) if not states[p]["exp_avg_sq"].any()]
    assert silent == []


def test_first_gradients_are_those_of_a_zero_output(world, tmp_path):
    """Nothing before the zero final layer learns at the first step, unless a teacher teaches it."""
    learning = {}
    for name, losses in (("plain", {}), ("repa", {"repa": world.repa()})):
        with running(world, tmp_path, zero_stage=0, losses=losses) as trainer:
            trainer.advance(1)
            states = trainer.engine.optimizer.state
            learning[name] = {
                key for key, p in trainer.engine.module.named_parameters() if states[p]["exp_avg_sq"].any()
            }
    assert learning["plain"] == {"denoiser.final_layer.linear.weight", "denoiser.final_layer.linear.bias"}
    assert "denoiser.img_in.weight" in learning["repa"]
    assert all(name.startswith(("denoiser.", "losses.repa.projector.")) for name in learning["repa"])
