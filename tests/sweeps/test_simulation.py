"""Simulated sweeps: what is read from a table, what is drawn, and what is said of the outcome."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from prx.errors import UserError
from sweeps.__main__ import app
from sweeps.benchmarks.__main__ import app as benchmarks
from sweeps.benchmarks.early_stopping import foresight
from sweeps.simulation.curves import Curve, CurveSet, recorded
from sweeps.simulation.simulate import Arrival, Truth, simulate
from sweeps.simulation.study import arrivals_of, read_curves, study
from sweeps.simulation.synthetic import Model, grid_info, synthetic
from sweeps.stopping.spec import SchedulerSpec
from tests.sweeps import fakes

HALVING = SchedulerSpec(use="halving", reduction_factor=3)


def table(curves, **changes):
    rows = [
        {
            "trial_id": c.info.trial_id, "cell_id": c.info.cell_id, "name": c.info.name, "seed": c.info.seed,
            "is_baseline": c.info.is_baseline, "step": step, "state": "complete", "cmmd": value, "cmmd_se": se,
            "device_seconds": step * c.step_seconds,
        } | changes
        for c in curves.curves for step, (value, se) in c.values.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def curves():
    return synthetic(grid_info(9, 2, 120, 20), Model(), np.random.default_rng(0))


def test_curves_survive_the_table(curves, tmp_path):
    path = tmp_path / "results.parquet"
    table(curves).to_parquet(path)
    found = read_curves(path, "cmmd")
    assert (found.info.steps, found.info.eval_every, found.seeds) == (120, 20, (0, 1))
    assert [(c.info.trial_id, c.values, c.fails_at) for c in found.curves] == [
        (c.info.trial_id, c.values, None) for c in curves.curves
    ]
    assert simulate(found, HALVING, Arrival(2)) == simulate(curves, HALVING, Arrival(2))


def test_the_model_repeats_itself_and_falls():
    one, two = (synthetic(grid_info(3, 1, 120, 20), Model(), np.random.default_rng(4)) for _ in range(2))
    assert one == two
    for curve in synthetic(grid_info(3, 1, 120, 20), Model(noise=0.0), np.random.default_rng(0)).curves:
        values = [value for value, _ in curve.values.values()]
        assert values == sorted(values, reverse=True)


def test_a_recorded_failure_fails_again_and_a_pruned_trial_is_no_whole_curve(curves):
    frame = table(curves)
    short = frame[(frame["trial_id"] != "c003-0") | (frame["step"] <= 60)].copy()
    message = r"t: trial c003-0 \(c003, seed 0\) ends at step 60 of 120 \(complete\); curves"
    with pytest.raises(UserError, match=message):
        recorded(short, "cmmd", "t")
    short.loc[short["trial_id"] == "c003-0", "state"] = "failed"
    outcome = simulate(recorded(short, "cmmd", "t"), SchedulerSpec(), Arrival(2))
    assert (outcome.trials["c003-0"].steps, outcome.trials["c003-0"].state) == (60, "failed")
    assert outcome.saved == 0.0


@pytest.mark.parametrize(
    ("changes", "metric", "message"),
    [
        ({}, "cmd", "got 'cmd' (did you mean 'cmmd'?)"),
        ({}, "fid", "t: must be a table of results, but has no column fid, fid_se"),
        ({"cmmd": float("nan")}, "cmmd", "t: cmmd must be measured at every boundary"),
    ],
)
def test_what_is_no_table_of_curves_is_refused(curves, changes, metric, message):
    with pytest.raises(UserError) as caught:
        recorded(table(curves, **changes), metric, "t")
    assert message in str(caught.value)


def test_the_truth_is_what_the_whole_sweep_says():
    quiet = synthetic(grid_info(9, 3, 120, 20), Model(noise=0.0, run_noise=0.0), np.random.default_rng(0))
    truth = Truth(quiet)
    finals = {c.info.name: c.values[120][0] for c in quiet.curves if c.info.seed == 0}
    assert truth.best == min(finals, key=finals.get)
    full = simulate(quiet, SchedulerSpec(), Arrival(2))
    assert truth.kept_best(full)
    assert truth.kept_as_good(full)
    assert truth.regret(full) == 0.0
    others = [c for c in quiet.curves if c.info.name != truth.best]
    lost = simulate(quiet.of(others), SchedulerSpec(), Arrival(2))
    assert not truth.kept_best(lost)
    assert not truth.kept_as_good(lost)
    assert truth.regret(lost) > 0.0
    noisy = synthetic(grid_info(9, 3, 120, 20), Model(noise=2.0, spread=0.01), np.random.default_rng(0))
    assert len(Truth(noisy).as_good()) > 4


def test_halving_saves_over_a_half_and_keeps_one_as_good(curves):
    """On curves as the defaults were chosen on: 27 cells, five seeds, six evaluations."""
    saved = []
    for case in range(5):
        grid = synthetic(grid_info(27, 5, 120, 20), Model(), np.random.default_rng(100 + case))
        found = study(grid, SchedulerSpec(use="halving"), arrivals_of(2, 4), "")
        assert found.verdicts == 1
        assert found.kept_as_good == 1.0
        saved += found.saved
    assert sum(saved) / len(saved) > 0.55


def test_simulate_shows_every_rule(curves, tmp_path):
    path = tmp_path / "results.parquet"
    table(curves).to_parquet(path)
    done = CliRunner().invoke(app, ["simulate", str(path), "--arrivals", "3", "--workers", "3"])
    assert done.exit_code == 0, done.output
    for word in ("halving", "asha", "hyperband", "median", "none", "recorded"):
        assert word in done.output
    assert "18 trials of 120 steps, cmmd every 20; median (least to most) of 3 arrivals on 3 workers." in done.output
    refused = CliRunner().invoke(app, ["simulate", str(path), "--grace-steps", "30"])
    assert isinstance(refused.exception, UserError)
    assert "--grace-steps: must be a multiple of 20, got 30" in str(refused.exception)


def test_simulate_draws_curves_for_a_sweep(tmp_path):
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("name: s\nbase: embedded\naxes: {objective: [flow_matching, contrastive]}\nseeds: [0, 1]\n"
                     "trial: {steps: 300, eval_every: 100}\nscheduler: {use: halving}\n")  # fmt: skip
    done = CliRunner().invoke(app, ["simulate", str(sweep), "--arrivals", "2"])
    assert done.exit_code == 0, done.output
    assert "4 trials of 300 steps" in done.output
    assert "drawn from a model" in done.output


def test_foresight_is_the_rank_correlation_of_means_with_the_end():
    info = fakes.make_info("a", "b", "c", seeds=(0, 1))
    early = {"a": (1.0, 3.0), "b": (4.0, 6.0), "c": (7.0, 1.0)}  # means 2, 5, 4
    made = [
        Curve(trial, {10: (early[trial.name][trial.seed], 0.1), 20: (-end, 0.1), 40: (end, 0.1)})
        for trial, end in ((trial, ord(trial.name)) for trial in info.trials)
    ]
    assert foresight(CurveSet(info, tuple(made))) == pytest.approx({10: 0.5, 20: -1.0})


def test_the_benchmark_compares_seed_by_seed_and_all_together(curves, tmp_path):
    path = tmp_path / "results.parquet"
    table(curves).to_parquet(path)
    done = CliRunner().invoke(benchmarks, ["early_stopping", str(path), "--arrivals", "5"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert sum("together" in line and "halving" in line for line in lines) == 2
    for use in ("halving", "asha", "none"):
        assert [line.split()[2] for line in lines if line.split()[:2] == [use, "seed"]] == ["0", "1"]
    unfinished = table(curves)
    unfinished.loc[unfinished["seed"] == 1, "state"] = "running"
    unfinished = unfinished[(unfinished["seed"] == 0) | (unfinished["step"] <= 40)]
    unfinished.to_parquet(path)
    one = CliRunner().invoke(benchmarks, ["early_stopping", str(path), "--arrivals", "2", "--seeds", "0"])
    assert one.exit_code == 0, one.output
    assert "9 trials, cmmd" in one.output
    one = CliRunner().invoke(benchmarks, ["early_stopping", str(path), "--seeds", "7"])
    assert "--seeds: must be among 0, 1, got 7" in str(one.exception)


@pytest.mark.parametrize("content", [b"", b"a table of another kind"])
def test_a_file_that_is_no_table_is_refused_once_and_by_its_own_rule(tmp_path, content):
    path = tmp_path / "photos.parquet"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"photos\.parquet: must be a table of results in Parquet \(") as caught:
        read_curves(path, "cmmd")
    assert str(caught.value).count(str(path)) == 1
    assert "writes it anew" not in str(caught.value)
