"""What leaves a sweep: trials are found, their cards and recipes say what they are, pictures are drawn alone."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from rich.console import Console

from prx.compose import load_run_config
from prx.config import config_id
from prx.errors import UserError
from sweeps.api import Results, Sweep
from sweeps.export import card, draw, export_trial, find_trial, recipe
from sweeps.results import SweepFolder, TrialState, append_journal, collect, write_info, write_results, write_state
from tests.sweeps import fakes
from tests.sweeps.fakes import make_info

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path):
    """A sweep of two cells on two seeds, with configurations and figures and no weights."""
    folder, info = SweepFolder(tmp_path, "fake"), make_info("base", "repa", seeds=(0, 1))
    write_info(folder, info)
    for number, trial in enumerate(info.trials):
        home = folder.trial(trial.trial_id)
        metrics = {"cmmd": 0.5 - number / 10, "cmmd_se": 0.05, "num_samples": 64.0}
        append_journal(home, {"kind": "boundary", "step": 40, "metrics": metrics, "wall_seconds": 4.0,
                              "device_seconds": 4.0})  # fmt: skip
        write_state(home, TrialState("complete"))
        config = fakes.make_plan(trial.name).trials[0].config.model_copy(update={"seed": trial.seed})
        (home / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    write_results(collect(folder, info)[0], info.axes, folder.results)
    return tmp_path


def test_a_trial_is_found_by_its_id_its_cell_or_as_the_leader(store):
    assert find_trial("base-1", store).info.trial_id == "base-1"
    assert find_trial("fake", store).info.trial_id == "repa-1"
    assert find_trial("fake/base", store).info.trial_id == "base-0"
    assert find_trial("fake/base", store, seed=1).info.trial_id == "base-1"
    assert find_trial("fake", store, seed=0).info.trial_id == "repa-0"
    with pytest.raises(UserError, match=r"got 'base-1 \(seed 0\)'"):
        find_trial("base-1", store, seed=0)
    with pytest.raises(UserError, match=r"trial: 'fame/base' is no trial of .* must be one of fake; got 'fame'"):
        find_trial("fame/base", store)
    with pytest.raises(UserError, match=r"trial: must be one of base \(seed 0\).*; got 'rep'"):
        find_trial("fake/rep", store)


def test_the_card_says_what_was_measured_and_where_it_comes_from(store):
    text = card(find_trial("fake/repa", store, seed=1))
    assert "| CMMD | 0.2 ± 0.05 |" in text
    assert "From 64 samples" in text
    assert "FID" not in text
    for line in ("- sweep: fake", "- cell: repa", "- seed: 1", "- step: 40", "- trial: repa-1"):
        assert line in text.splitlines()


def test_the_recipe_is_the_trials_configuration(store, tmp_path):
    trial = find_trial("fake", store)
    text = recipe(trial)
    assert text.startswith("# repa of sweep fake, seed 1, cmmd 0.2 at step 40\n")
    (tmp_path / "recipe.yaml").write_text(text)
    assert config_id(load_run_config(tmp_path / "recipe.yaml")) == config_id(trial.config)


def test_the_recipe_of_several_workers_says_how_they_start(store):
    file = find_trial("fake", store).folder / "config.yaml"
    file.write_text(file.read_text().replace("workers: 1", "workers: 2"))
    found = recipe(find_trial("fake", store)).splitlines()
    assert found[1] == "# trains alone with: torchrun --nproc-per-node 2 -m prx train FILE"


def test_only_exported_folders_are_drawn_from(tmp_path):
    with pytest.raises(UserError, match="must be a folder that `prx-sweep export` wrote"):
        draw(tmp_path, "a red circle", tmp_path / "picture.png")
    (tmp_path / "run.yaml").write_text("base: embedded\n")
    (tmp_path / "model_index.json").write_text('{"_class_name": "PRXPipeline", "vae": ["diffusers", "AutoencoderKL"]}')
    with pytest.raises(UserError, match="cannot be loaded, export it again"):
        draw(tmp_path, "a red circle", tmp_path / "picture.png")


@pytest.mark.slow
def test_a_trained_trial_is_exported_and_drawn_in_another_process(tmp_path):
    """From a sweep to a picture by the command line, and the recipe trains alone to the same configuration."""
    sweep = Sweep.from_dict({
        "name": "leaving", "base": "embedded", "axes": {"alignment": ["none"]}, "scheduler": {"use": "none"},
        "trial": {"steps": 4, "eval_every": 4},
        "set": {"warmup_steps": 1, "data.num_train": 64, "data.num_reference": 48, "sampling.num_steps": 4,
                "evaluation": {"num_samples": 32, "grid": 4, "inception": None}},
    })  # fmt: skip
    results = sweep.run(tmp_path / "runs", max_concurrent=1, console=Console(file=io.StringIO()))
    assert results.exit_code == 0
    assert Results(results.folder).best().load_model() is not None
    command = [sys.executable, "-W", "ignore", "-m", "sweeps"]
    for arguments in (
        ["export", "leaving", "--out", str(tmp_path / "pipe"), "--store", str(tmp_path / "runs")],
        ["sample", str(tmp_path / "pipe"), "--prompt", "a large red circle", "--out", str(tmp_path / "picture.png")],
    ):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size == (32, 32)
    assert "| CMMD |" in (tmp_path / "pipe" / "README.md").read_text()
    assert config_id(load_run_config(tmp_path / "pipe" / "run.yaml")) == config_id(results.best().config)
    with pytest.raises(UserError, match="choose another folder to export to"):
        export_trial(results.best(), tmp_path / "pipe")
