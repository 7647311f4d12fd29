"""Keys of training states: what shares one, and what must not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from prx import prepare
from prx.config import parse_run_config
from sweeps.history.keys import Lineage, common_steps

STEPS = 12


@pytest.fixture(scope="module")
def lineage(world):
    def make(**changes: Any) -> Lineage:
        settings = world.settings(**{"steps": STEPS, "warmup_steps": 2} | changes)
        config = parse_run_config(settings)
        return Lineage(config, prepare.plan(config, world.cache))

    return make


def keys(found: Lineage) -> list[str]:
    return [found.key(step) for step in range(STEPS + 1)]


def test_every_step_has_a_key_of_its_own(lineage):
    assert len(set(keys(lineage()))) == STEPS + 1
    assert keys(lineage()) == keys(lineage())


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"infrastructure": {"workers": 2, "zero_stage": 3, "micro_batch": 2, "threads": 2, "device": "cpu"}},
        {"cache": {"max_gb": 1.0}},
        {"steps": 40},
        {"evaluation": {"every": 5, "num_samples": 4, "clip": None, "dino": None, "grid": 4}},
        {"sampling": {"num_steps": 9, "guidance_scale": 1.0}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_how_a_run_is_executed_and_measured_is_not_in_its_keys(lineage, changes):
    assert keys(lineage(**changes)) == keys(lineage())


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"batch_size": 4},
        {"grad_clip": None},
        {"precision": "bf16_master"},
        {"warmup_steps": 1},
        {"optimizer": {"use": "adamw", "lr": 2e-3}},
        {"objective": {"use": "velocity", "shift": 2.0}},
        {"denoiser": {"width": 32, "depth": 3, "heads": 2, "patch_size": 1}},
        {"ema": {"decay": 0.9}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_acts_on_every_step_is_in_every_key(lineage, changes):
    assert not set(keys(lineage(**changes))) & set(keys(lineage()))


def test_other_data_other_keys(lineage, world):
    data = world.settings()["data"]
    for other in ({"captions": {"caption_short": 1.0}}, {"num_train": 40}):
        assert not set(keys(lineage(data=data | other))) & set(keys(lineage()))
    same = lineage(data=data | {"num_reference": 12})
    assert keys(same) == keys(lineage())
    assert same.measurement(4) != lineage().measurement(4)


def test_runs_share_everything_before_a_technique_stops(lineage, world):
    def stopped(at: Any, **changes: Any) -> Lineage:
        return lineage(losses={"repa": world.repa(stop_step=at, **changes)})

    early, late, never = stopped(4), stopped(8), stopped("never")
    assert keys(early)[:5] == keys(late)[:5] == keys(never)[:5]
    assert not set(keys(early)[5:]) & set(keys(late)[5:])
    assert keys(late)[:9] == keys(never)[:9]
    assert keys(late)[9:] != keys(never)[9:]
    assert common_steps(early, late) == 4
    assert common_steps(late, never) == 8
    assert common_steps(never, stopped(STEPS)) == STEPS
    assert common_steps(never, stopped("never", weight=0.1)) == 0
    assert common_steps(never, lineage(seed=1)) == 0


def test_a_falling_weight_leans_towards_its_end_from_the_start(lineage, world):
    def falling(at: Any, steps: int = STEPS) -> Lineage:
        return lineage(steps=steps, losses={"repa": world.repa(stop_step=at, schedule="linear")})

    assert common_steps(falling(4), falling(8)) == 0
    assert keys(falling("never"))[1] != keys(falling("never", steps=40))[1]
    assert keys(falling(8))[1] == keys(falling(8, steps=40))[1]


def test_run_whose_term_stopped_is_not_the_run_without_it(lineage, world):
    with_term = lineage(losses={"repa": world.repa(stop_step=4)})
    assert not set(keys(with_term)[1:]) & set(keys(lineage())[1:])


def test_trained_tokenizer_is_part_of_the_run_and_a_frozen_one_is_its_latents(lineage, world):
    def end_to_end(**settings: Any) -> list[str]:
        tokenizer = {"use": "repa_e", "path": str(world.root / "kl"), **settings}
        return keys(lineage(tokenizer=tokenizer, losses={"repa": world.repa()}))

    assert not set(end_to_end()) & set(end_to_end(align_weight=0.7))
    frozen = {"use": "autoencoder", "path": str(world.root / "kl")}
    declared = keys(lineage(tokenizer=frozen | {"channels": 4, "downsample": 4}))
    assert declared == keys(lineage(tokenizer=frozen))
    assert not set(declared) & set(keys(lineage(tokenizer=frozen | {"sample": False})))


def test_order_of_terms_means_nothing(lineage, world):
    second = world.repa(teacher=str(world.root / "dinov3"), layer=1)
    one = lineage(losses={"a": world.repa(), "b": second})
    other = lineage(losses={"b": second, "a": world.repa()})
    assert keys(one) == keys(other)


def test_how_a_state_is_measured_is_in_the_measurement(lineage):
    given = {"every": 2, "num_samples": 8, "batch_size": 4, "grid": 4, "clip": None, "dino": None}
    found = lineage(evaluation=given)
    assert found.measurement(4) == lineage(evaluation=given | {"every": 4}).measurement(4)
    other = [
        lineage(evaluation=given | {"num_samples": 6}),
        lineage(evaluation=given, sampling={"num_steps": 2, "guidance_scale": 1.0}),
        lineage(evaluation=given, seed=3),
    ]
    assert len({found.measurement(4), *(entry.measurement(4) for entry in other)}) == 4
    assert found.measurement(4) != found.measurement(8)


def test_a_network_is_named_by_its_weights_not_by_where_it_lies(lineage, world, tmp_path):
    def measured(**networks: Path | str) -> str:
        given = {"every": 2, "num_samples": 8, "batch_size": 4, "grid": 4, "clip": None, "dino": None}
        return lineage(evaluation=given | {role: str(path) for role, path in networks.items()}).measurement(4)

    first, copy = world.root / "dinov3", shutil.copytree(world.root / "dinov3", tmp_path / "dino")
    before = measured(dino=first)
    assert before == measured(dino=copy) != measured()
    (copy / "model.safetensors").write_bytes((world.root / "kl" / "config.json").read_bytes())
    assert measured(dino=copy) != before
    assert measured(inception="torch-fidelity") != measured()


def test_what_a_run_starts_from_and_looks_through_is_named_by_its_weights(lineage, world, tmp_path):
    kl, judge = (shutil.copytree(world.root / name, tmp_path / name) for name in ("kl", "dinov3"))
    pixels = {"tokenizer": {"use": "pixels"}, "objective": {"use": "x_prediction", "clamp": 0.05}}

    def trained(path: Path) -> list[str]:
        return keys(lineage(tokenizer={"use": "repa_e", "path": str(path)}, losses={"repa": world.repa()}))

    def judged(path: Path) -> list[str]:
        return keys(lineage(losses={"p_dino": {"use": "p_dino", "teacher": str(path), "grid": 2}}, **pixels))

    before = trained(kl), judged(judge)
    assert before == (trained(world.root / "kl"), judged(world.root / "dinov3"))
    for folder in (kl, judge):
        config = folder / "config.json"
        config.write_text(config.read_text() + "\n")  # weights and settings count byte by byte
    assert not set(trained(kl)) & set(before[0])
    assert not set(judged(judge)[1:]) & set(before[1][1:])


def test_other_sampling_settings_count_at_the_end_alone(lineage):
    given = {"every": 2, "num_samples": 8, "batch_size": 4, "grid": 4, "clip": None, "dino": None}
    found, more = lineage(evaluation=given), lineage(evaluation=given | {"also": [{"guidance_scale": 2.0}]})
    assert keys(found) == keys(more)
    assert found.measurement(4) == more.measurement(4)
    assert found.measurement(STEPS) != more.measurement(STEPS)


def test_what_a_term_changes_of_drawing_alone_is_in_the_measurement_while_it_acts(lineage):
    def contrastive(**settings: Any) -> Lineage:
        return lineage(losses={"away": {"use": "contrastive", "stop_step": 8, **settings}})

    plain, corrected = contrastive(), contrastive(correct_sampling=True)
    assert keys(plain) == keys(corrected)
    assert keys(plain)[1:] != keys(contrastive(weight=0.1))[1:]
    assert plain.measurement(8) != corrected.measurement(8)
    assert plain.measurement(9) == corrected.measurement(9), "the term has stopped, nothing is corrected any more"
