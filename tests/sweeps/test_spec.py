"""The sweep's YAML: what is refused, and with which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.evaluate import METRIC_ROLES
from prx.errors import ConfigError
from prx.yamlsource import parse_yaml, read_yaml
from sweeps import catalogue
from sweeps.metrics import METRICS, QUALITY, RESULT_COLUMNS
from sweeps.spec import SweepSpec, load_spec, parse_spec

GOOD = """\
name: small
base: embedded
axes:
  alignment: [none, repa_dinov2]
  tokenizer: [flux, repa_e, flux2]
trial: {steps: 300, eval_every: 100}
"""


def spec_of(text: str) -> SweepSpec:
    return parse_spec(parse_yaml(text, "s.yaml"))


def errors(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        spec_of(text)
    return str(caught.value)


def test_defaults():
    spec = spec_of(GOOD)
    assert (spec.design.use, spec.seeds, spec.objectives, spec.scheduler.use) == (
        "grid",
        [0],
        {"cmmd": "min"},
        "none",
    )
    assert spec.baseline_levels() == {"alignment": "none", "tokenizer": "flux"}
    assert spec.rungs() == ()
    assert spec.trial.zero_stage is None


def test_baseline_may_be_named():
    spec = spec_of(GOOD + "baseline: {tokenizer: flux2}\n")
    assert spec.baseline_levels() == {"alignment": "none", "tokenizer": "flux2"}


@pytest.mark.parametrize(
    ("scheduler", "rungs"),
    [
        ("{use: halving}", (100,)),
        ("{use: halving, reduction_factor: 2}", (100, 200)),
        ("{use: asha, grace_steps: 200}", (200,)),
        ("{use: none, grace_steps: 17}", ()),
    ],
)
def test_rungs_are_steps(scheduler, rungs):
    assert spec_of(GOOD + f"scheduler: {scheduler}\n").rungs() == rungs


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ("sedes: [1]",
         "s.yaml:7: sedes: unknown key; must be one of also, article, axes, base, baseline, budget, catalogue, "),
        ("sedes: [1]", "seeds, set, tracking, trial; got 'sedes' (did you mean 'seeds'?)"),
        ("seeds: []", "s.yaml:7: seeds: "),
        ("seeds: [0, 1, 0]", "s.yaml:7: seeds[2]: must be distinct, got 0 twice"),
        ("seeds: [-1]", "s.yaml:7: seeds[0]: must be greater than or equal to 0, got -1"),
        ("seeds: [1.5]", "s.yaml:7: seeds[0]: must be a valid integer, got 1.5"),
        ("design: pars",
         "s.yaml:7: design: must be one of grid, add_one_in, leave_one_out, pairs, fractional, list; got 'pars' "
         "(did you mean 'pairs'?)"),
        ("search: {trials: 4}", "s.yaml:7: search.space: is required"),
        ("objectives: {clip_scores: max}",
         "objectives.clip_scores: must be one of cmmd, dino_mmd, fid, adherence, "),
        ("objectives: {}", "s.yaml:7: objectives: "),
        ("objectives: {cmmd: max}",
         "s.yaml:7: objectives.cmmd: must be min (lower cmmd is better), got 'max'"),
        ("objectives: {adherence: min}",
         "objectives.adherence: must be max (higher adherence is better), got 'min'"),
        ("objectives: {cmmd: least}", "s.yaml:7: objectives.cmmd: must be 'min' or 'max', got 'least'"),
        ("scheduler: {use: pbt}", "scheduler.use: must be one of halving, asha, hyperband, median, none; got 'pbt'"),
        ("scheduler: {use: asha, unit: images, grace: 100}",
         "s.yaml:7: scheduler.unit: must be steps for scheduler.use asha, got images"),
        ("scheduler: {use: halving, unit: images}",
         "s.yaml:7: scheduler.grace: is required with scheduler.unit images: the first rung"),
        ("scheduler: {use: halving, unit: device_seconds, grace_steps: 100}",
         "scheduler.grace_steps: counts steps, but scheduler.unit is device_seconds; write grace, in device_seconds"),
        ("scheduler: {use: halving, grace: 100, grace_steps: 100}",
         "scheduler.grace: and grace_steps say the same; remove one of them"),
        ("scheduler: {use: halving, grace: 150}",
         "scheduler.grace: must be a multiple of trial.eval_every (100), got 150"),
        ("scheduler: {use: halving, unit: epochs}",
         "scheduler.unit: must be one of steps, images, device_seconds; got 'epochs'"),
        ("scheduler: {stop: {plateau: {evaluations: 3}}}",
         "scheduler.stop.plateau.evaluations: must be less than the number of evaluations (3), got 3"),
        ("scheduler: {stop: {worse_than_baseline: {from_step: 300}}}",
         "scheduler.stop.worse_than_baseline.from_step: must be less than trial.steps (300), got 300"),
        ("scheduler: {use: halving, unit: images, grace: 9, stop: {worse_than_baseline: {}}}",
         "scheduler.stop.worse_than_baseline: needs scheduler.unit steps"),
        ("scheduler: {stop: {target: 3}}", "scheduler.stop.target: "),
        ("scheduler: {stop: {goal: {value: 3}}}", "scheduler.stop.goal: unknown key; must be one of plateau, target, "),
        ("scheduler: {metric: samples_per_second}",
         "scheduler.metric: must be one of cmmd, dino_mmd, fid, adherence, "),
        ("scheduler:\n  use: halving\n  grace_steps: 150",
         "s.yaml:9: scheduler.grace_steps: must be a multiple of trial.eval_every (100), got 150"),
        ("scheduler: {use: asha, grace_steps: 300}",
         "s.yaml:7: scheduler.grace_steps: must be less than trial.steps (300), got 300"),
        ("scheduler: {reduction_factor: 1}",
         "scheduler.reduction_factor: must be greater than or equal to 2, got 1"),
        ("scheduler: {graze: 1}",
         "scheduler.graze: unknown key; must be one of grace, grace_steps, metric, noise_aware, "),
        ("budget: {hours: 0}", "s.yaml:7: budget.hours: must be greater than 0, got 0"),
        ("budget: {days: 1}", "s.yaml:7: budget.days: unknown key; must be one of device_hours, hours, money, price_"),
        ("budget: {trials: 0}", "s.yaml:7: budget.trials: must be greater than 0, got 0"),
        ("budget: {trials: 1.5}", "s.yaml:7: budget.trials: must be a valid integer, got 1.5"),
        ("budget: {device_hours: -1}", "s.yaml:7: budget.device_hours: must be greater than 0, got -1"),
        ("budget: {money: 0}", "s.yaml:7: budget.money: must be greater than 0, got 0"),
        ("budget: {money: 5}", "s.yaml:7: budget.money: needs budget.price_per_device_hour, got none"),
        ("budget: {hours: .inf}", "s.yaml:7: budget.hours: must be a finite number, got inf"),
        ("budget: {}", "s.yaml:7: budget: must set at least one of hours, device_hours, trials, money, price_per_"),
        ("baseline: {tokenizer: flx}",
         "s.yaml:7: baseline.tokenizer: must be one of flux, repa_e, flux2; got 'flx' "),
        ("baseline: {teacher: none}",
         "s.yaml:7: baseline.teacher: must be one of alignment, tokenizer; got 'teacher'"),
        ("exclude: [{alignment: none}]", "s.yaml:7: exclude[0]: must say why, as because: TEXT"),
        ("exclude: [{because: x}]", "s.yaml:7: exclude[0]: must name a pattern for at least one axis; "),
        ("exclude:\n- {teacher: x, because: y}",
         "s.yaml:8: exclude[0].teacher: must be one of alignment, tokenizer, because; got 'teacher'"),
        ("exclude: [{alignment: 'irepa_*', because: y}]",
         "exclude[0].alignment: must match a level of the axis; must be one of none, repa_dinov2; got"),
        ("exclude: [{alignment: 3, because: y}]", "exclude[0].alignment: must be a valid string, got 3"),
        ("catalogue: reel",
         "s.yaml:7: catalogue: must name a catalogue or an existing .yaml file; must be one of "
         "embedded, real; got 'reel' (did you mean 'real'?)"),
        ("set: {steps: 3}", "s.yaml:7: set.steps: is decided by trial.steps of the sweep, got 3"),
        ("set: {infrastructure: {workers: 2}}",
         "set.infrastructure.workers: is decided by trial.workers of the sweep"),
        ("set: {evaluation.every: 2}",
         "set.evaluation.every: is decided by trial.eval_every of the sweep, got 2"),
        ("set:\n  optimizer.lr: 1\n  optimizer: {lr: 2}", "s.yaml:9: set.optimizer: is given twice"),
    ],
)  # fmt: skip
def test_refused(added, message):
    assert message in errors(GOOD + added + "\n")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: small",
         "name: My Sweep", "s.yaml:1: name: must be at most 64 of a-z, 0-9, - and _, got 'My Sweep'"),
        ("name: small\n", "", "name: is required"),
        ("base: embedded",
         "base: embeded", "s.yaml:2: base: must name a preset or an existing .yaml file; must be one"),
        ("base: embedded", "base: 3", "s.yaml:2: base: must be a valid string, got 3"),
        ("eval_every: 100",
         "eval_every: 70", "s.yaml:6: trial.eval_every: must divide trial.steps (300), got 70; the "
         "nearest that do are 60, 75"),
        ("steps: 300",
         "stepz: 300", "s.yaml:6: trial.stepz: unknown key; must be one of eval_every, eval_seconds, step_seconds, "),
        ("steps: 300, ", "", "s.yaml:6: trial.steps: is required"),
        ("steps: 300", "steps: 1e3", "s.yaml:6: trial.steps: must be a valid integer, got 1000.0"),
        ("eval_every: 100",
         "eval_every: 100, zero_stage: 4", "trial.zero_stage: must be less than or equal to 3, got"),
        ("repa_dinov2",
         "repa_dino2", "; got 'repa_dino2' (did you mean 'repa_dinov2'?)"),
        ("repa_dinov2", "none", "s.yaml:4: axes.alignment[1]: must be distinct, got 'none' twice"),
        ("repa_dinov2",
         "no", "s.yaml:4: axes.alignment[1]: must be a level's name (quote numbers, yes and no) or "
         "{name, patch}, got False"),
        ("repa_dinov2", "'repa_*'", "axes.alignment[1]: must be letters, digits, _ . + and -, got 'repa_*'"),
        ("repa_dinov2", "{name: x}", "s.yaml:4: axes.alignment[1].patch: is required"),
        ("repa_dinov2",
         "{name: x, patch: 3}", "s.yaml:4: axes.alignment[1].patch: must be a valid dictionary, got 3"),
        ("repa_dinov2",
         "{name: x, patch: {seed: 3}}", "axes.alignment[1].patch.seed: is decided by seeds of the sweep"),
        ("[none, repa_dinov2]", "[]", "s.yaml:4: axes.alignment: "),
        ("[none, repa_dinov2]", "none", "s.yaml:4: axes.alignment: must be a valid list, got 'none'"),
        ("alignment",
         "teacher", "s.yaml:4: axes.teacher[0]: is a name, but the catalogue has no axis 'teacher': write "
         "{name, patch}, or the axis must be one of alignment, captions, data, "),
        ("alignment",
         "Teacher", "axes.Teacher: must be a-z, 0-9 and _, like a column of a table, got 'Teacher'"),
        ("alignment",
         "state", "s.yaml:4: axes.state: must not be named like a column of the results, got 'state'"),
    ],
)  # fmt: skip
def test_refused_in_place(old, new, message):
    assert message in errors(GOOD.replace(old, new, 1))


def test_grace_defaults_to_the_first_evaluation():
    text = GOOD.replace("eval_every: 100", "eval_every: 300") + "scheduler: {use: halving}\n"
    assert (
        "trial.eval_every: must be less than trial.steps (300) for scheduler.use halving, got 300"
        in errors(text)
    )


def test_all_problems_come_together_and_in_order():
    text = """\
name: Bad Name
base: embedded
axes:
  alignment: [none, repa_dino2]
  tokenizer: [flux, flux]
trial: {steps: 300, eval_every: 70}
seeds: [0, 0]
search: {}
sedes: 1
scheduler: {use: halving, grace_steps: 50}
objectives: {cmmd: max}
set: {seed: 3}
"""
    lines = errors(text).splitlines()
    assert [line.split(":")[1] for line in lines] == ["1", "4", "5", "6", "7", "8", "9", "10", "11", "12"]


def test_a_wrong_section_does_not_hide_problems_of_others():
    text = GOOD.replace("steps: 300", "steps: x") + "exclude: [{alignment: nine, because: y}]\n"
    assert len(errors(text).splitlines()) == 2


def test_an_empty_file_and_a_list_are_refused():
    assert "must be a mapping with name, base, axes and trial, got None" in errors("")
    assert "s.yaml:1: must be a mapping with name, base, axes and trial, got [1]" in errors("[1]")


@pytest.mark.parametrize("world", ["embedded", "real"])
def test_no_axis_of_the_catalogue_is_named_like_a_column(world):
    file = Path(catalogue.__file__).with_name("catalogue") / f"{world}.yaml"
    assert not set(read_yaml(file).data) & RESULT_COLUMNS


def test_metrics_are_those_that_evaluation_computes():
    assert {name: METRICS[name].role for name in QUALITY} == METRIC_ROLES


@pytest.mark.parametrize(("train", "expected"), [("embedded:train", "embedded"), ("data/train", "real")])
def test_the_catalogue_follows_the_world_of_the_base(train, expected):
    assert catalogue.default_catalogue(parse_yaml(f"data: {{train: {train!r}}}")) == expected
    assert catalogue.default_catalogue(parse_yaml("steps: 1")) == "real"
    mixed = f"data: {{mixture: {{a: {{train: {train!r}}}, b: {{train: 'embedded:photos'}}}}}}"
    assert catalogue.default_catalogue(parse_yaml(mixed)) == expected


def test_a_catalogue_of_ones_own(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("speed:\n  slow: {summary: s, patch: {optimizer.lr: 1e-5}}\n")
    (tmp_path / "s.yaml").write_text(
        "name: s\nbase: embedded\ncatalogue: mine.yaml\n"
        "axes: {speed: [slow]}\ntrial: {steps: 2, eval_every: 1}\n"
    )
    spec, source = load_spec(tmp_path / "s.yaml")
    level = catalogue.axis_levels(spec, source)["speed"]["slow"]
    assert level.patch.data == {"optimizer": {"lr": 1e-5}}
    assert level.patch.mark(("optimizer", "lr")) == (str(tmp_path / "mine.yaml"), 2)


def test_a_broken_catalogue_names_its_own_lines(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(
        "speed:\n  slow: {summary: s}\n  fast: {patch: {}, summary: s, sorce: x}\n"
    )
    at = parse_yaml("a: 1", str(tmp_path / "s.yaml"))
    with pytest.raises(ConfigError) as caught:
        catalogue.load_catalogue("mine.yaml", at)
    first, second = str(caught.value).splitlines()
    assert first.endswith("mine.yaml:2: speed.slow.patch: is required")
    assert second.endswith(
        "unknown key; must be one of patch, source, summary; got 'sorce' (did you mean 'source'?)"
    )
