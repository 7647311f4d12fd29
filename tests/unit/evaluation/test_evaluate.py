"""The evaluator gives every figure, deterministically, or says which rule is broken."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evaluation.adherence import load_reader
from evaluation.evaluate import EvaluationSpec, Evaluator
from evaluation.features import load_extractor
from evaluation.metrics import cmmd, dino_mmd, fid

NAMES = {
    "cmmd",
    "cmmd_se",
    "cmmd_unbiased",
    "dino_mmd",
    "dino_mmd_se",
    "dino_mmd_unbiased",
    "fid",
    "fid_se",
    "adherence",
    "adherence_se",
    "num_samples",
}


@pytest.fixture(scope="module")
def generated(images: Tensor) -> Tensor:
    return (images[:30].float() * 0.6).to(torch.uint8)


@pytest.fixture(scope="module")
def wanted(weights: dict[str, Path], generated: Tensor) -> list[dict[str, str]]:
    return load_reader(weights["reader"]).read(generated)


def spec(weights: dict[str, Path], **changes: Any) -> EvaluationSpec:
    paths = {role: weights[role] for role in ("clip", "dino", "inception", "reader")}
    return EvaluationSpec(**(paths | changes))


def test_gives_every_figure(
    weights: dict[str, Path], images: Tensor, generated: Tensor, wanted: list[dict[str, str]], tmp_path: Path
) -> None:
    evaluator = Evaluator(spec(weights), images, wanted, tmp_path, "data")
    found = evaluator.evaluate(generated)
    assert set(found) == NAMES
    assert found["num_samples"] == 30
    assert found["adherence"] == 1.0
    assert 0.0 < found["adherence_se"] < 0.1
    embedded = {
        role: [load_extractor(role, weights[role]).embed(x) for x in (generated, images)]
        for role in ("clip", "dino", "inception")
    }
    assert found["cmmd"] == pytest.approx(cmmd(*embedded["clip"]), abs=1e-10)
    assert found["cmmd_unbiased"] == pytest.approx(cmmd(*embedded["clip"], biased=False), abs=1e-10)
    assert found["dino_mmd"] == pytest.approx(dino_mmd(*embedded["dino"]), abs=1e-10)
    assert found["fid"] == pytest.approx(fid(*embedded["inception"]), rel=1e-9)
    assert min(found["cmmd_se"], found["dino_mmd_se"], found["fid_se"]) > 0


def test_bootstrap_takes_the_place_of_the_closed_form(
    weights: dict[str, Path], images: Tensor, generated: Tensor, wanted: list[dict[str, str]]
) -> None:
    closed, drawn = (
        Evaluator(spec(weights, resamples=count), images, wanted, None, "data").evaluate(generated) for count in (0, 40)
    )
    errors = {"cmmd_se", "dino_mmd_se", "fid_se"}
    assert {name for name in NAMES if closed[name] != drawn[name]} == errors
    assert all(0.5 < drawn[name] / closed[name] < 3 for name in errors)


def test_same_images_same_figures_with_or_without_cache(
    weights: dict[str, Path], images: Tensor, generated: Tensor, wanted: list[dict[str, str]], tmp_path: Path
) -> None:
    caches = [None, tmp_path, tmp_path]
    found = [Evaluator(spec(weights), images, wanted, c, "data").evaluate(generated) for c in caches]
    assert found[0] == found[1] == found[2]


def test_only_the_chosen_metrics_and_weights_are_used(
    weights: dict[str, Path], images: Tensor, generated: Tensor
) -> None:
    chosen = EvaluationSpec(clip=weights["clip"], metrics=["cmmd"])
    evaluator = Evaluator(chosen, images, None, None, "data")
    assert set(evaluator.evaluate(generated)) == {"cmmd", "cmmd_se", "cmmd_unbiased", "num_samples"}
    assert set(evaluator.provenance()) == {
        "cmmd_estimator",
        "clip_version",
        "reference_hash",
        "reference_count",
    }


def test_metrics_of_one_role_share_a_network(weights: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr("evaluation.evaluate.load_extractor", lambda role, path, device: loaded.append(role))
    spec(weights, metrics=["cmmd", "clip_score", "dino_mmd", "density", "coverage", "fid"]).load_extractors()
    assert sorted(loaded) == ["clip", "dino", "inception"]


def test_floor_lies_below_a_different_set(
    weights: dict[str, Path], images: Tensor, generated: Tensor, wanted: list[dict[str, str]]
) -> None:
    real_attributes = load_reader(weights["reader"]).read(images)
    evaluator = Evaluator(spec(weights), images, wanted, None, "data", reference_attributes=real_attributes)
    floor, found = evaluator.reference_floor(), evaluator.evaluate(generated)
    assert set(floor) == NAMES
    assert floor["num_samples"] == 20
    assert floor["adherence"] == 1.0
    assert floor["fid"] < found["fid"]
    clip = load_extractor("clip", weights["clip"])
    assert floor["cmmd"] == pytest.approx(cmmd(clip.embed(images[0::2]), clip.embed(images[1::2])), abs=1e-9)


def test_reference_images_are_not_held_once_they_are_embedded(weights: dict[str, Path], images: Tensor) -> None:
    reference = images.clone()
    held = weakref.ref(reference)
    evaluator = Evaluator(spec(weights, metrics=["cmmd"]), reference, None, None, "data")
    del reference
    assert held() is None
    assert evaluator.reference.count == 40


def test_floor_without_attributes_has_no_adherence(
    weights: dict[str, Path], images: Tensor, wanted: list[dict[str, str]]
) -> None:
    floor = Evaluator(spec(weights), images, wanted, None, "data").reference_floor()
    assert set(floor) == NAMES - {"adherence", "adherence_se"}


def test_too_few_images_name_the_callers_path(
    weights: dict[str, Path], images: Tensor, generated: Tensor, wanted: list[dict[str, str]]
) -> None:
    evaluator = Evaluator(spec(weights), images, wanted, None, "data", path="trial.num_samples")
    with pytest.raises(
        ValueError, match=r"trial\.num_samples must be greater than 12 for fid .*, got 12; leave"
    ):
        evaluator.evaluate(generated[:12])
    with pytest.raises(ValueError, match=r"trial\.num_samples must be at least 4 for cmmd, .*, got 3"):
        evaluator.evaluate(generated[:3])
    with pytest.raises(ValueError, match="number of reference images must be greater than 12 for fid"):
        Evaluator(spec(weights), images[:12], wanted, None, "data")
    with pytest.raises(ValueError, match="half the number of reference images must be greater than 12"):
        Evaluator(spec(weights), images[:24], wanted, None, "data").reference_floor()


def test_few_images_pass_when_allowed(
    weights: dict[str, Path], images: Tensor, generated: Tensor, wanted: list[dict[str, str]]
) -> None:
    evaluator = Evaluator(spec(weights, allow_few=True), images, wanted[:5], None, "data")
    assert evaluator.evaluate(generated[:5])["fid"] > 0


def test_wanted_attributes_must_match_the_images(
    weights: dict[str, Path], images: Tensor, generated: Tensor, wanted: list[dict[str, str]]
) -> None:
    with pytest.raises(ValueError, match="equal lengths, got 20 and 30"):
        Evaluator(spec(weights), images, wanted, None, "data").evaluate(generated[:20])
    with pytest.raises(ValueError, match="adherence needs wanted attributes"):
        Evaluator(spec(weights), images, None, None, "data")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ["cmd"]}, r"evaluation\.metrics must be among cmmd, dino_mmd, fid, adherence, .*, got cmd"),
        ({"metrics": []}, r"evaluation\.metrics must be among .*, got none"),
        ({"dino": None}, r"evaluation\.dino must be set for metric dino_mmd, got none"),
        ({"device": "tpu"}, r"evaluation\.device must be one of cpu.*, got 'tpu'"),
        ({"resamples": 1}, r"evaluation\.resamples must be 0 \(closed form\) or at least 2, got 1"),
    ],
)
def test_specification_refuses(weights: dict[str, Path], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec(weights, **changes)


def test_a_gpu_that_is_not_there_is_refused(weights: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert spec(weights, device="cuda:1").device == "cuda:1"
    with pytest.raises(ValueError, match=r"must be one of cpu, cuda, cuda:0, cuda:1, got 'cuda:2'"):
        spec(weights, device="cuda:2")


def test_provenance_names_networks_estimators_and_reference(
    weights: dict[str, Path], images: Tensor, wanted: list[dict[str, str]]
) -> None:
    found = Evaluator(spec(weights), images, wanted, None, "data").provenance()
    assert "V-statistic" in found["cmmd_estimator"]
    assert found["dino_version"].startswith("dino:squash-bicubic-v1-16x16:")
    assert found["reader_version"].startswith("reader:")
    assert found["reference_count"] == "40"
