"""Every table and chart says under which settings its figures were measured."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import pytest
import yaml
from rich.console import Console

from prx.yamlsource import parse_yaml
from sweeps import measured_with
from sweeps.leaderboard import render_leaderboard
from sweeps.plan import make_plan
from sweeps.report.formats import markdown, write_as
from sweeps.report.gather import gather
from sweeps.report.page import render
from sweeps.results import SweepFolder, read_info, write_info, write_results
from sweeps.session import sweep_info
from sweeps.spec import parse_spec
from tests.sweeps import stored
from tests.sweeps.simulated import SETTINGS, frame_of, info_of, measured

ALIKE = "Measured with 10 sampling steps, guidance 3.5 (text), the model's own weights, 192 samples."
APART = {"repa_e": {"guidance_scale": 5.0}}


def info_like(**changed):
    return measured(replace(info_of(stored.cells(), range(2)), name="simulated"), **changed)


def printed(info):
    console = Console(width=140, no_color=True)
    with console.capture() as capture:
        console.print(render_leaderboard(frame_of(info, stored.truth), info))
    return capture.get()


def test_a_plan_writes_down_how_each_cell_is_measured(tmp_path):
    levels = [{"name": f"scale_{scale}", "patch": {"sampling.guidance_scale": scale}} for scale in (2, 5)]
    sweep = {"name": "measured", "base": "embedded", "axes": {"guidance": levels},
             "budget": {"price_per_device_hour": 2.5}, "trial": {"steps": 300, "eval_every": 100}}  # fmt: skip
    source = parse_yaml(yaml.safe_dump(sweep, sort_keys=False), "measured.yaml")
    plan = make_plan(parse_spec(source), source)
    folder = SweepFolder(tmp_path, "measured")
    write_info(folder, sweep_info(plan))
    found = read_info(folder)
    config = plan.trials[0].config
    assert found.trials[0].measured == {
        **config.sampling.model_dump(mode="json"),
        "num_samples": config.evaluation.num_samples,
        "image_size": 32,
        "reference": "embedded:reference",
        "prompts": "caption_long",
    }
    assert [trial.measured["guidance_scale"] for trial in found.trials] == [2.0, 5.0]
    assert found.price_per_device_hour == 2.5


def test_what_an_older_version_wrote_reads_and_claims_nothing(tmp_path):
    folder = stored.store_sweep(tmp_path)
    content = json.loads(folder.info.read_text())
    content.pop("price_per_device_hour")
    for trial in content["trials"]:
        trial.pop("measured")
    folder.info.write_text(json.dumps(content))
    material = gather(folder)
    assert measured_with.lines(material.info) == []
    assert material.full_name == "CMMD"
    assert "Measured with" not in render(material)


def test_what_an_older_version_did_not_write_down_is_in_its_configurations(tmp_path):
    folder = stored.store_sweep(tmp_path, samples=False)
    for trial in read_info(folder).trials:
        config = stored.config_of(trial)
        scale = 5.0 if trial.levels["tokenizer"] == "repa_e" else 3.5
        config["sampling"] = {"num_steps": 10, "guidance_scale": scale, "guidance": "text", "weights": "model"}
        config["evaluation"]["num_samples"] = 192
        (folder.trial(trial.trial_id) / "config.yaml").write_text(yaml.safe_dump(config))
    material = gather(folder)
    assert measured_with.lines(material.info)[0].endswith(
        "reference /nowhere, prompts from caption, unless a row says otherwise."
    )
    assert material.own_settings["repa_e"] == "guidance 5"
    assert set(pd.read_csv(write_as(folder, "csv", None))["sampling.guidance_scale"]) == {3.5, 5.0}
    (folder.trial(material.first_trial(material.cells[1].cell_id)) / "config.yaml").unlink()
    last = [t.trial_id for t in material.info.trials if t.cell_id == material.cells[1].cell_id][-1]
    (folder.trial(last) / "config.yaml").unlink()
    assert measured_with.lines(gather(folder).info) == []


def test_settings_that_all_cells_share_stand_in_one_line(tmp_path):
    info = info_like()
    assert measured_with.lines(info) == [ALIKE]
    assert ALIKE in printed(info)
    material = gather(stored.store_sweep(tmp_path, info, samples=False))
    assert f"\n{ALIKE}\n" in markdown(material)
    page = render(material)
    assert ALIKE.replace("'", "&#39;") in page
    assert "<figcaption>CMMD@num_steps=10,guidance_scale=3.5" in page


def test_settings_in_which_cells_differ_stand_in_their_rows(tmp_path):
    info = info_like(**APART)
    (line, warning) = measured_with.lines(info)
    assert line == ALIKE.replace("192 samples.", "192 samples, unless a row says otherwise.")
    assert warning == "Such rows were measured in another way: part of their difference is that."
    assert "repa_e (2 seeds; measured with guidance 5)" in printed(info)
    assert "baseline (2 seeds) " in printed(info)
    assert "repa_dinov2 (2 seeds) " in printed(info)
    material = gather(stored.store_sweep(tmp_path, info, samples=False))
    assert "| repa\\_e (measured with guidance 5) |" in markdown(material)
    assert "<small>measured with guidance 5</small>" in render(material)
    assert material.full_name == "CMMD@num_steps=10"


def test_prompts_and_reference_are_said_too():
    info = measured(info_of(stored.cells()), SETTINGS | {"reference": "data/photos", "prompts": "caption_long"},
                    repa_e={"prompts": "caption_short"})  # fmt: skip
    assert measured_with.lines(info)[0].endswith(
        "192 samples, reference data/photos, prompts from caption_long, unless a row says otherwise."
    )
    assert measured_with.own(info)["repa_e"] == {"prompts": "caption_short"}
    assert measured_with.words({"prompts": "caption_short"}) == "prompts from caption_short"


def test_pictures_of_another_size_are_told_apart():
    info = measured(info_of(stored.cells()), SETTINGS | {"image_size": 32}, repa_e={"image_size": 64})
    line, warning = measured_with.lines(info)
    assert line == ALIKE.replace("samples.", "samples, 32² pixels, unless a row says otherwise.")
    assert warning.startswith("Such rows were measured in another way")
    assert measured_with.words(measured_with.own(info)["repa_e"]) == "64² pixels"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "CMMD@num_steps=10,guidance_scale=3.5"),
        (
            {"weights": "ema", "guidance": "routing"},
            "CMMD@num_steps=10,guidance_scale=3.5,guidance=routing,weights=ema",
        ),
    ],
)
def test_the_full_name_leaves_out_only_what_is_as_by_default(changes, name):
    info = measured(info_of(stored.cells()), SETTINGS | changes)
    assert measured_with.full_name("CMMD", info) == name


@pytest.mark.parametrize(("form", "read"), [("csv", pd.read_csv), ("parquet", pd.read_parquet)])
def test_exported_tables_carry_the_settings_of_each_row(tmp_path, form, read):
    folder = stored.store_sweep(tmp_path, info_like(**APART), samples=False)
    found = read(write_as(folder, form, None))
    scales = found.groupby("tokenizer")["sampling.guidance_scale"].unique()
    assert {name: list(values) for name, values in scales.items()} == {"flux": [3.5], "repa_e": [5.0]}
    assert set(found["sampling.weights"]) == {"model"}
    assert set(found["sampling.num_steps"]) == {10}


def test_a_searched_setting_keeps_its_own_column(tmp_path):
    info = replace(info_like(), searched={"sampling.guidance_scale": True})
    frame = frame_of(info, stored.truth)
    frame["sampling.guidance_scale"] = 7.0
    folder = stored.store_sweep(tmp_path, info, frame, samples=False)
    write_results(frame.to_dict("records"), info.axes, folder.results, info.searched)
    assert set(pd.read_parquet(write_as(folder, "parquet", None))["sampling.guidance_scale"]) == {7.0}
