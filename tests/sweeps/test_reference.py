"""The generated reference: the committed files are the generated ones, and the schema agrees with the models."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import jsonschema
import pytest

from prx import registry
from prx.compose import PRESETS
from prx.config import RunConfig
from prx.errors import ConfigError, UserError
from prx.yamlsource import parse_yaml, read_yaml
from sweeps import __main__ as cli
from sweeps.catalogue import CATALOGUES
from sweeps.plan import make_plan
from sweeps.reference import command
from sweeps.reference.meaning import meanings, parse
from sweeps.reference.page import slug
from sweeps.reference.rules import rule, value
from sweeps.spec import SweepSpec, parse_spec

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "sweeps" / "configs").glob("*.yaml"))
HEAD = "name: s\nbase: embedded\n"
TRIAL = "trial: {steps: 300, eval_every: 100}\n"
AXES = "axes: {alignment: [none, repa_dinov2], tokenizer: [flux, repa_e]}\n"


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    return command.committed()


@pytest.fixture(scope="module")
def sweep(files) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(files["sweeps/sweep.schema.json"]))


def test_committed_files_are_the_generated_ones(files):
    assert set(files) == {"docs/yaml.md", "sweeps/sweep.schema.json", "sweeps/run.schema.json"}
    for path, text in files.items():
        assert (ROOT / path).read_text(encoding="utf-8") == text, f"{path}: run `prx-sweep schema --write`"


def test_the_schemas_are_schemas(files):
    for path in ("sweeps/sweep.schema.json", "sweeps/run.schema.json"):
        schema = json.loads(files[path])
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_sweeps_are_valid(path, sweep):
    sweep.validate(read_yaml(path).data)


def test_shipped_bases_and_levels_are_valid(files, sweep):
    run = jsonschema.Draft202012Validator(json.loads(files["sweeps/run.schema.json"]))
    presets = list(PRESETS.glob("*.yaml"))
    assert presets
    for path in presets:
        run.validate(read_yaml(path).data)
    patches = sweep.evolve(schema={"$ref": "#/$defs/patch", "$defs": sweep.schema["$defs"]})
    for path in CATALOGUES.glob("*.yaml"):
        for axis in read_yaml(path).data.values():
            for entry in axis.values():
                patches.validate(entry["patch"])


RIGHT = {
    "another name": "axes: {alignment: [none, {name: mine, patch: {losses.repa: {use: repa, teacher: t, layer: 1}}}]}",
    "settings of the base's own technique": AXES + "set: {objective: {shift: 2.0}, optimizer.lr: 1e-4}",
    "a name of the user's": AXES + "set: {losses.mine: {use: contrastive}, losses: {other: null}}",
    "designs": AXES + "design: {use: leave_one_out, full: {tokenizer: repa_e}}",
    "more seeds": AXES + "seeds: {start: 1, up_to: 3}",
    "stoppers": AXES + "scheduler: {use: none, stop: {target: {value: 0.1}, plateau: {evaluations: 2}}}",
    "trackers": AXES + "tracking: [{use: wandb, project: p, mode: offline}, {use: tensorboard}]",
    "a search": AXES + "search: {trials: 3, space: {losses.repa.weight: default, optimizer: default, "
    "losses.repa.stop_step: {choice: [100, never]}, optimizer.lr: {log_uniform: [1e-4, 1e-2]}}}",
}  # fmt: skip


@pytest.mark.parametrize("text", RIGHT.values(), ids=RIGHT)
def test_what_the_models_accept_the_schema_accepts(text, sweep):
    source = parse_yaml(HEAD + TRIAL + text, "s.yaml")
    parse_spec(source)
    sweep.validate(source.data)


WRONG = {
    "no trial": HEAD + AXES,
    "an unknown key": HEAD + TRIAL + AXES + "trail: {}",
    "an unknown key in a section": HEAD + AXES + "trial: {steps: 300, eval_every: 100, worker: 2}",
    "a name with a blank": "name: a b\nbase: embedded\n" + TRIAL + AXES,
    "an axis in capitals": HEAD + TRIAL + "axes: {Alignment: [none]}",
    "a level that is a truth value": HEAD + TRIAL + "axes: {alignment: [off, none]}",
    "a level without a patch": HEAD + TRIAL + "axes: {alignment: [none, {name: x}]}",
    "an axis without levels": HEAD + TRIAL + "axes: {alignment: []}",
    "a design": HEAD + TRIAL + AXES + "design: grit",
    "a metric": HEAD + TRIAL + AXES + "objectives: {cmd: min}",
    "a direction": HEAD + TRIAL + AXES + "objectives: {cmmd: max}",
    "a rule": HEAD + TRIAL + AXES + "scheduler: {use: halfing}",
    "a factor": HEAD + TRIAL + AXES + "scheduler: {use: halving, reduction_factor: 1}",
    "seeds": HEAD + TRIAL + AXES + "seeds: [zero]",
    "an exclusion without a reason": HEAD + TRIAL + AXES + "exclude: [{alignment: none}]",
    "a budget": HEAD + TRIAL + AXES + "budget: {hours: 0}",
    "a table of the article": HEAD + TRIAL + AXES + "article: latent_512",
    "a tracker": HEAD + TRIAL + AXES + "tracking: [{use: comet}]",
    "a sampler": HEAD + TRIAL + AXES + "search: {sampler: tree, trials: 3, space: {optimizer.lr: default}}",
    "a range": HEAD + TRIAL + AXES + "search: {trials: 3, space: {optimizer.lr: {log_unifrom: [1e-4, 1e-2]}}}",
    "a setting": HEAD + TRIAL + AXES + "set: {sampling.num_step: 3}",
    "a setting's type": HEAD + TRIAL + AXES + "set: {data.num_train: many}",
    "a setting that the sweep decides": HEAD + TRIAL + AXES + "set: {steps: 20}",
    "a setting that the sweep decides, in a section": HEAD + TRIAL + AXES + "set: {evaluation: {every: 20}}",
    "a technique": HEAD + TRIAL + AXES + "set: {optimizer: {use: lion}}",
    "another technique's setting": HEAD + TRIAL + AXES + "set: {optimizer: {use: adamw, momentum: 0.9}}",
    "a level's setting": HEAD + TRIAL + "axes: {x: [{name: a, patch: {}}, {name: b, patch: {losses.repa: {use: repa, "
    "teacher: t, lyer: 1}}}]}",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_what_the_models_refuse_the_schema_refuses(text, sweep):
    source = parse_yaml(text, "s.yaml")
    with pytest.raises(ConfigError):
        make_plan(parse_spec(source), source)
    assert not sweep.is_valid(source.data)


def models() -> list[type]:
    """All models that the reference shows, found by what their keys may be."""
    found: list[type] = []
    waiting = [SweepSpec, RunConfig, *(registry.resolve(*entry).Config for entry in registry.TECHNIQUES)]
    while waiting:
        model = waiting.pop()
        if model not in found:
            found.append(model)
            waiting += [part for part in _models_in(model.__pydantic_core_schema__) if part not in found]
    return found


def _models_in(part) -> list[type]:
    if isinstance(part, dict):
        own = [part["cls"]] if part.get("type") == "model" else []
        return own + [model for inner in part.values() for model in _models_in(inner)]
    if isinstance(part, (list, tuple)):
        return [model for inner in part for model in _models_in(inner)]
    return []


def test_every_key_has_a_meaning_and_nothing_else_has():
    found = models()
    assert len(found) > 40
    for model in found:
        told = meanings(model)
        assert set(model.model_fields) == set(told), f"{model.__qualname__}: its docstring needs Args: for each key"
        assert all(text.endswith((".", "...")) for text in told.values()), model.__qualname__


def test_headings_of_the_page_are_distinct(files):
    lines = [line for line in files["docs/yaml.md"].splitlines() if re.match("#+ (?!yaml-language-server)", line)]
    anchors = [slug(line.lstrip("# ")) for line in lines]
    assert len(set(anchors)) == len(anchors) > 50


def test_the_page_says_types_ranges_and_meanings(files):
    page = files["docs/yaml.md"]
    assert "\n| `weight` | number in (0, 1) | `0.05` | `log_uniform [0.01, 0.15]` | λ; 1 or more has no lower" in page
    assert "\n| `zero_stage` | whole number in [0, 3] or null | `null` | DeepSpeed ZeRO stage of a trial;" in page
    assert "\n| `alignment` | `repa_dinov2` | align block 1" in page


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "exclusiveMinimum": 0}, "whole number ≥ 1"),
        ({"type": "number", "minimum": 0, "exclusiveMaximum": 1}, "number in [0, 1)"),
        ({"type": "number", "maximum": 2}, "number ≤ 2"),
        ({"anyOf": [{"type": "boolean"}, {"const": "never"}]}, "true or false or `never`"),
        ({"type": "array", "items": {"type": "string"}}, "list of texts"),
        ({"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}, "list of 2 numbers"),
        ({"type": "object", "additionalProperties": {"enum": ["a", 1]}}, "mapping to one of `a`, `1`"),
        ({"$ref": "#/$defs/Known"}, "[known](#known)"),
        ({"$ref": "#/$defs/Other"}, "section"),
        ({}, "any value"),
    ],
)
def test_rules_in_words(schema, words):
    assert rule(schema, {"Known": "[known](#known)"}) == words


def test_values_are_written_as_in_yaml():
    assert [value(found) for found in (1e-15, 0.05, 1.0, True, None, "", "never", 10_000)] == [
        "`1e-15`", "`0.05`", "`1.0`", "`true`", "`null`", '`""`', "`never`", "`10000`",
    ]  # fmt: skip


def test_docstrings_are_read():
    prose, told = parse("""Do it.

    Source: somebody.

    Args:
        first: One line
            and another.
        second: Short.
    """)
    assert prose == "Do it."
    assert told == {"first": "One line and another.", "second": "Short."}


def test_an_unknown_format_is_an_error_with_the_choices(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prx-sweep", "schema", "--format", "jsn"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "--format: must be one of json, md; got 'jsn' (did you mean 'json'?)" in capsys.readouterr().err


def test_outside_of_a_checkout_nothing_is_written(tmp_path):
    with pytest.raises(UserError, match="must run in a checkout"):
        command.write(tmp_path)
    assert list(tmp_path.iterdir()) == []
