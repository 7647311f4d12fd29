"""A search of fakes on a real Ray, with early stopping and more seeds, killed between waves and run again."""

from __future__ import annotations

import io

import optuna
import pytest
from rich.console import Console

from sweeps.replicates import SeedWaves
from sweeps.report_end import print_end
from sweeps.results import read_results
from sweeps.run import run_sweep
from sweeps.search.mirror import open_storage
from tests.sweeps.fakes import trained
from tests.sweeps.searches import PARTS, STOP, WEIGHT, plan

SEARCH = (
    "  sampler: tpe\n  trials: 8\n  batch: 2\n  startup: 4\n"
    f"  space:\n    {WEIGHT}: {{log_uniform: [0.05, 2.0]}}\n    {STOP}: {{choice: [25%, 50%, never]}}\n"
)
MORE = (
    "scheduler: {use: halving, grace_steps: 10, reduction_factor: 2, noise_aware: false}\n"
    "seeds: {start: 1, add_to_top: 2, up_to: 2}\n"
)


def searched():
    return plan(SEARCH, more=MORE)


def run(store):
    output = io.StringIO()
    console = Console(file=output, width=10_000)
    outcome = run_sweep(searched(), store=store, parts=PARTS, max_concurrent=2, console=console)
    print_end(outcome, console)
    return outcome, output.getvalue()


@pytest.fixture(scope="module")
def whole(ray_here, tmp_path_factory):
    """The run that nobody disturbed."""
    return run(tmp_path_factory.mktemp("store"))


def rows(outcome):
    frame = read_results(outcome.results_path)
    measured = [c for c in frame.columns if not c.endswith("seconds") and not c.endswith("_second") and c != "replayed"]
    return frame[measured].sort_values(["trial_id", "step"], ignore_index=True)


def told(outcome):
    study = optuna.load_study(study_name="found/repa_dinov2", storage=open_storage("journal", outcome.folder.root))
    return [(t.params, t.state.name, t.values, t.intermediate_values, t.user_attrs) for t in study.trials]


def test_points_are_searched_stopped_early_and_told(whole):
    outcome, _ = whole
    assert outcome.exit_code == 0
    frame = rows(outcome)
    points = frame[frame["name"].str.contains("weight=")]
    assert points["cell_id"].nunique() == 8
    states = {name: group["state"].iloc[-1] for name, group in points[points["seed"] == 0].groupby("name")}
    assert set(states.values()) == {"complete", "pruned"}
    names = {"COMPLETE": "complete", "PRUNED": "pruned"}
    for params, state, values, curve, attrs in told(outcome):
        here = frame[(frame["cell_id"] == attrs["cell_id"]) & (frame["seed"] == 0)]
        assert names[state] == here["state"].iloc[-1]
        assert curve == dict(zip(here["step"], here["cmmd"], strict=True))
        assert values == [here["cmmd"].iloc[-1]]
        assert params[WEIGHT] == here[WEIGHT].iloc[-1]
        assert ("reason" in attrs) == (state == "PRUNED")


def test_the_best_get_another_seed_and_so_does_the_baseline(whole):
    frame = rows(whole[0])
    again = frame[(frame["seed"] == 1) & (frame["step"] == 40)]
    assert set(again["state"]) == {"complete"}
    assert "baseline" in set(again["name"])
    first = frame[(frame["seed"] == 0) & (frame["step"] == 40)].sort_values("cmmd")
    assert set(first["name"].head(2)) <= set(again["name"])


@pytest.mark.slow
def test_a_run_that_died_between_waves_ends_in_the_same_results(whole, tmp_path, monkeypatch):
    outcome, _ = whole

    class Died(RuntimeError):
        pass

    def die(self, outcomes):
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr(SeedWaves, "next", die)
        with pytest.raises(Died):
            run(tmp_path)
    again, _ = run(tmp_path)
    assert rows(again).equals(rows(outcome))
    assert told(again) == told(outcome)
    for home in (again.folder.root / "trials").iterdir():
        steps = trained(home)
        assert len(steps) == len(set(steps))


def test_the_same_search_again_trains_nothing(whole):
    outcome, _ = whole
    again, text = run(outcome.folder.root.parents[1])
    assert "everything is trained already" in text
    assert rows(again).equals(rows(outcome))
