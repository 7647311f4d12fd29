"""Designs, cells, trials, what is left out, and how a plan is shown."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from prx.config import RunConfig, config_id
from prx.errors import ConfigError, Problem
from prx.yamlsource import parse_yaml
from sweeps.benchmarks.plan import sweep_of
from sweeps.benchmarks.synthetic import write_stand_ins
from sweeps.designs import DesignSpec, add_one_in, combinations, grid
from sweeps.plan import Plan, make_plan
from sweeps.show_plan import least_steps, render_plan
from sweeps.spec import load_spec, parse_spec

CONFIGS = sorted((Path(__file__).parents[2] / "sweeps" / "configs").glob("*.yaml"))
AXES = {"a": ["a0", "a1", "a2"], "b": ["b0", "b1"], "c": ["c0", "c1", "c2", "c3"]}
HEAD = "name: small\nbase: embedded\ntrial: {steps: 300, eval_every: 100}\n"
THREE = (
    HEAD
    + """\
axes:
  alignment: [none, repa_dinov2, repa_dinov3]
  objective: [flow_matching, contrastive]
  tokenizer: [flux, repa_e, flux2]
"""
)


@pytest.fixture(autouse=True)
def trainable(monkeypatch):
    """Let every configuration pass; what `recipe.problems` finds has its own tests."""
    monkeypatch.setattr("prx.recipe.problems", lambda config: [])


def plan_of(text: str) -> Plan:
    source = parse_yaml(text, "s.yaml")
    return make_plan(parse_spec(source), source)


def errors(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        plan_of(text)
    return str(caught.value)


def shown(plan: Plan, width: int = 100) -> str:
    console = Console(width=width, record=True, force_terminal=False)
    with console.capture() as capture:
        console.print(render_plan(plan))
    return capture.get()


@pytest.mark.parametrize("baseline", [("a0", "b0", "c0"), ("a1", "b1", "c2")])
def test_designs_against_brute_force(baseline):
    everything = set(product(*AXES.values()))
    found = list(grid(AXES, baseline))
    assert (found[0], len(found), set(found)) == (baseline, 24, everything)
    near = {c for c in everything if sum(x != y for x, y in zip(c, baseline, strict=True)) <= 1}
    found = list(add_one_in(AXES, baseline))
    assert (found[0], len(found), set(found)) == (baseline, 7, near)


def test_grid_moves_the_last_axis_fastest():
    found = list(combinations(DesignSpec(use="grid"), {"a": ["x", "y"], "b": ["1", "2"]}, {"a": "x", "b": "1"}))
    assert found == [("x", "1"), ("x", "2"), ("y", "1"), ("y", "2")]


def test_cells_and_trials():
    plan = plan_of(THREE + "seeds: [3, 5]\n")
    assert (len(plan.cells), len(plan.trials), plan.total_steps) == (18, 36, 36 * 300)
    assert len({trial.trial_id for trial in plan.trials}) == 36
    assert [trial.seed for trial in plan.trials] == [3] * 18 + [5] * 18
    first = plan.cells[0]
    assert (first.name, first.is_baseline, first.difference) == ("baseline", True, {})
    assert sum(cell.is_baseline for cell in plan.cells) == 1
    assert "repa_dinov3 · contrastive · flux2" in {cell.name for cell in plan.cells}
    for trial in plan.trials:
        assert trial.trial_id == config_id(trial.config)
        assert trial.cell.cell_id == config_id(trial.config.model_copy(update={"seed": 0}))
        assert (trial.config.seed, trial.config.steps, trial.config.evaluation.every) == (
            trial.seed,
            300,
            100,
        )


def test_difference_names_what_differs_and_nothing_else():
    cells = {cell.name: cell for cell in plan_of(THREE).cells}
    assert cells["flux2"].difference == {"tokenizer.path": ("embedded:flux", "embedded:flux2")}
    change = cells["repa_dinov2 · repa_e"].difference
    assert set(change) == {"tokenizer.path", "losses.repa"}
    before, after = change["losses.repa"]
    assert before is None
    assert (after["teacher"], after["layer"], after["weight"]) == ("embedded:dinov2", 1, 0.5)


def test_add_one_in_around_a_named_baseline():
    plan = plan_of(THREE + "design: add_one_in\nbaseline: {tokenizer: flux2}\n")
    assert [cell.name for cell in plan.cells] == [
        "baseline", "repa_dinov2", "repa_dinov3", "contrastive", "flux", "repa_e"
    ]  # fmt: skip
    assert plan.cells[0].levels == {"alignment": "none", "objective": "flow_matching", "tokenizer": "flux2"}


def test_an_off_level_turns_off_what_the_base_has(tmp_path):
    text = "base: embedded\nlosses: {repa: {use: repa, teacher: 'embedded:dinov3', layer: 2}}\n"
    (tmp_path / "b.yaml").write_text(text)
    source = parse_yaml(THREE.replace("base: embedded", "base: b.yaml"), str(tmp_path / "s.yaml"))
    cells = {cell.name: cell for cell in make_plan(parse_spec(source), source).cells}
    assert cells["baseline"].config.losses == {}
    assert cells["repa_dinov2"].config.losses["repa"].layer == 1  # type: ignore[attr-defined]


def test_precedence_base_level_set_trial():
    text = (
        HEAD.replace("}", ", zero_stage: 1}", 1)
        + """\
axes:
  rate:
    - {name: low, patch: {optimizer.lr: 1e-4, batch_size: 8}}
    - {name: high, patch: {optimizer: {lr: 1e-2}}}
set: {batch_size: 4, infrastructure.threads: 2}
"""
    )
    low, high = (cell.config for cell in plan_of(text).cells)
    assert (low.optimizer.lr, high.optimizer.lr) == (1e-4, 1e-2)  # type: ignore[attr-defined]
    assert low.batch_size == high.batch_size == 4
    assert (low.infrastructure.zero_stage, low.infrastructure.threads) == (1, 2)


def test_ids_do_not_depend_on_names_infrastructure_or_order():
    one = plan_of(THREE)
    text = THREE.replace("name: small", "name: other").replace(
        "[flux, repa_e, flux2]", "[flux, flux2, repa_e]"
    )
    text = text.replace("eval_every: 100", "eval_every: 100, zero_stage: 0")
    other = plan_of(text + "set: {infrastructure.threads: 3}\n")
    assert {t.trial_id: t.cell.name for t in one.trials} == {t.trial_id: t.cell.name for t in other.trials}
    assert [t.trial_id for t in plan_of(THREE).trials] == [t.trial_id for t in one.trials]


def test_exclusions_keep_their_reason():
    plan = plan_of(
        THREE + "exclude:\n  - {alignment: 'repa_*', tokenizer: flux2, because: aligned already}\n"
    )
    assert len(plan.cells) == 14
    assert {item.reasons for item in plan.dropped} == {("aligned already",)}
    assert all(item.levels["tokenizer"] == "flux2" for item in plan.dropped)
    assert "left out (4)" in shown(plan)
    assert "aligned already" in shown(plan)


def test_an_excluded_baseline_is_refused():
    text = THREE + "exclude: [{tokenizer: flux, because: too old}]\n"
    assert errors(text) == (
        "s.yaml:8: exclude: must leave the baseline (none · flow_matching · flux), excluded because: too old"
    )


def test_a_twin_is_left_out_and_named():
    text = (
        HEAD
        + "axes:\n  m:\n  - {name: one, patch: {}}\n  - {name: two, patch: {infrastructure.micro_batch: 4}}\n"
    )
    plan = plan_of(text + "  - {name: three, patch: {batch_size: 32}}\n")
    assert [cell.name for cell in plan.cells] == ["baseline"]
    reasons = {item.levels["m"]: item.reasons[0].split(": ") for item in plan.dropped}
    same = "would train the same as 'baseline'"
    assert reasons == {
        "two": [same, "differs only in infrastructure.micro_batch, which decides no result"],
        "three": [same, "has the same configuration"],
    }


def test_config_errors_point_at_the_patch_and_come_together():
    text = (
        HEAD
        + """\
axes:
  m:
    - {name: one, patch: {}}
    - name: two
      patch:
        optimizer.lr: -1
        optimizer.rate: 2
    - {name: three, patch: {losses: {x: {use: irpa}}}}
set: {batch_sice: 3}
"""
    )
    lines = errors(text).splitlines()
    assert any(line.startswith("s.yaml:9: optimizer.lr: must be greater than 0, got -1") for line in lines)
    assert any(line.startswith("s.yaml:10: optimizer.rate: unknown key; must be one of ") for line in lines)
    assert any(line.startswith("s.yaml:11: losses.x: must be one of ") for line in lines)
    assert any(line.startswith("s.yaml:12: batch_sice: unknown key; ") for line in lines)
    assert len(lines) == 4


def test_axes_that_write_the_same_setting_are_refused_with_both_lines():
    text = (
        THREE
        + "  strength:\n    - {name: half, patch: {}}\n    - {name: full, patch: {losses.repa.weight: 1.0}}\n"
    )
    message = errors(text)
    assert "losses.repa" in message
    assert "by axes.strength level 'full' (s.yaml:10)" in message
    assert "by axes.alignment level 'repa_dinov2' (" in message
    assert "catalogue/embedded.yaml:" in message


def test_axes_may_share_a_setting_when_they_agree_or_never_meet():
    text = (
        HEAD
        + """\
axes:
  a: [{name: a0, patch: {}}, {name: a1, patch: {batch_size: 4, optimizer.lr: 1e-5}}]
  b: [{name: b0, patch: {}}, {name: b1, patch: {batch_size: BATCH, grad_clip: 2.0}}]
"""
    )
    assert len(plan_of(text.replace("BATCH", "4")).cells) == 4
    assert "batch_size: is written differently by two axes: 4 by axes.a" in errors(text.replace("BATCH", "8"))
    assert len(plan_of(text.replace("BATCH", "8") + "exclude: [{a: a1, b: b1, because: clash}]\n").cells) == 3
    assert len(plan_of(text.replace("BATCH", "8") + "design: add_one_in\n").cells) == 3


def _no_flux2_with_repa(config: RunConfig) -> list[Problem]:
    if config.losses and config.tokenizer.path == "embedded:flux2":  # type: ignore[attr-defined]
        return [Problem("losses.repa.layer", "must be in 0..0, got 1")]
    return []


def test_impossible_cells_are_left_out_with_the_reason(monkeypatch):
    monkeypatch.setattr("prx.recipe.problems", _no_flux2_with_repa)
    plan = plan_of(THREE)
    assert (len(plan.cells), len(plan.dropped)) == (13, 5)
    assert {item.reasons for item in plan.dropped} == {("losses.repa.layer: must be in 0..0, got 1",)}


def test_a_level_that_no_cell_can_train_is_refused(monkeypatch):
    def problems(config: RunConfig) -> list[Problem]:
        return [Problem("batch_size", "must be odd")] if config.batch_size == 4 else []

    monkeypatch.setattr("prx.recipe.problems", problems)
    text = HEAD + "axes:\n  a:\n    - {name: a0, patch: {}}\n    - {name: a1, patch: {batch_size: 4}}\n"
    assert errors(text) == "s.yaml:7: batch_size: must be odd (so no cell can train level 'a1' of axes.a)"
    assert errors(text + "baseline: {a: a1}\n") == "s.yaml:7: batch_size: must be odd"


def test_a_layer_out_of_range_is_refused_before_training(monkeypatch, world):
    monkeypatch.undo()
    base = Path(world.root) / "base.yaml"
    base.write_text(yaml.safe_dump(world.settings()))
    repa = yaml.safe_dump(world.repa(layer=9), default_flow_style=True).strip()
    text = f"""\
name: small
base: {base.name}
objectives: {{samples_per_second: max}}
trial: {{steps: 4, eval_every: 2}}
axes:
  depth:
    - {{name: no_teacher, patch: {{}}}}
    - {{name: too_deep, patch: {{losses.repa: {repa}}}}}
"""
    source = parse_yaml(text, str(base.with_name("s.yaml")))
    with pytest.raises(
        ConfigError, match=r"s\.yaml:8: losses\.repa\.layer: .*\(so no cell can train level 'too_deep'"
    ):
        make_plan(parse_spec(source), source)


def test_a_deciding_metric_needs_its_network():
    text = THREE + "set: {evaluation.clip: null, evaluation.inception: null}\nobjectives: {fid: min}\n"
    assert errors(text) == "s.yaml:9: objectives.fid: fid needs evaluation.inception in every cell, got null"
    text += "scheduler: {use: halving}\n"
    assert "s.yaml:10: scheduler.metric: cmmd needs evaluation.clip in every cell, got null" in errors(text)


def test_a_deciding_clip_score_needs_a_text_tower(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "clip_vision_model"}')
    text = THREE + f"set: {{evaluation.clip: '{tmp_path}'}}\nobjectives: {{clip_score: max}}\n"
    expected = f"clip_score needs a CLIP with its text tower and tokenizer as evaluation.clip, got {tmp_path}"
    assert errors(text) == f"s.yaml:9: objectives.clip_score: {expected}"
    assert plan_of(THREE + "objectives: {clip_score: max}\n").cells


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_sweeps_plan_with_nothing_left_out(path, monkeypatch, tmp_path):
    monkeypatch.undo()
    write_stand_ins(tmp_path)
    monkeypatch.chdir(tmp_path)  # a hub id is a folder of that name, where there is one
    plan = make_plan(*load_spec(path))
    assert plan.dropped == ()
    assert shown(plan, 80)


@pytest.mark.parametrize(
    ("name", "cells", "trials"),
    [("quickstart", 8, 8), ("smoke", 2, 2), ("alignment_objective_tokenizer", 18, 36)],
)
def test_shipped_sweeps_have_the_size_they_say(name, cells, trials):
    plan = make_plan(*load_spec(next(path for path in CONFIGS if path.stem == name)))
    assert (len(plan.cells), len(plan.trials)) == (cells, trials)


@pytest.mark.parametrize("width", [80, 120])
def test_a_plan_is_shown_within_the_width(width):
    text = shown(plan_of(THREE + "scheduler: {use: halving}\nseeds: [0, 1]\nbudget: {hours: 2}\n"), width)
    assert max(map(len, text.splitlines())) <= width
    flat = " ".join(text.split())
    assert "18 cells × 2 seeds = 36 trials of 300 steps, 10,800 steps in all" in flat
    assert "halving on cmmd at 100: about 1 in 4 goes on (at least 5,600 steps in all)" in flat
    assert "tokenizer.path embedded:repa_e" in flat
    assert "budget 2 hours" in flat


def test_least_steps_against_counting():
    plan = plan_of(THREE + "scheduler: {use: halving, reduction_factor: 2}\n")
    assert least_steps(plan) == 18 * 100 + 9 * 100 + 5 * 100
    assert least_steps(plan_of(THREE)) == 18 * 300


@pytest.mark.parametrize(("asked", "given"), [(20, 20), (100, 100), (500, 500), (1000, 1000)])
def test_the_benchmark_of_planning_plans_what_it_says(asked, given):
    assert len(plan_of(sweep_of(asked)).cells) == given


def test_long_plans_are_cut():
    levels = ", ".join(f"{{name: l{i}, patch: {{batch_size: {i + 1}}}}}" for i in range(70))
    text = shown(plan_of(HEAD + f"axes:\n  size: [{levels}]\n"))
    assert "and 10 more cells" in text


def test_rungs_within_the_warm_up_are_warned_of():
    more = "scheduler: {{use: halving, grace_steps: {}, reduction_factor: 2}}\nset: {{warmup_steps: 200}}\n"
    early = shown(plan_of(THREE + more.format(100)), width=300)
    assert "note: rungs 100 and 200 lie within the warm-up of the learning rate (200 steps)" in early
    late = plan_of(THREE.replace("steps: 300", "steps: 600") + more.format(300))
    assert late.spec.rungs() == (300,)
    assert "warm-up" not in shown(late, width=300)
