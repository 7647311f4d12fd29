"""What a sweep cost and was spared, in device-hours and in money."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from sweeps.costs import money, read_costs
from sweeps.leaderboard import render_leaderboard
from sweeps.report import charts, tables, words
from sweeps.report.formats import markdown
from sweeps.report.gather import gather
from sweeps.report.page import render
from sweeps.report_end import print_end
from sweeps.results import SweepFolder, TrialState, append_journal, read_results, write_info, write_state
from tests.sweeps import stored
from tests.sweeps.fakes import make_info
from tests.sweeps.simulated import frame_of, info_of

HOUR = 3600.0
PRICE = 2.5


def boundary(step, own, seconds):
    return {"kind": "boundary", "step": step, "metrics": {}, "wall_seconds": seconds, "device_seconds": seconds,
            "steps_trained": own}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Of four trials of 40 steps at 0.1 h a step, one took 20 over, one was stopped at 10, one before its first."""
    info = replace(make_info("base", "fork", "early", "never"), price_per_device_hour=PRICE)
    made = SweepFolder(tmp_path, info.name)
    write_info(made, info)
    ways = {"base": [(20, 20), (40, 40)], "fork": [(20, 0), (40, 20)], "early": [(10, 10)], "never": []}
    for trial in info.trials:
        home = made.trial(trial.trial_id)
        append_journal(home, *(boundary(step, own, step * HOUR / 10) for step, own in ways[trial.name]))
        write_state(home, TrialState("pruned" if trial.name in ("early", "never") else "complete"))
    return made, info


def test_what_is_shared_and_what_is_stopped_is_counted_at_its_price(folder):
    found = read_costs(*folder)
    assert found.stands_for == pytest.approx(4 + 4 + 1)
    assert found.taken_over == pytest.approx(2)
    assert found.trained == pytest.approx(7)
    assert found.spared == pytest.approx(3 + 4)  # the one without a pace at the others' average
    assert found.paid is None
    assert found.sentences(running=True)[0] == "The sweep has cost 7 device-hours (17.5) so far, at 2.5 a device-hour."
    assert found.sentences() == [
        "The sweep cost 7 device-hours (17.5), at 2.5 a device-hour.",
        "Spared: replaying and sharing 2 device-hours (5), early stopping about 7 device-hours (17.5).",
    ]


def test_what_runs_held_devices_for_is_what_was_paid(folder):
    made, info = folder
    made.spent.write_text(json.dumps({"seconds": 1.0, "device_seconds": 8 * HOUR, "trials": []}))
    found = read_costs(made, replace(info, price_per_device_hour=None))
    assert found.sentences()[0] == "The sweep cost 8 device-hours."
    assert dict(found.facts())["devices held by its runs"] == "8 device-hours"
    assert "price" not in dict(found.facts())


def test_what_a_target_that_was_reached_spared_counts_too(folder):
    made, info = folder
    write_state(made.trial("early-0"), TrialState("complete", "target: cmmd 1 at step 10 (asked for 2)"))
    assert read_costs(made, info).spared == pytest.approx(3 + 4)


def test_nothing_spared_is_not_mentioned(tmp_path):
    folder = stored.store_sweep(tmp_path, samples=False)
    found = gather(folder).costs
    assert (found.taken_over, found.spared) == (0.0, 0.0)
    assert found.stands_for == pytest.approx(18 * 150 / HOUR)
    assert len(found.sentences()) == 1


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    info = replace(info_of(stored.cells(), range(3)), name="priced", price_per_device_hour=PRICE)
    frame = frame_of(info, stored.truth, noise=0.01)
    frame["device_seconds"] *= 72.0  # a trial of 300 steps: 3 h
    return gather(stored.store_sweep(tmp_path_factory.mktemp("store"), info, frame, samples=False))


def test_every_cell_has_its_cost(material):
    assert {row.cost.text for row in tables.board(material).rows} == {"7.5"}
    page = " ".join(render(material).split())
    assert page.count('data-key="10800">7.5</td>') == 6
    assert '<button type="button">cost</button>' in page
    lines = markdown(material).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| Method "))
    rows = lines[start : lines.index("", start)]
    assert {line.count(" | ") for line in rows} == {rows[0].count(" | ")}
    assert rows[0].endswith("| device time | cost | steps | seeds | state |")
    assert rows[2].endswith("| 3 h 00 min | 7.5 | 300 | 3 | complete |")


def test_the_whole_sweep_and_the_time_to_quality_have_theirs(material):
    found = {answer.topic: answer.text for answer in words.answers(material)}
    assert found["Cost"] == "The sweep cost 54 device-hours (135), at 2.5 a device-hour."
    fastest = min(one.hours for one in material.speed)
    assert f"of one device ({money(fastest, PRICE)}), " in found["Price"]
    page = " ".join(render(material).split())
    assert page.count(f'<td class="n">{money(fastest, PRICE)}</td>') >= 1
    assert "<dt>price</dt><dd>2.5 a device-hour; money is in brackets</dd>" in page


def test_the_price_chart_has_a_second_scale_in_money(material):
    made = charts.pareto(material)
    x, label = next((x, text) for x, text in made.axes.x if float(text) > 0)
    first, last = made.money[0], made.money[-1]
    per_unit = (last[0] - first[0]) / (float(last[1]) - float(first[1]))
    assert first[0] + (float(label) * PRICE - float(first[1])) * per_unit == pytest.approx(x, abs=0.05)
    assert made.dots[0].note.endswith("3 device-hours (7.5)")
    page = render(material)
    assert page.count('class="tick money"') == len(made.money)
    assert "money, at 2.5 a device-hour" in page


def test_the_terminal_has_a_column_and_a_line(material):
    console = Console(width=140, no_color=True)
    with console.capture() as capture:
        console.print(render_leaderboard(material.frame, material.info))
    text = capture.get()
    assert re.search(r"cost\s+steps\s+state", text)
    assert len(re.findall(r" 7\.5\s+300\s+complete", text)) == 6
    assert "Cost: of one trial of the cell, at 2.5 a device-hour." in text


def test_the_end_of_a_run_says_what_it_cost(material):
    outcome = SimpleNamespace(
        results_path=material.folder.results, info=material.info, folder=material.folder, steps="steps", left=None,
        unfinished=0,
    )  # fmt: skip
    console = Console(width=200, no_color=True)
    with console.capture() as capture:
        print_end(outcome, console)
    assert "The sweep cost 54 device-hours (135), at 2.5 a device-hour." in capture.get()


def test_without_a_price_there_are_device_hours_only(tmp_path):
    folder = stored.store_sweep(tmp_path, samples=False)
    page = " ".join(render(gather(folder)).split())
    assert ">cost</button>" not in page
    assert "money" not in page
    assert re.search(r"The sweep cost [\d.]+ device-hours\.", page)
    assert "device_seconds" in read_results(folder.results)
