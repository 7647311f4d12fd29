"""Budgets: what is counted, over how many runs, how a run ends when it is spent, and what it says is left."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from prx.errors import UserError
from sweeps.budget import BudgetSpec, Meter, left, read_spent
from sweeps.ledger import Ledger
from sweeps.report_end import print_end
from sweeps.results import SweepFolder, TrialState, append_journal, read_journal, read_results
from sweeps.run import run_sweep
from tests.sweeps import fakes


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_clock_runs_only_while_trials_train(tmp_path):
    clock = Clock()
    meter = Meter(BudgetSpec(hours=0.01), tmp_path / "spent.json", clock)
    clock.now += 1000
    assert meter.spent() == ()
    with meter.running():
        clock.now += 35
        assert meter.spent() == ()
        clock.now += 1
        assert meter.spent() == ("hours",)
        assert meter.words() == "hours 0.01 of 0.01"
    clock.now += 1000
    assert meter.used()["hours"] == pytest.approx(0.01)


def test_a_later_run_goes_on_counting(tmp_path):
    clock, path = Clock(), tmp_path / "spent.json"
    limits = BudgetSpec(device_hours=1, money=3, price_per_device_hour=2.0)
    first = Meter(limits, path, clock)
    with first.running():
        clock.now += 50
        first.add("a", 900.0, 2)
        first.add("b", 0.0, 1)
    assert json.loads(path.read_text()) == {"seconds": 50, "device_seconds": 1800, "trials": ["a"]}
    second = Meter(limits, path, clock)
    with second.running():
        clock.now += 10
        second.add("c", 1799.0, 1)
        assert second.spent() == ()
        second.add("c", 1.0, 1)
        assert second.spent() == ("device_hours",)
        second.add("a", 900.0, 2)
        assert second.spent() == ("device_hours", "money")
        assert second.words() == "device_hours 1.5 of 1, money 3 of 3"
    assert read_spent(path).seconds == 60
    assert read_spent(path).trials == ["a", "c"]


def test_what_is_spent_is_on_the_disk_within_a_second(tmp_path):
    clock, path = Clock(), tmp_path / "spent.json"
    meter = Meter(None, path, clock)
    clock.now += 1
    meter.add("a", 1.0, 1)
    assert read_spent(path).device_seconds == 1
    meter.add("a", 1.0, 1)
    assert read_spent(path).device_seconds == 1
    clock.now += 1
    meter.add("a", 1.0, 1)
    assert read_spent(path).device_seconds == 3


def test_trials_are_admitted_in_order_and_those_that_trained_go_on(tmp_path):
    path = tmp_path / "spent.json"
    path.write_text(json.dumps({"seconds": 1, "device_seconds": 1, "trials": ["d"]}))
    meter = Meter(BudgetSpec(trials=3), path)
    assert meter.admit("abcd") == ["a", "b", "d"]
    assert meter.admit("abcde") == ["a", "b", "d"]
    assert (meter.spent(), meter.reached()) == ((), ("trials",))
    assert Meter(None, path).admit("abcde") == list("abcde")


def test_a_damaged_account_is_refused(tmp_path):
    for text in ("{", "[]", '{"seconds": 1}', '{"seconds": "x", "device_seconds": 1, "trials": []}'):
        (tmp_path / "spent.json").write_text(text)
        with pytest.raises(UserError, match="does not say what a sweep has cost"):
            read_spent(tmp_path / "spent.json")


def test_what_is_left_is_priced_at_each_trial_s_own_pace(tmp_path):
    info = fakes.make_info("a", "b", "c")
    folder = SweepFolder(tmp_path, "fake")
    for trial_id, step, seconds in (("a-0", 40, 400.0), ("b-0", 10, 720.0)):
        entry = {"kind": "boundary", "step": step, "metrics": {}, "wall_seconds": 1.0, "device_seconds": seconds}
        append_journal(folder.trial(trial_id), entry)
    ledger = Ledger(folder, info)
    found = left(ledger.trials, 40)
    assert (found.trials, found.steps) == ((("b", 0), ("c", 0)), 70)
    assert found.device_hours == pytest.approx((30 * 72 + 40 * (10 + 72) / 2) / 3600)
    assert found.words() == "left undone: 70 steps of 2 trials, about 1.1 device-hours (b seed 0, c seed 0)"
    ledger.trials["b-0"].state = TrialState("pruned")
    assert left(ledger.trials, 40).trials == (("c", 0),)
    nothing = Ledger(SweepFolder(tmp_path / "new", "fake"), info)
    assert left(nothing.trials, 40).device_hours is None


def run(store, *names, more, scheduler="{use: none}"):
    output = io.StringIO()
    console = Console(file=output, width=200)
    plan = fakes.make_plan(*names, more=more, scheduler=scheduler)
    outcome = run_sweep(plan, store=store, parts=fakes.PARTS, max_concurrent=2, console=console)
    print_end(outcome, console)
    homes = {trial.cell.name: outcome.folder.trial(trial.trial_id) for trial in plan.trials}
    return outcome, homes, " ".join(output.getvalue().split())


SLOW = ("slow-1", "slow-2", "slow-3")
TINY = "budget: {device_hours: 1.0e-7}\n"


@pytest.mark.slow
def test_a_run_stops_cleanly_and_a_larger_budget_goes_on(ray_here, tmp_path):
    outcome, homes, text = run(tmp_path, *SLOW, more=TINY)
    assert (outcome.exit_code, outcome.unfinished) == (0, 3)
    assert "the budget is spent (device_hours " in text
    assert "left undone: " in text
    kept = {name: fakes.trained(home) for name, home in homes.items()}
    assert kept["slow-3"] == []
    assert any(kept.values())
    for steps, home in zip(kept.values(), homes.values(), strict=True):
        if steps:
            deepest = max(path.name for path in (home / "checkpoints").iterdir())
            assert deepest == f"step-{steps[-1]:08d}"
    again, _, text = run(tmp_path, *SLOW, more=TINY)
    assert {name: fakes.trained(home) for name, home in homes.items()} == kept
    assert (again.exit_code, again.unfinished) == (0, 3)
    assert "the budget is spent: " in text
    last, _, text = run(tmp_path, *SLOW, more="budget: {hours: 1}\n")
    assert (last.exit_code, last.unfinished, last.left) == (0, 0, None)
    assert all(fakes.trained(home) == list(range(1, 41)) for home in homes.values())
    assert "left undone" not in text


@pytest.mark.slow
def test_a_spent_budget_prunes_nobody(ray_here, tmp_path):
    halving = "{use: halving, grace_steps: 10, reduction_factor: 2, noise_aware: false}"
    outcome, _, _ = run(tmp_path, *SLOW, more=TINY, scheduler=halving)
    assert outcome.unfinished == 3
    frame = read_results(outcome.results_path)
    assert "pruned" not in set(frame["state"])


@pytest.mark.slow
def test_only_so_many_trials_train_and_rungs_do_not_wait_for_the_others(ray_here, tmp_path):
    halving = "{use: halving, grace_steps: 10, reduction_factor: 2, noise_aware: false}"
    names = ("good-3", "good-1", "good-2", "good-4")
    outcome, homes, text = run(tmp_path, *names, more="budget: {trials: 3}\n", scheduler=halving)
    assert (outcome.exit_code, outcome.unfinished) == (0, 1)
    assert "the budget is spent (trials 3 of 3): 1 trials are unfinished" in text
    assert "left undone: 40 steps of 1 trials" in text
    assert "(good-4 seed 0)" in text
    assert fakes.trained(homes["good-4"]) == []
    lengths = {name: len(fakes.trained(home)) for name, home in homes.items()}
    assert lengths["good-1"] == lengths["good-3"] == 40
    again, _, _ = run(tmp_path, *names, more="budget: {trials: 3}\n", scheduler=halving)
    assert {name: len(fakes.trained(home)) for name, home in homes.items()} == lengths
    assert (again.exit_code, again.unfinished) == (0, 1)


@pytest.mark.slow
def test_what_is_recalled_costs_nothing(ray_here, tmp_path):
    outcome, homes, _ = run(tmp_path / "a", "good-1", "good-2", more="budget: {trials: 5}\n")
    spent = read_spent(outcome.folder.spent)
    assert len(spent.trials) == 2
    assert spent.device_seconds > 0
    plan = fakes.make_plan("good-1", "good-2", more="budget: {trials: 1}\n")
    history = tmp_path / "a" / "history"
    other = run_sweep(plan, store=tmp_path / "b", history=history, parts=fakes.PARTS, max_concurrent=2)
    assert (other.exit_code, other.unfinished) == (0, 0)
    assert read_spent(other.folder.spent).device_seconds == 0
    assert read_journal(homes["good-1"]).boundaries.keys() == {10, 20, 30, 40}
