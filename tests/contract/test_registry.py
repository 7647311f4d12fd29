"""What every technique of the registry must keep; one without a case here fails."""

from __future__ import annotations

import ast
import importlib
import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from prx import interfaces, registry
from prx.config import PartConfig
from prx.interfaces import Choice, FlowSample, LogUniform, PairContext, RunShape, StepView, Tap, Uniform
from prx.registry import TECHNIQUES
from prx.rng import stream

SHAPE = RunShape(channels=4, latent_size=4, depth=2, grid=(4, 4))
PICTURES = RunShape(3, 16, depth=2, grid=(4, 4), provides=frozenset({"pixels", "clean_prediction"}))
BASES = {
    "objective": interfaces.Objective,
    "tokenizer": interfaces.ImageTokenizer,
    "optimizer": interfaces.OptimizerFactory,
    "loss": interfaces.LossTerm,
    "routing": interfaces.TokenRouter,
}


@dataclass(frozen=True)
class Case:
    """Settings that must be given, and what a loss term takes to be built and called."""

    settings: dict[str, Any] = field(default_factory=dict)
    arguments: tuple[Any, ...] = ()
    view: dict[str, Any] = field(default_factory=dict)
    shape: RunShape = SHAPE


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


CASES: dict[tuple[str, str], Case] = {
    ("objective", "velocity"): Case(),
    ("objective", "x_prediction"): Case(),
    ("tokenizer", "autoencoder"): Case({"path": "kl"}),
    ("tokenizer", "pixels"): Case(),
    ("tokenizer", "repa_e"): Case({"path": "kl"}),
    ("optimizer", "adamw"): Case(),
    ("optimizer", "muon"): Case(),
    ("loss", "repa"): Case(
        {"teacher": "dinov2", "layer": 1},
        (16,),
        {"taps": {1: Tap(tokens(3, 16, 32))}, "targets": {"term": tokens(3, 16, 16)}},
    ),
    ("loss", "irepa"): Case(
        {"teacher": "dinov2", "layer": 1},
        (16,),
        {"taps": {1: Tap(tokens(3, 16, 32))}, "targets": {"term": tokens(3, 16, 16)}},
    ),
    ("loss", "attention_alignment"): Case(
        {"teacher": "dinov2", "student_layers": [1], "teacher_layers": [0]},
        (16,),
        {
            "taps": {1: Tap(tokens(3, 16, 32), None, tokens(3, 2, 16, 16))},
            "attention": {"term": tokens(3, 1, 2, 16, 16).softmax(-1)},
        },
    ),
    ("loss", "lpips"): Case({"network": "embedded:inception"}, (), {"estimate": tokens(3, 3, 16, 16) / 2}, PICTURES),
    ("loss", "p_dino"): Case({"teacher": "embedded:dinov2"}, (), {"estimate": tokens(3, 3, 16, 16) / 2}, PICTURES),
    ("loss", "contrastive"): Case(view={"taps": {}, "partners": {"term": tokens(3, 4, 4, 4)}}),
    ("routing", "tread"): Case(),
    ("routing", "sprint"): Case(),
}


def config_of(entry: tuple[str, str], **changes: Any) -> PartConfig:
    kind, name = entry
    settings = {"use": name} | CASES[entry].settings | changes
    return registry.resolve(kind, name).Config.model_validate(settings)


def test_every_technique_has_a_case():
    assert set(CASES) == set(TECHNIQUES)


@pytest.fixture(params=sorted(TECHNIQUES), ids="-".join)
def entry(request) -> tuple[str, str]:
    return request.param


def test_class_is_of_its_kind(entry):
    technique = registry.resolve(*entry)
    assert entry[0] in registry.KINDS
    assert issubclass(technique, BASES[entry[0]])
    assert not inspect.isabstract(technique)
    assert issubclass(technique.Config, PartConfig)


def test_source_and_docstrings_are_given(entry):
    technique = registry.resolve(*entry)
    assert "arXiv:" in technique.SOURCE
    assert technique.__doc__
    assert "Source:" in technique.__doc__
    assert technique.Config.__doc__


def test_unknown_keys_and_wrong_types_are_refused(entry):
    with pytest.raises(ValidationError, match="unheard_of"):
        config_of(entry, unheard_of=1)
    with pytest.raises(ValidationError):
        config_of(entry, use=3)
    numeric = [name for name, info in type(config_of(entry)).model_fields.items() if info.annotation in (int, float)]
    for name in numeric:
        with pytest.raises(ValidationError, match=name):
            config_of(entry, **{name: "7"})


def test_configuration_cannot_be_changed_and_comes_back(entry):
    config = config_of(entry)
    with pytest.raises(ValidationError):
        config.use = "other"
    assert type(config).model_validate_json(config.model_dump_json()) == config


def test_search_ranges_are_plain_data_about_real_settings(entry):
    technique, config = registry.resolve(*entry), config_of(entry)
    for name, span in technique.SEARCH.items():
        assert name in type(config).model_fields
        default = getattr(config, name)
        if isinstance(span, Choice):
            assert default in span.values
            ends = list(span.values)
        else:
            assert isinstance(span, LogUniform | Uniform)
            assert span.low < span.high
            assert span.low <= default <= span.high
            assert isinstance(span, Uniform) or span.low > 0
            ends = [span.low, span.high]
        for value in ends:
            assert getattr(config_of(entry, **{name: value}), name) == value


def test_what_only_drawing_depends_on_are_real_settings_with_a_default(entry):
    technique, config = registry.resolve(*entry), config_of(entry)
    assert all(not type(config).model_fields[name].is_required() for name in technique.DRAWN)


def test_problems_need_nothing_but_the_configuration(entry):
    found = registry.resolve(*entry).problems(config_of(entry), CASES[entry].shape)
    assert found == []
    assert all(isinstance(key, str) and isinstance(message, str) for key, message in found)


def test_no_technique_knows_another(entry):
    module = registry.resolve(*entry).__module__
    tree = ast.parse(Path(importlib.import_module(module).__file__).read_text(encoding="utf-8"))
    known = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    known |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not any(str(name).startswith("prx.techniques") for name in known)


def test_unknown_names_list_the_choices():
    with pytest.raises(ValueError, match=r"^must be one of (\w+, )+repa; got 'rep' \(did you mean 'repa'\?\)$"):
        registry.resolve("loss", "rep")
    with pytest.raises(ValueError, match="got 'adamw'"):
        registry.resolve("routing", "adamw")


LOSSES = sorted(entry for entry in TECHNIQUES if entry[0] == "loss")


def built(entry: tuple[str, str], **changes: Any) -> interfaces.LossTerm:
    torch.manual_seed(0)
    return registry.resolve(*entry)("term", config_of(entry, **changes), CASES[entry].shape, *CASES[entry].arguments)


def view_of(entry: tuple[str, str]) -> StepView:
    shape = CASES[entry].shape
    clean = tokens(3, shape.channels, shape.latent_size, shape.latent_size)
    noise, t = clean * 2, torch.full((3,), 0.5)
    sample = FlowSample(clean, noise, t, (clean + noise) / 2)
    return StepView(sample, clean - 1, **{"grid": (4, 4), "taps": {}} | CASES[entry].view)


@pytest.mark.parametrize("entry", LOSSES, ids="-".join)
def test_loss_terms_are_unweighted_scalars(entry):
    light, heavy = built(entry, weight=0.1), built(entry, weight=0.9)
    value = light(view_of(entry))
    assert value.shape == ()
    assert torch.isfinite(value)
    assert torch.equal(value, heavy(view_of(entry)))
    assert (light.config.weight, heavy.config.weight) == (0.1, 0.9)
    assert light.name == "term"


@pytest.mark.parametrize("entry", LOSSES, ids="-".join)
def test_loss_terms_refuse_a_weight_of_zero(entry):
    for weight in (0.0, -0.5, float("nan"), float("inf")):
        with pytest.raises(ValidationError, match="weight"):
            config_of(entry, weight=weight)


@pytest.mark.parametrize("entry", LOSSES, ids="-".join)
def test_loss_terms_ask_for_what_they_read(entry):
    """A term that taps a layer finds the tap; one that pairs names another sample for each."""
    term, case = built(entry), CASES[entry]
    read = {term.layer, *term.attended} - {None}
    assert read == set(case.view.get("taps", {}))
    context = PairContext(np.arange(5), np.zeros(5, dtype=bool))
    pairs = term.pair(context, stream(0, "pair"))
    assert (pairs is not None) == ("partners" in case.view)
    if pairs is not None:
        assert (pairs != np.arange(5)).all()
        assert ((pairs >= 0) & (pairs < 5)).all()
    spec = type(term).teacher(config_of(entry), SHAPE)
    assert (spec is not None) == bool({"targets", "attention"} & set(case.view))
    assert (spec is not None and bool(spec.attention)) == ("attention" in case.view)
