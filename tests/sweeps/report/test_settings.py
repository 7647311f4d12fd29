"""Cells under other sampling settings: in the terminal, the page and Markdown, with what becomes of the ranking."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from rich.console import Console

from sweeps.leaderboard import render_leaderboard
from sweeps.other_settings import other_settings, sentences
from sweeps.report import words
from sweeps.report.formats import markdown
from sweeps.report.gather import gather
from sweeps.report.page import render
from tests.sweeps import stored
from tests.sweeps.simulated import also_measured, frame_of, info_of

LABEL = "guidance_scale=2"


def turned(levels):
    return stored.truth(levels) - (0.15 if levels["alignment"] == "repa_dinov3" else 0.0)


def sweep(other=turned, seeds=range(3), noise=0.005):
    info = replace(info_of(stored.cells(), seeds), name="simulated")
    frame = frame_of(info, stored.truth, noise=noise, se=0.005)
    return info, also_measured(frame, LABEL, other, noise=noise, se=0.005)


def said_of(*arguments, **options):
    info, frame = sweep(*arguments, **options)
    return sentences(other_settings(frame, info, "cmmd"), "CMMD")


def test_a_ranking_that_turns_is_said_with_its_cells_and_by_how_much():
    said, best = said_of()
    assert said.startswith("The ranking by CMMD depends on the sampling settings: ")
    first = rf"with {LABEL}, repa_dinov3 · repa_e beats repa_dinov2 · repa_e by 0\.0\d+, but trails it by 0\.\d+ with"
    assert re.search(first, said)
    assert re.search(r"both beyond the noise; [2-6] of 6 cells have a better CMMD there\.$", said)
    assert best.startswith(f"With each cell at the best of its settings repa_dinov3 · repa_e leads ({LABEL}), not ")


def test_one_training_of_each_claims_no_more():
    said, _ = said_of(seeds=[0], noise=0.0)
    assert said.startswith("The ranking by CMMD depends on the sampling settings in one training of each: ")


def test_noise_is_called_noise():
    said, _ = said_of(stored.truth, noise=0.3)
    assert f"With {LABEL}, " in said
    assert "pairs change places, none beyond the noise" in said


def test_the_same_ranking_is_said_to_be_the_same():
    said, best = said_of(lambda levels: stored.truth(levels) + 1.0, noise=0.0)
    assert said == f"With {LABEL}, the 6 cells rank the same; 0 of 6 cells have a better CMMD there."
    assert best == "With each cell at the best of its settings repa_dinov2 · repa_e still leads."


def test_the_terminal_shows_figures_and_ranks_under_each_setting():
    info, frame = sweep(noise=0.0)
    console = Console(width=140, no_color=True)
    with console.capture() as capture:
        console.print(render_leaderboard(frame, info))
    lines = [" ".join(line.split()) for line in capture.get().splitlines()]
    start = lines.index("CMMD under other sampling settings (rank)")
    rows = {line.partition(" 0.")[0]: line for line in lines[start:]}
    assert rows["repa_dinov2 · repa_e"].endswith("0.5 ± 0 (1) 0.5 ± 0 (2)")
    assert rows["repa_dinov3 · repa_e"].endswith("0.6 ± 0 (2) 0.45 ± 0 (1)")
    assert any(line.startswith("The ranking by CMMD depends") for line in lines)


def test_names_with_brackets_are_text_on_the_terminal():
    info, frame = sweep(noise=0.0)
    trials = tuple(replace(t, name=f"{t.name}[/bold]") for t in info.trials)
    frame["name"] += "[/bold]"
    console = Console(width=140, no_color=True)
    with console.capture() as capture:
        console.print(render_leaderboard(frame, replace(info, trials=trials)))
    assert capture.get().count("repa_dinov3 · repa_e[/bold]") >= 3


def test_page_and_markdown_show_them_too(tmp_path):
    info, frame = sweep(noise=0.0)
    folder = stored.store_sweep(tmp_path, info, frame, samples=False)
    material = gather(folder)
    answers = {answer.topic: answer.text for answer in words.answers(material)}
    assert answers["Sampling"].startswith("The ranking by CMMD depends on the sampling settings")
    page = " ".join(render(material).split())
    assert '<section id="settings">' in page
    assert "Do other metrics and sampling settings agree?" in page
    assert "Δ CMMD@guidance_scale=2" in page
    table = markdown(material).partition("CMMD under other sampling settings (rank):")[2]
    row = next(line for line in table.splitlines() if line.startswith("| repa\\_dinov3 · repa\\_e |"))
    assert row == f"| repa\\_dinov3 · repa\\_e | 0.6 (2) | 0.45 (1) | {LABEL.replace('_', chr(92) + '_')} |"


def test_a_sweep_measured_once_has_no_such_section(tmp_path):
    folder = stored.store_sweep(tmp_path, samples=False)
    material = gather(folder)
    assert material.other_settings == ()
    assert '<section id="settings">' not in render(material)
    assert "Sampling" not in {answer.topic for answer in words.answers(material)}


@pytest.mark.parametrize("seeds", [[0], range(2)])
def test_cells_measured_once_only_stand_with_a_gap(tmp_path, seeds):
    info, frame = sweep(seeds=seeds)
    frame.loc[frame["name"] == "repa_e", f"cmmd@{LABEL}"] = float("nan")
    shown = other_settings(frame, info, "cmmd")
    assert "repa_e" not in [row.name for row in shown.rows]
    assert "repa_e" in render(gather(stored.store_sweep(tmp_path, info, frame, samples=False)))
