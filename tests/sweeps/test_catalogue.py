"""The shipped catalogues: every level is a run, in both worlds, and says where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest

from prx import recipe, registry
from prx.compose import load_base, preset_names
from prx.config import RunConfig, config_id, parse_run_config
from prx.yamlsource import Source, merge
from sweeps.benchmarks.synthetic import write_stand_ins
from sweeps.catalogue import catalogue_names, load_catalogue
from sweeps.patches import clash, read_patch
from sweeps.techniques import levels, uses

BASES = {"embedded": "embedded", "real": "prx_1b_256"}
OFF = {
    "alignment": "none", "objective": "flow_matching", "tokenizer": "flux", "perceptual": "none", "routing": "none",
    "optimizer": "adamw", "ema": "none", "resolution": "none", "captions": "long", "prompts": "long_prompts",
    "data": "synthetic",
}  # fmt: skip
PARTNERS = {
    "perceptual": {"tokenizer": "pixels", "objective": "x_prediction"},
    "tokenizer=repa_e_end_to_end": {"alignment": "repa_dinov2"},
}
"""What a level cannot be trained without."""


@cache
def shipped(name: str) -> Source:
    return load_catalogue(name, Source(None))


@cache
def patch_of(catalogue: str, axis: str, level: str) -> Source:
    patch, wrong = read_patch(shipped(catalogue), (axis, level, "patch"))
    assert wrong == []
    return patch


def composed(catalogue: str, chosen: Mapping[str, str], **changes: Any) -> Source:
    source = merge(load_base(BASES[catalogue]), Source({"infrastructure": {"zero_stage": 1, "micro_batch": None}}))
    for axis, level in chosen.items():
        source = merge(source, patch_of(catalogue, axis, level))
    return merge(source, Source(changes))


def run_of(catalogue: str, chosen: Mapping[str, str]) -> RunConfig:
    source = composed(catalogue, chosen)
    return parse_run_config(source.data, source)


EVERY = [(catalogue, axis, level) for catalogue, axis, level, _ in levels()]


@pytest.fixture
def models(monkeypatch, tmp_path):
    """Folders with the sizes of published models in the place of hub ids."""
    write_stand_ins(tmp_path)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(("catalogue", "axis", "level"), EVERY, ids=lambda part: part)
def test_every_level_can_be_trained(catalogue, axis, level):
    partners = PARTNERS.get(f"{axis}={level}", PARTNERS.get(axis, {}) if level != "none" else {})
    config = run_of(catalogue, partners | {axis: level})
    assert recipe.problems(config) == []
    assert config_id(parse_run_config(config.model_dump(mode="json"))) == config_id(config)


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("needy", ["perceptual=lpips", "perceptual=p_dino", "tokenizer=repa_e_end_to_end"])
@pytest.mark.parametrize("catalogue", catalogue_names())
def test_a_level_without_its_partner_is_found_from_the_configuration(catalogue, needy):
    axis, _, level = needy.partition("=")
    assert recipe.problems(run_of(catalogue, {axis: level}))


@pytest.mark.parametrize("catalogue", catalogue_names())
def test_levels_of_one_axis_train_different_runs(catalogue):
    found = shipped(catalogue).data
    for axis, entries in found.items():
        identities = [config_id(run_of(catalogue, {axis: level})) for level in entries]
        assert len(set(identities)) == len(identities), axis


@pytest.mark.parametrize("catalogue", catalogue_names())
def test_the_level_that_is_off_undoes_every_other(catalogue):
    """So that it is off whatever the base says, settings of optimizer and clipping aside."""
    for axis, off in OFF.items():
        for level in shipped(catalogue).data[axis]:
            undone = composed(catalogue, {axis: level})
            config = parse_run_config(merge(undone, patch_of(catalogue, axis, off)).data)
            plain = run_of(catalogue, {axis: off})
            for section in ("losses", "routing", "ema", "denoiser", "sampling"):
                assert getattr(config, section) == getattr(plain, section), (axis, level)
            for section in ("objective", "tokenizer", "optimizer"):
                assert getattr(config, section).use == getattr(plain, section).use, (axis, level)
            assert config.data.captions == plain.data.captions
            assert (config.data.train, config.data.mixture, config.data.subset) == (
                plain.data.train, None, plain.data.subset,
            )  # fmt: skip


@pytest.mark.parametrize("catalogue", catalogue_names())
def test_a_cells_name_says_what_is_on(catalogue):
    """Cells are named by levels without their axes; only what is off may be called alike."""
    found = shipped(catalogue).data
    names = [level for axis in found for level in found[axis] if level != OFF.get(axis)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("catalogue", catalogue_names())
def test_axes_do_not_write_the_same_setting(catalogue):
    """Any two axes can be in one sweep: their order means nothing."""
    found = shipped(catalogue).data
    patches = {(axis, level): patch_of(catalogue, axis, level) for axis in found for level in found[axis]}
    base = load_base(BASES[catalogue])
    for one, first in patches.items():
        for two, second in patches.items():
            if one[0] < two[0]:
                assert clash(base, first, second) is None, (one, two)


def test_both_worlds_have_the_same_axes_and_levels():
    embedded, real = (shipped(name).data for name in ("embedded", "real"))
    assert list(embedded) == list(real)
    missing = {axis: set(real[axis]) ^ set(embedded[axis]) for axis in real}
    assert {axis: names for axis, names in missing.items() if names} == {"tokenizer": {"dc_ae"}}


def test_levels_say_what_they_do_and_where_they_come_from():
    for catalogue, axis, level, entry in levels():
        assert len(entry["summary"]) <= 120
        if axis in {"alignment", "routing", "perceptual"} and level != "none":
            assert "arXiv:" in entry["source"], (catalogue, axis, level)


def test_every_technique_is_a_level_of_both_worlds():
    for catalogue in catalogue_names():
        used = {use for name, _, _, entry in levels() if name == catalogue for use in uses(entry["patch"])}
        assert used == set(registry.TECHNIQUES)


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("name", preset_names())
def test_every_preset_can_be_trained(name):
    source = load_base(name)
    assert recipe.problems(parse_run_config(source.data, source)) == []


def test_the_pixel_preset_is_the_articles():
    source = load_base("prx_1b_1024_pixels")
    shape = recipe.shape_of(parse_run_config(source.data, source))
    assert (shape.channels, shape.num_tokens, shape.depth, shape.width) == (3, 1024, 16, 1792)
    assert {"pixels", "clean_prediction"} <= shape.provides
