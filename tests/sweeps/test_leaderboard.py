"""The table in the article's form: order, marks, and what may be concluded."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from rich.console import Console

from sweeps.leaderboard import Estimate, ranking, render_leaderboard, verdict
from tests.sweeps.fakes import make_info


def row(name, step, state="complete", seed=0, **metrics):
    identity = {"trial_id": f"{name}-{seed}", "cell_id": name, "name": name, "seed": seed}
    return identity | {"step": step, "state": state, "replayed": False, "reason": "", **metrics}


def text(frame, info):
    console = Console(width=110, no_color=True)
    with console.capture() as capture:
        console.print(render_leaderboard(frame, info))
    return capture.get()


def said(frame):
    return verdict(frame, ranking(frame, INFO), INFO)


INFO = make_info("base", "a", "b", "c", "d")


def test_complete_first_then_pruned_by_steps_then_failed():
    frame = pd.DataFrame(
        [
            row("d", 0, "failed"),
            row("c", 10, "pruned", cmmd=0.5),
            row("b", 20, "pruned", cmmd=3.0),
            row("base", 40, cmmd=2.0),
            row("a", 10, cmmd=9.0),
            row("a", 40, cmmd=1.0),
        ]
    )
    assert [result.name for result in ranking(frame, INFO)] == ["a", "base", "b", "c", "d"]
    lines = [line.split() for line in text(frame, INFO).splitlines() if line.strip()]
    assert lines[0] == ["Method", "CMMD", "↓", "steps", "state"]
    assert lines[2] == ["a", "1", "40", "complete"]
    assert lines[-3] == ["d", "-", "0", "failed"]
    assert "their figures, CMMD included, are at fewer steps" in text(frame, INFO)


def test_the_best_of_each_column_is_marked_among_cells_at_full_length():
    frame = pd.DataFrame(
        [
            row("a", 40, cmmd=1.0, adherence=0.5),
            row("b", 40, cmmd=2.0, adherence=0.75),
            row("c", 10, "pruned", cmmd=0.1, adherence=0.99),
        ]
    )
    console = Console(width=110, force_terminal=True, color_system="standard")
    with console.capture() as capture:
        console.print(render_leaderboard(frame, INFO))
    marked = [re.findall(r"\x1b\[1;32m *(\S+)\x1b", line) for line in capture.get().splitlines()]
    assert [values for values in marked if values] == [["1"], ["0.75"]]


def test_seeds_become_mean_and_standard_error():
    rows = [row("a", 40, seed=seed, cmmd=value, cmmd_se=0.5) for seed, value in enumerate([1.0, 2.0, 3.0])]
    rows += [row("a", 10, "failed", seed=3, cmmd=100.0)]
    (result,) = ranking(pd.DataFrame(rows), make_info("a", seeds=(0, 1, 2, 3)))
    assert result.seeds == 3
    assert result.metrics["cmmd"].value == pytest.approx(2.0)
    assert result.metrics["cmmd"].se == pytest.approx(3**-0.5)  # sample deviation 1 over the root of 3
    assert "a (3 seeds)" in text(pd.DataFrame(rows), INFO)
    assert "2 ± 0.6" in text(pd.DataFrame(rows), INFO)


def test_an_unfinished_seed_leaves_the_cell_unfinished():
    rows = [row("a", 40, seed=0, cmmd=1.0), row("a", 40, "running", seed=1, cmmd=1.0)]
    assert ranking(pd.DataFrame(rows), INFO)[0].state == "running"


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        (
            {"cmmd": 1.0, "cmmd_se": 0.1},
            {"cmmd": 2.0, "cmmd_se": 0.1},
            "a leads b by 1 CMMD, more than the samples' noise; one seed",
        ),
        (
            {"cmmd": 1.0, "cmmd_se": 0.4},
            {"cmmd": 2.0, "cmmd_se": 0.4},
            "No winner: a leads b by 1 CMMD, within the noise. With one seed",
        ),
        ({"cmmd": 1.0}, {"cmmd": 2.0}, "a leads b by 1 CMMD; without standard errors"),
    ],
)
def test_verdict(one, two, expected):
    frame = pd.DataFrame([row("a", 40, **one), row("b", 40, **two)])
    assert said(frame).startswith(expected)


def test_verdict_needs_two_cells_at_full_length():
    frame = pd.DataFrame([row("a", 40, cmmd=1.0), row("b", 10, "running", cmmd=0.5)])
    assert said(frame) == "a alone has reached step 40; there is nothing to compare it with yet."
    frame = pd.DataFrame([row("a", 40, cmmd=1.0), row("b", 10, "pruned", cmmd=0.5)])
    text = "a alone has reached step 40; the others ended before, as the table says."
    assert said(frame) == text


def test_a_metric_to_maximise_ranks_the_other_way():
    info = make_info("a", "b", metric="adherence")
    object.__setattr__(info, "mode", "max")
    frame = pd.DataFrame([row("a", 40, adherence=0.2), row("b", 40, adherence=0.7)])
    assert [result.name for result in ranking(frame, info)] == ["b", "a"]


@pytest.mark.parametrize(
    ("value", "se", "text"),
    [(1443.6, 14.98, "1444 ± 15"), (199.4, 120.0, "199 ± 120"), (1.234, 0.25, "1.23 ± 0.2"), (0.0123, None, "0.0123")],
)
def test_figures_are_never_powers_of_ten(value, se, text):
    assert str(Estimate(value, se)) == text


def test_seeds_are_paired_so_what_moves_both_cells_alike_hides_no_winner():
    shared = {0: 5.0, 1: 9.0, 2: 1.0}
    rows = [row(name, 40, seed=seed, cmmd=base + shared[seed] + jitter)
            for name, base, jitters in (("a", 1.0, (0.0, 0.01, -0.01)), ("b", 1.5, (0.01, -0.01, 0.0)))
            for seed, jitter in enumerate(jitters)]  # fmt: skip
    assert said(pd.DataFrame(rows)).startswith("a wins: 0.5 CMMD ahead of b, beyond the noise between 3 seeds")


def test_two_seeds_whose_lead_changes_sides_name_no_winner():
    rows = [row("a", 40, seed=0, cmmd=1.0), row("a", 40, seed=1, cmmd=1.2),
            row("b", 40, seed=0, cmmd=1.5), row("b", 40, seed=1, cmmd=1.1)]  # fmt: skip
    assert said(pd.DataFrame(rows)).startswith("No winner: a leads b by 0.2 CMMD, within the noise. If lead")


def test_any_metric_that_decides_ranks_and_is_shown():
    info = make_info("a", "b", metric="clip_score")
    object.__setattr__(info, "mode", "max")
    frame = pd.DataFrame([row("a", 40, clip_score=0.2), row("b", 40, clip_score=0.7)])
    assert [result.name for result in ranking(frame, info)] == ["b", "a"]
    assert "clip score ↑" in text(frame, info)
