"""More seeds for the contenders: who gets one, when it ends, and that a killed sweep decides the same."""

from __future__ import annotations

import pandas as pd
import pytest

from prx.errors import ConfigError
from prx.yamlsource import parse_yaml
from sweeps.replicates import contenders
from sweeps.results import SweepInfo, TrialInfo
from sweeps.spec import parse_spec
from tests.sweeps.searches import Driver, Killed, plan

FOUR = "[none, repa_dinov2, repa_dinov3, irepa_dinov2]"
SEEDS = "seeds: {start: 1, add_to_top: 2, up_to: 4}\n"


def frame(values, steps=40):
    """A table from cell -> its values by seed, with the metric's own error of 0.1."""
    rows = [
        {"cell_id": name, "name": name, "seed": seed, "step": steps, "cmmd": value, "cmmd_se": 0.1, "state": "complete"}
        for name, found in values.items()
        for seed, value in enumerate(found)
    ]
    trials = tuple(TrialInfo(f"{r['name']}-{r['seed']}", r["name"], r["name"], False, r["seed"], {}) for r in rows)
    return pd.DataFrame(rows), SweepInfo("fake", "cmmd", "min", 40, 10, ("alignment",), trials)


def test_one_seed_tells_nobody_apart():
    assert contenders(*frame({"a": [1.0], "b": [9.0], "c": [5.0], "d": [20.0]}), 1, 3) == ["a", "c", "b"]


def test_a_leader_beyond_the_noise_of_the_pairs_stands_alone():
    apart = {"a": [1.0, 2.0, 3.0], "b": [1.51, 2.49, 3.5], "c": [9.0, 1.0, 5.0]}
    # b trails by a half at every seed; c's mean is far, but it swings by more.
    assert contenders(*frame(apart), 3, 3) == ["a", "c"]
    assert contenders(*frame(apart), 3, 2) == []


def test_cells_without_every_seed_or_the_full_length_do_not_compete():
    assert contenders(*frame({"a": [1.0], "b": [1.0, 1.1], "c": [2.0, 1.0]}), 2, 3) == ["b", "c"]
    table, info = frame({"a": [1.0], "b": [2.0]}, steps=20)
    assert contenders(table, info, 1, 3) == []
    assert contenders(pd.DataFrame(), info, 1, 3) == []


def test_holm_keeps_a_cell_that_one_comparison_alone_would_drop():
    # Paired differences of mean 1 and deviation 0.69: p is 0.03 alone, and 0.06 where one more cell is compared.
    pair = {"a": [0.0] * 5, "b": [0.2, 1.0, 1.8, 0.4, 1.6]}
    assert contenders(*frame(pair), 5, 9) == []
    assert contenders(*frame(pair | {"c": [6.0, -4.0, 6.0, -3.0, 5.0]}), 5, 9) == ["a", "b", "c"]


def test_ties_get_seeds_up_to_the_end_and_the_baseline_always(tmp_path):
    driver = Driver(plan(alignment=FOUR, more=SEEDS), tmp_path, noise=20.0).run()
    # Two contenders and the baseline, which may be one of them.
    assert [len(wave) for wave in driver.waves] == [4, 3, 2, 2]
    for count, wave in enumerate(driver.waves[1:], start=1):
        assert f"baseline {count}" in wave


def test_it_ends_when_the_leader_stands_alone(tmp_path):
    # Without noise the pairs differ by the same at every seed: two tell.
    driver = Driver(plan(alignment="[none, repa_dinov2]", more=SEEDS), tmp_path).run()
    assert driver.waves == [["baseline 0", "repa_dinov2 0"], ["baseline 1", "repa_dinov2 1"]]


def test_a_killed_sweep_gives_seeds_to_the_same_cells(tmp_path):
    here = plan(alignment=FOUR, more=SEEDS)
    whole = Driver(here, tmp_path / "whole", noise=20.0).run()
    for kill in (2, 5, 8):
        with pytest.raises(Killed):
            Driver(here, tmp_path / str(kill), order=kill, kill_after=kill, noise=20.0).run()
        assert Driver(here, tmp_path / str(kill), noise=20.0).run().waves == whole.waves


def test_points_of_a_search_get_seeds_too(tmp_path):
    space = "  sampler: random\n  trials: 5\n  space: {losses.repa.weight: {log_uniform: [0.05, 2.0]}}\n"
    driver = Driver(plan(space, more=SEEDS), tmp_path, noise=1.0).run()
    assert [len(wave) for wave in driver.waves[:2]] == [7, 3]
    assert any("weight=" in name for name in driver.waves[1])


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ("{start: 2, up_to: 2}", "f.yaml:4: seeds.up_to: must be more than seeds.start (2), got 2"),
        ("{start: 0}", "f.yaml:4: seeds.start: must be greater than 0, got 0"),
        ("{add_to_top: 1}", "f.yaml:4: seeds.add_to_top: must be greater than or equal to 2, got 1"),
        ("{begin: 1}", "f.yaml:4: seeds.begin: unknown key"),
        ("[]", "f.yaml:4: seeds: list should have at least 1 item"),
        ("[0, x]", "f.yaml:4: seeds[1]: must be a valid integer, got 'x'"),
    ],
)
def test_bad_seeds(seeds, message):
    trial = "trial: {steps: 40, eval_every: 10}"
    text = f"name: f\nbase: embedded\naxes: {{alignment: [none]}}\nseeds: {seeds}\n{trial}\n"
    with pytest.raises(ConfigError) as error:
        parse_spec(parse_yaml(text, "f.yaml"))
    assert message in str(error.value)
