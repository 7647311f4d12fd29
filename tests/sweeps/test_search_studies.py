"""Samplers on a known landscape, two objectives, and the studies' storage: databases, strangers, other spaces."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from statistics import median

import optuna
import pytest
from rich.console import Console

from prx.errors import ConfigError
from sweeps.cells import make_trial
from sweeps.leaderboard import render_leaderboard
from sweeps.ledger import Ledger
from sweeps.results import SweepFolder, read_results
from sweeps.run import preflight
from sweeps.search.mirror import Mirror, open_storage, study_name
from sweeps.search.sampling import Known, Result, propose
from tests.sweeps.searches import STOP, WEIGHT, Driver, plan, score

SPACE = f"  space:\n    {WEIGHT}: {{log_uniform: [0.05, 2.0]}}\n    optimizer.lr: {{log_uniform: [1.0e-4, 1.0e-2]}}\n"
MIXED = f"  space:\n    {WEIGHT}: {{log_uniform: [0.05, 2.0]}}\n    {STOP}: {{choice: [10, 20, 30, never]}}\n"


def values(sampler, trials=56):
    """Search the bowl without a driver; gives the values in the order in which they were proposed."""
    text = f"  sampler: {sampler}\n  trials: {trials}\n  batch: 4\n  startup: 8\n{SPACE}"
    here = plan(text, alignment="[repa_dinov2]")
    (study,) = here.search.studies
    proposals = list(here.search.proposals[study.name])
    cells = {cell.cell_id: cell for cell in here.cells}
    results, found = {}, []
    for wave in range(1, 1 + here.search.num_waves):
        for proposal in proposals[len(found) :]:
            value = score(make_trial(cells[proposal.cell_id], 0), 40)["cmmd"]
            results[proposal.cell_id] = Result("complete", (value,))
            found.append(value)
        known = Known(proposals, results)
        chosen = propose(study, here.spec.search, here.search.directions, known, wave=wave, wanted=4)
        cells |= {cell.cell_id: cell for _, cell in chosen}
        proposals += [proposal for proposal, _ in chosen]
    return found


@pytest.mark.parametrize("sampler", ["tpe", "multivariate_tpe", "cma_es", "nsga2"])
def test_samplers_learn_from_what_they_are_told(sampler):
    # The best there is is 1.025: a run that never stops REPA pays 1, and the last boundary 1/40.
    found = [value - 1.025 for value in values(sampler)]
    assert min(found) >= 0
    assert median(found[-20:]) < 0.4 * median(found[:9])


PROPOSE = """
from tests.sweeps.searches import plan
import sys
here = plan(sys.argv[1])
print([cell.name for cell in here.search.cells], [p.params for p in here.search.proposals["repa_dinov2"]])
from tests.sweeps.searches import Driver
from pathlib import Path
print(Driver(here, Path(sys.argv[2])).run().waves)
"""


@pytest.mark.slow
def test_another_process_chooses_the_same(tmp_path):
    """Hashes of strings differ between processes; nothing may hang on the order of a set."""
    text = f"  sampler: multivariate_tpe\n  trials: 10\n  batch: 3\n  startup: 4\n{MIXED}"
    said = []
    for seed in ("1", "2"):
        command = [sys.executable, "-W", "ignore", "-c", PROPOSE, text, str(tmp_path / seed)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONHASHSEED": seed},
                              timeout=240, check=True)  # fmt: skip
        said.append(done.stdout)
    assert said[0] == said[1]
    assert "weight=" in said[0]


def two(store):
    objectives = "objectives: {cmmd: min, adherence: max}\n"
    text = f"  sampler: nsga2\n  trials: 12\n  batch: 4\n{MIXED}"
    return Driver(plan(text, more=objectives), store).run()


def test_two_objectives_have_a_front(tmp_path):
    driver = two(tmp_path)
    storage = open_storage("journal", driver.folder.root)
    study = optuna.load_study(study_name="found/repa_dinov2", storage=storage)
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MAXIMIZE"]
    assert study.metric_names == ["cmmd", "adherence"]
    frame = read_results(driver.folder.results)
    full = frame[(frame["step"] == 40)]
    best = {
        row["name"]
        for _, row in full.iterrows()
        if not any(
            (other["cmmd"] <= row["cmmd"] and other["adherence"] >= row["adherence"])
            and (other["cmmd"] < row["cmmd"] or other["adherence"] > row["adherence"])
            for _, other in full.iterrows()
        )
    }
    output = io.StringIO()
    Console(file=output, width=10_000).print(render_leaderboard(frame, driver.ledger.info))
    (line,) = [line for line in output.getvalue().splitlines() if line.startswith("Not beaten on both")]
    assert "cmmd (min) and adherence (max)" in line
    assert set(line.rstrip(" .").partition(": ")[2].split("; ")) == best
    assert {trial.user_attrs["cell"] for trial in study.best_trials} <= best
    assert len(best) > 1


def test_results_have_a_column_for_every_searched_path(tmp_path):
    frame = read_results(two(tmp_path).folder.results)
    assert str(frame[WEIGHT].dtype) == "float64"
    assert set(frame[STOP].dropna()) <= {"10", "20", "30", "never"}
    assert "never" in set(frame[STOP])
    assert frame.loc[frame["name"] == "baseline", [WEIGHT, STOP]].isna().all(axis=None)
    assert frame.loc[frame["name"] == "repa_dinov2", WEIGHT].iloc[0] == 0.5


def test_a_database_holds_the_studies_of_many_sweeps(tmp_path):
    url = f"sqlite:///{tmp_path}/studies.db"
    text = f"  sampler: tpe\n  trials: 6\n  batch: 2\n  startup: 2\n  storage: {url}\n{MIXED}"
    driver = Driver(plan(text), tmp_path / "a").run()
    study = optuna.load_study(study_name="found/repa_dinov2", storage=url)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 7
    assert not (driver.folder.root / "study.journal").exists()
    preflight(plan(text), driver.folder, None, None)
    with pytest.raises(ConfigError) as error:
        preflight(plan(text), SweepFolder(tmp_path / "b", "found"), None, None)
    assert "search.storage: holds the study 'found/repa_dinov2' of another run or sweep" in str(error.value)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("storage", ["journal", "sqlite"])
def test_a_study_that_somebody_deletes_meanwhile_ends_no_sweep(storage, tmp_path, caplog):
    where = f"sqlite:///{tmp_path}/studies.db" if storage == "sqlite" else "journal"
    here = plan(f"  sampler: random\n  trials: 2\n  storage: {where}\n{MIXED}")
    (study,) = here.search.studies
    mirror = Mirror(here.search, "found", tmp_path, "me", ["cmmd"])
    first, second, *_ = here.search.proposals[study.name]
    mirror.tell(study, 0, first, Result())
    optuna.delete_study(study_name=study_name("found", study), storage=open_storage(where, tmp_path))
    mirror.tell(study, 0, first, Result("complete", (1.0,), {10: 1.0}))
    mirror.tell(study, 1, second, Result())
    assert "the next run completes it" in caplog.text


def test_a_database_that_cannot_be_opened_is_refused_before_anything_is_written(tmp_path):
    for url, why in ((f"sqlite:///{tmp_path}/no/such/folder/s.db", "unable to open"), ("nosql://x", "nosql")):
        text = f"  sampler: tpe\n  trials: 4\n  storage: {url}\n{MIXED}"
        with pytest.raises(ConfigError) as error:
            preflight(plan(text), SweepFolder(tmp_path / "c", "found"), None, None)
        assert "search.storage: the database cannot be opened: " in str(error.value)
        assert why in str(error.value)
        assert not (tmp_path / "c").exists()


def test_another_search_in_the_same_folder_is_refused(tmp_path):
    text = f"  sampler: tpe\n  trials: 4\n  startup: 2\n{MIXED}"
    folder = Driver(plan(text), tmp_path).run().folder
    before = sorted(path for path in folder.root.rglob("*"))
    others = {
        "search.space: differs from the search": text.replace("0.05", "0.06"),
        "search.sampler: differs from the search": text.replace("tpe", "random"),
        "search.seed: differs from the search": text + "  seed: 3\n",
        "objectives: differs from the search": text,
    }
    for message, other in others.items():
        more = "objectives: {adherence: max}\n" if message.startswith("objectives") else ""
        with pytest.raises(ConfigError) as error:
            preflight(plan(other, more=more), folder, None, None)
        assert message in str(error.value)
        assert "give the sweep another name" in str(error.value)
    preflight(plan(text.replace("trials: 4", "trials: 9")), folder, None, None)
    untrained = Driver(plan(text), tmp_path / "untrained").folder
    preflight(plan(others["search.space: differs from the search"]), untrained, None, None)
    assert sorted(path for path in folder.root.rglob("*") if path.name != "logs") == before
    assert isinstance(Driver(plan(text), tmp_path).ledger, Ledger)
