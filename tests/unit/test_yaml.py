"""YAML, bases and configuration: every error says file:line, path, rule, value and choices."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from prx import compose
from prx.config import RunConfig, config_id, parse_run_config
from prx.errors import ConfigError
from prx.yamlsource import dotted, merge, parse_yaml, read_yaml


def errors(text: str) -> str:
    source = parse_yaml(text, "run.yaml")
    with pytest.raises(ConfigError) as caught:
        parse_run_config(source.data, source)
    return str(caught.value)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("1E5", 1e5), ("+.5e3", 500.0), ("1_0e3", 1e4)])
def test_exponents_are_numbers(text, value):
    assert parse_yaml(f"a: {text}").data == {"a": value}


def test_words_stay_words():
    assert parse_yaml("[e3, none, v1e3]").data == ["e3", "none", "v1e3"]


def test_marks_name_the_line_of_every_path():
    source = parse_yaml("a: 1\nb:\n  - {c: 2}\n  - d\n", "f.yaml")
    assert source.mark(("b", 0, "c")) == ("f.yaml", 3)
    assert source.mark(("b", 1)) == ("f.yaml", 4)
    assert source.mark(("b", 1, "not", "written")) == ("f.yaml", 4)
    assert source.at("b", 0).mark(("c",)) == ("f.yaml", 3)
    assert source.under("x", "y").mark(("x", "y", "a")) == ("f.yaml", 1)


def test_dotted_paths():
    assert dotted(("exclude", 0, "because")) == "exclude[0].because"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [1,\n", "f.yaml:3: is not valid YAML: "),
        ("a: 1\na: 2\n", "f.yaml:2: a: is given twice"),
        ("x:\n  a: 1\n  a: 2\n", "f.yaml:3: x.a: is given twice"),
        ("a: 1\nb: \x01\n", "f.yaml:2: is not valid YAML: character #x0001 is not allowed"),
        ("a: &x [*x]\n", "f.yaml:1: a[0]: must not contain itself"),
        ("a: 1\nb: 2020-99-99\n", "f.yaml:2: is not valid YAML: '2020-99-99' is no timestamp"),
        ("a: 1\nb: [!!int abc]\n", "f.yaml:2: is not valid YAML: 'abc' is no int"),
        ("? [a]\n: 1\n", "f.yaml:1: is not valid YAML: found unhashable key"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2: is not valid YAML: "),
        ("a: !!python/object:os.system {}\n", "f.yaml:1: is not valid YAML: "),
    ],
)
def test_bad_yaml(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "f.yaml")
    assert str(caught.value).startswith(message)


def test_unreadable_files(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file or directory"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\xff")
    with pytest.raises(ConfigError, match=r"latin\.yaml: cannot be read: is not UTF-8 text"):
        read_yaml(tmp_path / "latin.yaml")


def test_merge_keeps_what_a_patch_leaves_and_remembers_lines():
    base = parse_yaml("steps: 5\noptimizer:\n  use: adamw\n  lr: 1e-3\n", "base.yaml")
    patch = parse_yaml("\n\noptimizer: {lr: 2e-3}\n", "patch.yaml")
    merged = merge(base, patch)
    assert merged.data == {"steps": 5, "optimizer": {"use": "adamw", "lr": 2e-3}}
    assert merged.mark(("optimizer", "lr")) == ("patch.yaml", 3)
    assert merged.mark(("optimizer", "use")) == ("base.yaml", 3)
    assert base.data["optimizer"]["lr"] == 1e-3


def test_merge_replaces_a_technique_whole():
    base = parse_yaml("optimizer:\n  use: adamw\n  lr: 1e-3\n", "base.yaml")
    merged = merge(base, parse_yaml("optimizer: {use: muon}", "patch.yaml"))
    assert merged.data == {"optimizer": {"use": "muon"}}
    assert merged.mark(("optimizer", "lr")) == ("patch.yaml", 1)


@pytest.mark.parametrize("base", ["steps: 1", "losses: {repa: {use: repa}}", "losses: {}"])
def test_merge_takes_a_term_out_whatever_the_base_has(base):
    assert merge(parse_yaml(base), parse_yaml("losses: {repa: null}")).data["losses"] == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 3", "run.yaml:1: stepz: unknown key; must be one of batch_size, "),
        ("stepz: 3", "(did you mean 'steps'?)"),
        ("steps: 0", "run.yaml:1: steps: must be greater than 0, got 0"),
        ("steps: 1.5", "run.yaml:1: steps: must be a valid integer, got 1.5"),
        ("steps: '5'", "run.yaml:1: steps: must be a valid integer, got '5'"),
        ("seed: true", "run.yaml:1: seed: must be a valid integer, got True"),
        ("grad_clip: .nan", "run.yaml:1: grad_clip: must be"),
        ("precision: fp8",
         "precision: must be 'fp32', 'fp32_autocast_bf16', 'bf16_master' or 'bf16_pure', got"),
        ("data:\n  captions: {}", "run.yaml:2: data.captions: "),
        ("denoiser: {dept: 3}", "denoiser.dept: unknown key; must be one of bottleneck, depth, heads, "),
        ("tokenizer: {use: autoencodr}", "(did you mean 'autoencoder'?)"),
        ("tokenizer: {use: autoencoder}", "run.yaml:1: tokenizer.path: is required"),
        ("objective: {lr: 1}", "run.yaml:1: objective: must be a mapping with `use`, one of velocity"),
        ("losses: {repa: {use: [1]}}", "losses.repa: must be a mapping with `use`, one of attention_alignment, "),
        ("losses: {repa: 3}", "losses.repa: must be a mapping with `use`, one of attention_alignment, "),
        ("losses:\n  r:\n    use: repa\n    layr: 3\n    teacher: t",
         "run.yaml:4: losses.r.layr: unknown key; "),
        ("losses: {r: {use: repa, teacher: t, layr: 3}}", "(did you mean 'layer'?)"),
        ("losses: {c: {use: contrastive, weight: 1}}", "losses.c.weight: must be less than 1, got 1"),
        ("optimizer: {use: adamw, betas: [0.9]}", "run.yaml:1: optimizer.betas: "),
        ("[1, 2]", "run.yaml:1: must be a mapping of settings, got [1, 2]"),
    ],
)  # fmt: skip
def test_configuration_errors(text, message):
    assert message in errors(text)


def test_all_problems_come_together():
    assert len(errors("steps: 0\nseed: -1\nfoo: 1\noptimizer: {use: sgd}\n").splitlines()) == 4


def test_errors_cross_process_borders():
    with pytest.raises(ConfigError) as caught:
        parse_run_config({"steps": 0})
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.problems == caught.value.problems


def test_identity_leaves_out_names_and_infrastructure():
    def identity(**changes: object) -> str:
        return config_id(parse_run_config(changes))

    same = {identity(), identity(name="x"), identity(cache={"max_gb": 1.0})}
    same |= {identity(infrastructure={"workers": 2, "zero_stage": 3, "micro_batch": 4, "threads": 1})}
    assert len(same) == 1
    assert len({identity(), identity(seed=1), identity(steps=7), identity(precision="fp32")}) == 4


@pytest.mark.parametrize("name", compose.preset_names())
def test_presets_are_valid(name):
    source = compose.load_base(name)
    config = parse_run_config(source.data, source)
    assert config.name == name
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


def test_a_file_may_build_on_a_file_and_a_preset(tmp_path):
    write(tmp_path, "a.yaml", "base: embedded\nsteps: 7\nbatch_size: 4\n")
    config = compose.load_run_config(write(tmp_path, "b.yaml", "base: a.yaml\nsteps: 9\n"))
    assert (config.steps, config.batch_size, config.data.image_size) == (9, 4, 32)


def test_errors_of_a_base_point_into_its_file(tmp_path):
    write(tmp_path, "a.yaml", "base: embedded\n\nstepz: 7\n")
    with pytest.raises(ConfigError, match=r"a\.yaml:3: stepz: unknown key"):
        compose.load_run_config(write(tmp_path, "b.yaml", "base: a.yaml\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nbase: embeded\n",
         r"b\.yaml:2: base: must name a preset or an existing \.yaml file; must be one of "
         r"embedded, prx_1b_1024_pixels, prx_1b_256; got 'embeded' \(did you mean 'embedded'\?\)"),
        ("base: missing.yaml\n", r"b\.yaml:1: base: must name a preset"),
        ("base: [a]\n", r"b\.yaml:1: base: must name a preset or an existing \.yaml file, got \['a'\]"),
        ("base: b.yaml\n", r"b\.yaml:1: base: must not lead back to b\.yaml, got b\.yaml -> b\.yaml"),
        ("base: c.yaml\n", r"c\.yaml:1: base: must not lead back to b\.yaml, got b\.yaml -> c\.yaml -> b"),
    ],
)  # fmt: skip
def test_bad_bases(tmp_path, text, message):
    write(tmp_path, "c.yaml", "base: b.yaml\n")
    with pytest.raises(ConfigError, match=message):
        compose.load_run_config(write(tmp_path, "b.yaml", text))
