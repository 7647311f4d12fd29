"""Levels that change more than they are about are noted; those that do not are not."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from prx.yamlsource import parse_yaml
from sweeps.benchmarks.synthetic import write_stand_ins
from sweeps.confounds import confounds
from sweeps.plan import Plan, make_plan
from sweeps.show_plan import render_plan
from sweeps.spec import load_spec, parse_spec

CONFIGS = sorted((Path(__file__).parents[2] / "sweeps" / "configs").glob("*.yaml"))
HEAD = "name: s\nbase: embedded\ntrial: {steps: 300, eval_every: 100}\n"
TREAD = "routing: {use: tread, start: 1, end: 2}"


@pytest.fixture(autouse=True)
def trainable(monkeypatch):
    """Let every configuration pass; what `recipe.problems` finds has its own tests."""
    monkeypatch.setattr("prx.recipe.problems", lambda config: [])


def plan_of(patch: str, more: str = "", axis: str = "technique") -> Plan:
    axes = f"axes:\n  {axis}: [{{name: without, patch: {{}}}}, {{name: on_it, patch: {{{patch}}}}}]\n{more}"
    source = parse_yaml(HEAD + axes, "s.yaml")
    return make_plan(parse_spec(source), source)


def notes(plan: Plan) -> str:
    console = Console(width=300, force_terminal=False)
    with console.capture() as capture:
        console.print(render_plan(plan))
    return "\n".join(line.strip() for line in capture.get().splitlines() if line.startswith("note: "))


@pytest.mark.parametrize(
    ("patch", "note"),
    [
        (f"{TREAD}, sampling.guidance: routing",
         "note: 'on_it' of axes.technique also changes sampling.guidance routing "
         "(drawn or measured in another way than the baseline)"),
        (f"{TREAD}, precision: fp32_autocast_bf16, grad_clip: 5.0",
         "note: 'on_it' of axes.technique also changes grad_clip 5; precision fp32_autocast_bf16 beside routing"),
        ("tokenizer.path: 'embedded:flux2', evaluation.num_samples: 64",
         "also changes evaluation.num_samples 64 (drawn or measured in another way than the baseline)"),
        (f"{TREAD}, losses.contrastive: {{use: contrastive, weight: 0.05}}",
         "note: 'on_it' of axes.technique changes losses and routing together, so that its effect is that of both"),
        ("optimizer: {use: muon}, grad_clip: null", "also changes grad_clip null beside optimizer"),
        ("batch_size: 8, warmup_steps: 3", "also changes warmup_steps 3 beside batch_size"),
        (f"{TREAD}, denoiser.mlp_ratio: 2.0", "also changes denoiser.mlp_ratio 2 beside routing"),
        ("tokenizer.path: 'embedded:flux2', denoiser: {patch_size: 2, mlp_ratio: 2.0}",
         "also changes denoiser.mlp_ratio 2 beside tokenizer"),
        ("objective: {use: x_prediction, shift: 3.0}", "also changes objective.shift 3 beside objective"),
    ],
)  # fmt: skip
def test_noted(patch, note):
    found = notes(plan_of(patch))
    assert note in found
    assert len(found.splitlines()) == 1


@pytest.mark.parametrize(
    "patch",
    [
        "", TREAD, "sampling.guidance_scale: 2.0, sampling.num_steps: 20", "batch_size: 8",
        "evaluation.num_samples: 64", "objective: {use: x_prediction}", "objective.shift: 3.0",
        "denoiser.mlp_ratio: 2.0",
        "optimizer: {lr: 0.1, weight_decay: 0.1}", "tokenizer.path: 'embedded:flux2', denoiser.patch_size: 2",
        "losses: {a: {use: repa, teacher: 'embedded:dinov2', layer: 1}, b: {use: contrastive, weight: 0.1}}",
    ],
)  # fmt: skip
def test_not_noted(patch):
    assert notes(plan_of(patch)) == ""


def test_an_objective_that_drops_the_times_of_the_base_is_noted(tmp_path):
    """Another technique replaces a part whole: the shift that the base set for its own goes with it."""
    (tmp_path / "base.yaml").write_text("base: embedded\nobjective: {shift: 3.0, timesteps: uniform}\n")
    (tmp_path / "s.yaml").write_text(
        "name: s\nbase: base.yaml\ntrial: {steps: 300, eval_every: 100}\n"
        "axes: {objective: [flow_matching, x_prediction]}\n"
    )
    (found,) = confounds(make_plan(*load_spec(tmp_path / "s.yaml")))
    assert found.beside == {"objective.timesteps": ("uniform", "prx_mix"), "objective.shift": (3.0, 1.0)}


def test_an_axis_named_like_a_section_is_about_it():
    (found,) = confounds(plan_of("sampling.num_steps: 7, ema: {decay: 0.9}", axis="ema"))
    assert (found.parts, list(found.beside)) == (("ema",), ["sampling.num_steps"])


def test_a_level_without_a_cell_of_its_own_is_noted_too():
    more = "  tokenizer: [flux, flux2]\ndesign: {use: list, cells: [{technique: on_it, tokenizer: flux2}]}\n"
    plan = plan_of(f"{TREAD}, sampling.guidance: routing", more)
    assert len(plan.cells) == 2
    (found,) = confounds(plan)
    assert (found.axis, found.level, list(found.beside)) == ("technique", "on_it", ["sampling.guidance"])


def test_a_level_that_is_no_configuration_alone_is_passed_over():
    axes = """\
axes:
  a: [{name: a0, patch: {}}, {name: a1, patch: {denoiser.init.revision: main}}]
  b: [{name: b0, patch: {}}, {name: b1, patch: {denoiser.init.path: some/model}}]
design: {use: list, cells: [{a: a1, b: b1}]}
"""
    source = parse_yaml(HEAD + axes, "s.yaml")
    plan = make_plan(parse_spec(source), source)
    assert len(plan.cells) == 2
    assert confounds(plan) == []


def test_shipped_sweeps_have_one_note_and_it_has_a_reason(monkeypatch, tmp_path):
    write_stand_ins(tmp_path)
    monkeypatch.chdir(tmp_path)  # a hub id is a folder of that name, where there is one
    found = {(c.axis, c.level, tuple(c.beside)) for path in CONFIGS for c in confounds(make_plan(*load_spec(path)))}
    assert found == {("optimizer", "muon", ("grad_clip",))}
