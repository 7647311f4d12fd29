"""What the page has beside the answer: reasons of early stops, interaction plots, goals, the article, circumstances."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from sweeps.report import charts
from sweeps.report.formats import markdown
from sweeps.report.gather import gather
from sweeps.report.page import render
from tests.sweeps import stored
from tests.sweeps.simulated import SETTINGS, frame_of, info_of, measured


def sweep(tmp_path, law=stored.truth, noise=0.005, pruned="", change=lambda frame: frame, **fields):
    info = replace(measured(info_of(stored.cells(), range(3))), name="looked-at", **fields)
    frame = change(frame_of(info, law, noise=noise))
    return gather(stored.store_sweep(tmp_path, info, frame, samples=False, pruned=pruned))


def shown(material):
    return " ".join(render(material).split())


def test_cells_stopped_early_say_why(tmp_path):
    material = sweep(tmp_path, pruned="repa_dinov3 · repa_e")
    assert material.reason(material.early[0].cell_id) == "pruned at step 100"
    assert '<td class="why">pruned at step 100</td>' in shown(material)
    assert material.reason(material.cells[0].cell_id) == ""


@pytest.mark.parametrize(("extra", "found"), [(0.3, True), (0.0, False)])
def test_an_interaction_plot_is_drawn_and_said_to_be_unsure_where_it_is(tmp_path, extra, found):
    def law(levels):
        return stored.truth(levels) + (extra if {"repa_dinov2", "repa_e"} <= set(levels.values()) else 0.0)

    page = shown(sweep(tmp_path, law))
    assert page.count('aria-label="Interaction plot of alignment × tokenizer"') == 1
    assert ("None of these is beyond the noise" in page) is not found


def test_two_goals_have_a_chart_with_their_front(tmp_path):
    def slower(frame):
        frame["batches_per_second"] = 2.0 - frame["cmmd"].where(frame["step"] == 300).rank(ascending=False) / 100
        frame.loc[frame["name"] == "baseline", "batches_per_second"] = 0.5
        return frame

    material = sweep(tmp_path, noise=0.0, change=slower, objectives={"cmmd": "min", "batches_per_second": "max"})
    made = charts.goals(material)
    front = {dot.name for dot in made.dots if dot.on_front}
    assert "baseline" not in front
    assert {"repa_dinov2 · repa_e", "repa_dinov3"} <= front
    assert (made.axes.x_label, made.axes.y_label) == ("batches/s ↑", "CMMD ↓")
    best = next(dot for dot in made.dots if dot.name == "repa_dinov2 · repa_e")
    assert best.number == 1
    assert best.y == max(dot.y for dot in made.dots)  # the lowest CMMD stands lowest
    page = shown(material)
    assert "The two objectives against each other" in page
    listed = page.partition("The two objectives against each other")[2].partition("<ol")[2].partition("</ol>")[0]
    assert listed.count("<li") == len(front)


def test_one_goal_has_no_such_chart(tmp_path):
    material = sweep(tmp_path, objectives={"cmmd": "min"})
    assert charts.goals(material) is None
    assert "Both goals" not in shown(material)


def test_the_article_stands_beside_our_figures_and_their_errors(tmp_path):
    material = sweep(tmp_path, article="latent_256")
    page = shown(material)
    assert re.search(r"<td class=\"n\">0\.[5-9]\d* \(0\.\d+\) <small>± 0\.0\d+</small></td>", page)
    assert "Here: Measured with 10 sampling steps" in page
    text = markdown(material)
    assert "| REPA DINOv3 | article | 14.64 (0.80) | 0.35 (0.85) |" in text
    assert re.search(r"\|  \| here \| - \| 0\.9\d* \(0\.(89|90|91)\) ± 0\.0\d+ \| - \|", text)


def test_markdown_has_the_effects(tmp_path):
    text = markdown(sweep(tmp_path))
    assert "| Level | Δ CMMD@num\\_steps=10,guidance\\_scale=3.5 | beyond the noise |" in text
    row = re.search(r"^\| repa\\_e \| −(0\.\d+) ± 0\.\d+ \| yes \|$", text, re.MULTILINE)
    assert float(row.group(1)) == pytest.approx(0.3, abs=0.01)
    assert re.search(r"^\| repa\\_dinov2 with repa\\_e \| \S+ ± \S+ \| no \|$", text, re.MULTILINE)


def test_circumstances_name_networks_and_settings(tmp_path):
    material = sweep(tmp_path)
    assert material.extractors == {"clip": "embedded:clip"}
    page = shown(material)
    assert "<dt>clip</dt><dd>embedded:clip</dd>" in page
    assert f"<dt>figures</dt><dd>Measured with {SETTINGS['num_steps']} sampling steps" in page
