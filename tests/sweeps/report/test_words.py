"""The answer in sentences: nothing is claimed that the figures do not carry."""

from __future__ import annotations

import math
import re

import pytest

from sweeps.report import words
from sweeps.report.gather import gather
from sweeps.report.scales import Scale, scale_of
from tests.sweeps import stored
from tests.sweeps.simulated import frame_of, info_of


def answers_of(tmp_path, **options):
    material = gather(stored.store_sweep(tmp_path, samples=False, **options))
    return {answer.topic: answer.text for answer in words.answers(material)}


def noisy(noise, truth=stored.truth, seeds=range(3), **options):
    info = info_of(stored.cells(), seeds)
    return {"info": info, "frame": frame_of(info, truth, noise=noise, **options)}


def test_a_clear_sweep_names_winner_parts_and_price(tmp_path):
    found = answers_of(tmp_path, **noisy(0.005))
    assert found["Best"].startswith("repa_dinov2 · repa_e wins: ")
    assert "beyond the noise between 3 seeds" in found["Best"]
    assert found["Helped"].startswith("repa_e (−0.3")
    assert [float(n) for n in re.findall(r"\(−(\S+) ±", found["Helped"])] == pytest.approx([0.3, 0.2, 0.1], abs=0.01)
    assert found["Together"].startswith("None of 2 pairs is told apart from the sum of its parts")
    assert "times sooner than the baseline itself (95 %" in found["Price"]
    assert "covers training and sampling" in found["How sure"]


def test_noise_names_no_winner_but_what_would_tell(tmp_path):
    found = answers_of(tmp_path, **noisy(0.3, lambda levels: 2.0))
    assert found["Best"].startswith("No winner: ")
    assert "seeds in all would tell (power 80 %)" in found["Best"] or "call them equal" in found["Best"]
    assert found["Helped"].startswith("No level alone helped beyond the noise.")


def test_an_interaction_is_said_with_its_direction(tmp_path):
    def law(levels):
        return stored.truth(levels) + (0.2 if set(levels.values()) == {"repa_dinov2", "repa_e"} else 0.0)

    found = answers_of(tmp_path, **noisy(0.005, law))
    match = re.fullmatch(
        r"Worse than its parts promise: repa_dinov2 with repa_e \(\+(\S+) ± \S+\)\.", found["Together"]
    )
    assert float(match.group(1)) == pytest.approx(0.2, abs=0.02)


def test_one_seed_claims_no_more_than_it_saw(tmp_path):
    cells = [cell for cell in stored.cells() if "none" in cell.values() or "flux" in cell.values()]
    info = info_of(cells, [0])
    found = answers_of(tmp_path, info=info, frame=frame_of(info, stored.truth, se=0.001))
    assert "one seed cannot say whether training again would give the same" in found["Best"]
    assert found["Helped"].startswith("In one training of each, beyond the samples' noise, though another seed may")
    assert "not the noise of training again" in found["How sure"]
    assert "These cells cannot tell whether techniques add up" in found["Together"]


def test_without_errors_it_may_be_chance(tmp_path):
    cells = [cell for cell in stored.cells() if "none" in cell.values() or "flux" in cell.values()]
    info = info_of(cells, [0])
    found = answers_of(tmp_path, info=info, frame=frame_of(info, stored.truth, se=math.nan))
    assert "without standard errors that may be chance" in found["Best"]
    assert found["Helped"].startswith("No level alone helped beyond the noise.")


def test_unfinished_and_stopped_cells_are_counted(tmp_path):
    found = answers_of(tmp_path, pruned="repa_dinov3 · repa_e")
    assert "1 cells were stopped early" not in found["How sure"]
    assert "One cell was stopped early" in found["How sure"]


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (10.0312, 0.63, "10.03 ± 0.63"),
        (0.30412, 0.0213, "0.304 ± 0.021"),
        (1234.0, 56.0, "1234 ± 56"),
        (0.5, None, "0.5"),
    ],
)
def test_figures_have_the_decimals_of_their_error(value, error, text):
    assert words.with_error(value, error) == text
    assert words.signed(-value, error or math.nan) == f"−{text}"


def test_scales_put_round_figures_on_their_axes():
    assert [label for _, label in Scale(0.0, 300.0, 0.0, 100.0).ticks()] == ["0", "100", "200", "300"]
    log = scale_of([0.01, 10.0], 0.0, 100.0, log=True)
    assert log.log
    assert log(0.1) - log(0.01) == pytest.approx(log(1.0) - log(0.1), abs=0.02)
    assert not scale_of([-1.0, 10.0], 0.0, 100.0, log=True).log
    flat = scale_of([2.0, 2.0], 0.0, 100.0)
    assert flat(2.0) == pytest.approx(50.0)
    assert scale_of([], 0.0, 1.0).ticks()
