"""What a plan says about cost and power, from declared, recorded and measured paces."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

import pandas as pd
import pytest
from rich.console import Console

from prx.yamlsource import parse_yaml
from sweeps import __main__ as cli
from sweeps.estimate import Later, Pace, at_once, calibrate, declared, estimate, from_records, later
from sweeps.foresee import foresee
from sweeps.plan import Plan, make_plan
from sweeps.records import seconds_a_step, values_by_seed
from sweeps.results import SweepFolder, write_results
from sweeps.show_plan import least_steps
from sweeps.spec import parse_spec
from tests.sweeps import fakes

HALVING = "{use: halving, grace_steps: 10, reduction_factor: 2}"


def shown(renderable, width=100) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(renderable)
    return console.file.getvalue()


def flat(text: str) -> str:
    return " ".join(text.split())


def rows_of(plan: Plan, seconds: float, steps=(10, 40), value=None):
    """Write rows as a finished sweep has them: `seconds` a step, the metric a function of cell and seed."""
    return [
        {
            "trial_id": t.trial_id, "cell_id": t.cell.cell_id, "name": t.cell.name, "seed": t.seed, "step": step,
            "cmmd": value(t) if value else 1.0, "wall_seconds": step * seconds, "device_seconds": step * seconds,
            "state": "complete", "replayed": False, "reason": "", "is_baseline": t.cell.is_baseline, **t.cell.levels,
        }
        for t in plan.trials for step in steps
    ]  # fmt: skip


def test_costs_add_up():
    plan = fakes.make_plan("good-1", "good-2", "good-3", seeds="[0, 1]")
    found = estimate(plan, Pace("", 0.5, 2.0), 4, None)
    assert found.least is None
    assert found.most.device_hours * 3600 == pytest.approx(6 * (40 * 0.5 + 4 * 2.0))
    assert found.most.hours * 3600 == pytest.approx(2 * (40 * 0.5 + 4 * 2.0))  # six trials on four workers: two rounds


def test_trials_that_results_choose_are_counted():
    seeds = "{start: 1, add_to_top: 2, up_to: 3}"
    plan = fakes.make_plan("good-1", "good-2", "good-3", seeds=seeds)
    assert later(plan) == Later(searched=0, seeds=6)
    found = estimate(plan, Pace("", 1.0), 1)
    assert found.least is not None
    assert (found.most.trials, found.least.trials) == (9, 3)
    assert (found.most.hours * 3600, found.least.hours * 3600) == (pytest.approx(360), pytest.approx(120))
    text = flat(shown(foresee(plan, fakes.Path("no"), step_seconds=1.0)))
    assert "with up to 3 seeds a cell can be told from the baseline" in text


def test_points_that_a_search_will_choose_are_counted():
    text = "name: s\nbase: embedded\naxes: {alignment: [none, repa_dinov2]}\ntrial: {steps: 300, eval_every: 100}\n"
    search = "search: {sampler: tpe, trials: 12, space: {losses.repa.weight: {log_uniform: [0.05, 2.0]}}}\n"
    source = parse_yaml(text + search + "seeds: [0, 1]\n", "s.yaml")
    plan = make_plan(parse_spec(source), source)
    assert later(plan).searched > 0
    assert estimate(plan, Pace("", 1.0), 1).most.trials == (2 + 12) * 2


def test_early_stopping_gives_the_least():
    plan = fakes.make_plan("good-1", "good-2", "good-3", "good-4", scheduler=HALVING)
    least = least_steps(plan)
    assert least == 4 * 10 + 2 * 10 + 1 * 20
    found = estimate(plan, declared(3.6, 0.0), 2, least)
    assert found.least is not None
    assert (found.most.device_hours, found.least.device_hours) == (pytest.approx(0.16), pytest.approx(0.08))
    assert (found.most.hours, found.least.hours) == (pytest.approx(0.08), pytest.approx(0.04))
    wide = estimate(plan, declared(3.6, 0.0), 4, least)
    assert wide.least is not None
    assert wide.least.hours == pytest.approx(0.04)  # the winner alone takes as long


def test_cells_on_record_keep_their_own_pace_and_others_take_the_mean():
    plan = fakes.make_plan("good-1", "good-2", "good-3")
    first, second, third = (cell.cell_id for cell in plan.cells)
    pace = from_records({first: 1.0, second: 3.0}, 3)
    assert pace is not None
    assert [pace.seconds(cell, 10, 4) for cell in (first, second, third)] == [10, 30, 20]
    assert pace.source == "recorded in the store: 2 of 3 cells, their mean for the others; 2 s a step with evaluations"
    assert from_records({}, 3) is None


def test_records_of_all_sweeps_are_read(tmp_path):
    plan = fakes.make_plan("good-1", "good-2", seeds="[0, 1]", more="objectives: {cmmd: min}\n")
    noisy = rows_of(plan, 7.2, value=lambda t: 2.0 + 0.1 * t.seed)
    write_results(noisy, ("alignment",), SweepFolder(tmp_path, "another").results)
    write_results(noisy[:2], ("alignment",), SweepFolder(tmp_path, "third").results)  # the same trial once more
    text = flat(shown(foresee(plan, tmp_path, max_concurrent=2)))
    assert "pace recorded in the store: 7.2 s a step with evaluations" in text
    assert "device-hours 0.32" in text
    assert "hours 0.16" in text
    assert (
        "3.4 % coefficient of variation between seeds, measured: 2 cells in the store with several seeds, 2 degr"
        in text
    )
    other = fakes.make_plan("good-7")
    assert "cost: not known; write trial.step_seconds into the sweep" in flat(shown(foresee(other, tmp_path)))


def test_only_rows_at_the_end_tell_seeds_apart():
    frame = pd.DataFrame(rows_of(fakes.make_plan("good-1", seeds="[0, 1]"), 1.0, value=lambda t: t.seed + 1.0))
    assert list(values_by_seed([frame, frame], "cmmd", 40).values()) == [[1.0, 2.0]]
    assert values_by_seed([frame], "cmmd", 30) == {}
    assert values_by_seed([frame], "fid", 40) == {}
    assert list(seconds_a_step([frame]).values()) == [1.0]


def test_a_calibration_trains_the_baseline_in_a_folder_of_its_own(tmp_path):
    plan, said = fakes.make_plan("good-1", "good-2"), []
    pace = calibrate(plan, tmp_path / "cache", lambda *what: said.append(what), fakes.PARTS)
    assert pace.step_seconds == 0.01  # what the fake says of each step
    assert pace.eval_seconds > 0
    assert pace.checkpoint_bytes is not None
    assert pace.checkpoint_bytes > 0
    assert said == [("nothing", 1, 1)]
    assert pace.source.startswith("calibrated on the baseline: 0.01 s a step (median of 10), ")
    assert not list(tmp_path.rglob("*"))
    text = flat(shown(foresee(plan, tmp_path, calibrates=True, parts=fakes.PARTS)))
    assert "pace calibrated on the baseline" in text
    assert "checkpoints: " in text


@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_of_few_steps_is_timed_as_well(steps, tmp_path):
    plan = fakes.make_plan("good-1")
    trial = plan.trials[0]
    config = trial.config.model_copy(update={"steps": steps})
    short = replace(plan, trials=[replace(trial, config=config)])
    assert calibrate(short, tmp_path, lambda *what: None, fakes.PARTS).step_seconds == 0.01


def test_limits_stand_beside_the_costs():
    more = "budget: {hours: 0.01, money: 100, price_per_device_hour: 2.5}\n"
    plan = fakes.make_plan("good-1", "good-2", more=more)
    text = flat(shown(foresee(plan, fakes.Path("nowhere"), step_seconds=36.0, max_concurrent=1)))
    assert "hours 0.8 0.01 (less than at most)" in text
    assert "device-hours 0.8 trials 2 money 2 100" in text


def test_as_many_at_once_as_fit():
    plan = fakes.make_plan(*(f"good-{i}" for i in range(500)))
    assert at_once(plan, 3) == 3
    assert at_once(plan, 600) == 500
    assert 1 <= at_once(plan, None) <= 500


@pytest.mark.parametrize("width", [80, 120])
def test_power_is_said_within_the_width(width):
    text = shown(foresee(fakes.make_plan("good-1", "good-2", "good-3", seeds="[0, 1, 2]"), fakes.Path("no")), width)
    assert max(map(len, text.splitlines())) <= width
    text = flat(text)
    assert "with 3 seeds a cell can be told from the baseline if cmmd differs by 6 % (8.5 % " in text
    assert "corrected for 2 comparisons); a true gap of 1 % is ranked backwards in 17 % of such sweeps" in text
    assert "assumed: measured for FID in arXiv 2606.20536, not for cmmd here" in text
    one = flat(shown(foresee(fakes.make_plan("good-1", "good-2"), fakes.Path("no"))))
    assert (
        "1 seed gives no interval, so nothing can be told apart; a true gap of 1 % is ranked backwards in 29 %" in one
    )


def test_declared_paces_and_their_option(monkeypatch, capsys, tmp_path):
    path = tmp_path / "s.yaml"
    text = "name: s\nbase: embedded\naxes: {tokenizer: [flux, flux2]}\n"
    path.write_text(text + "trial: {steps: 300, eval_every: 100, step_seconds: 0.6, eval_seconds: 20}\n")

    def plan(*options):
        monkeypatch.setattr(sys, "argv", ["prx-sweep", "plan", str(path), "--store", str(tmp_path), *options])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        return flat(capsys.readouterr().out)

    assert "pace declared: 0.6 s a step and 20 s an evaluation" in plan("--max-concurrent", "1")
    assert "cost (1 at once) ──────────────────────── hours 0.133" in plan("--max-concurrent", "1")
    assert "pace declared: 1.5 s a step and 20 s" in plan("--step-seconds", "1.5")


def test_declared_paces_do_not_change_what_is_trained():
    text = "name: s\nbase: embedded\naxes: {tokenizer: [flux, flux2]}\ntrial: {steps: 300, eval_every: 100%s}\n"
    plans = []
    for more in ("", ", step_seconds: 1.0"):
        source = parse_yaml(text % more, "s.yaml")
        plans.append(make_plan(parse_spec(source), source))
    assert [t.trial_id for t in plans[0].trials] == [t.trial_id for t in plans[1].trials]
