"""Fractions of a grid: effects come from a regression, and what is aliased is named."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from sweeps.analysis.cell_means import CellMeans
from sweeps.analysis.effects import estimate_effects
from sweeps.analysis.observations import observe
from tests.sweeps.simulated import frame_of, info_of

EFFECT = {"a": 0.3, "b": -0.2, "c": 0.1, "d": -0.05, "e": 0.4}


def fraction(names, generator):
    """Make a two-level half fraction: the last axis is the product of those in `generator`."""
    cells = []
    for signs in product((-1, 1), repeat=len(names) - 1):
        last = int(np.prod([signs[names.index(name)] for name in generator]))
        cells.append({n: "on" if s > 0 else "off" for n, s in zip(names, (*signs, last), strict=True)})
    base = next(cell for cell in cells if set(cell.values()) == {"off"})
    return [base, *(cell for cell in cells if cell != base)]


def truth(levels):
    return 1.0 + sum(EFFECT[axis] for axis, level in levels.items() if level == "on")


def found_in(cells, law=truth, seeds=(0, 1)):
    info = info_of(cells, seeds)
    return estimate_effects(observe(frame_of(info, law, seed_noise=0.1), info, "cmmd", "min"))


def test_a_half_fraction_of_three_axes_names_the_pair_behind_each_effect():
    found = found_in(_half_of_three())
    assert {e.term[0][0]: e.estimate for e in found.mains} == pytest.approx({"a": 0.3, "b": -0.2, "c": 0.1})
    assert {e.term[0][0]: e.aliases for e in found.mains} == {"a": ("b × c",), "b": ("a × c",), "c": ("a × b",)}
    assert found.interactions == ()
    assert {lost.reason for lost in found.missing_interactions} <= {
        "aliased with a", "aliased with b", "aliased with c", "no cell with both has reached full length",
    }  # fmt: skip


def _half_of_three():
    """c = -ab, so that the baseline (all off) is in it."""
    signs = [(a, b, -a * b) for a, b in product((-1, 1), repeat=2)]
    return [{n: "on" if s > 0 else "off" for n, s in zip("abc", row, strict=True)} for row in signs]


def test_an_interaction_that_hides_behind_a_main_effect_moves_it_as_its_alias_says():
    def law(levels):
        return truth(levels) + (0.4 if levels["b"] == levels["c"] == "on" else 0.0)

    effect = next(e for e in found_in(_half_of_three(), law).mains if e.term[0][0] == "a")
    assert effect.estimate == pytest.approx(0.3 - 0.4 / 2)  # a = -bc
    assert effect.aliases == ("b × c",)


def test_resolution_four_leaves_main_effects_clear_and_names_pairs_that_share_a_column():
    found = found_in(fraction(list("abcd"), "abc"))
    assert {e.term[0][0]: e.estimate for e in found.mains} == pytest.approx({k: EFFECT[k] for k in "abcd"})
    assert {e.aliases for e in found.mains} == {()}
    reasons = {tuple(axis for axis, _ in lost.term): lost.reason for lost in found.missing_interactions}
    assert reasons[("a", "b")] == "aliased with c × d"
    assert reasons[("b", "d")] == "aliased with a × c"


def test_resolution_five_tells_every_pair():
    def law(levels):
        return truth(levels) + (0.25 if levels["b"] == levels["e"] == "on" else 0.0)

    found = found_in(_all_off_fraction("abcde"), law)
    pairs = {tuple(axis for axis, _ in e.term): e.estimate for e in found.interactions}
    assert len(pairs) == 10
    assert pairs.pop(("b", "e")) == pytest.approx(0.25)
    assert list(pairs.values()) == pytest.approx([0.0] * 9, abs=1e-9)
    assert found.missing_interactions == ()


def _all_off_fraction(names):
    """I = -abcde: of resolution V, and with the baseline."""
    cells = []
    for signs in product((-1, 1), repeat=len(names)):
        if int(np.prod(signs)) == -1:
            cells.append({n: "on" if s > 0 else "off" for n, s in zip(names, signs, strict=True)})
    base = next(cell for cell in cells if set(cell.values()) == {"off"})
    return [base, *(cell for cell in cells if cell != base)]


def test_block_elimination_agrees_with_least_squares_on_ragged_tables():
    rng = np.random.default_rng(0)
    for _ in range(50):
        cells, seeds = rng.integers(2, 7), rng.integers(1, 5)
        there = rng.random((cells, seeds)) < 0.7
        there[np.arange(cells), rng.integers(0, seeds, cells)] = True
        cell, seed = np.nonzero(there)
        y = rng.standard_normal((len(cell), 3))
        columns = np.hstack([np.eye(cells)[cell], np.eye(seeds)[seed]])
        means = CellMeans(cell, seed, int(cells))
        assert means.df == len(cell) - np.linalg.matrix_rank(columns)
        beta = np.linalg.pinv(columns) @ y
        effects, residuals = means.effects(y)
        assert residuals == pytest.approx(y - columns @ beta)
        contrasts = rng.standard_normal((4, cells))
        contrasts -= contrasts.mean(axis=1, keepdims=True)
        asked = np.hstack([contrasts, np.zeros((4, seeds))])
        factor, estimable = means.variance(contrasts)
        gram = np.linalg.pinv(columns.T @ columns)
        rows_space = np.abs(asked @ gram @ columns.T @ columns - asked).max(axis=1) < 1e-8
        assert estimable.tolist() == rows_space.tolist()
        expected = np.einsum("ki,ij,kj->k", asked, gram, asked)
        assert factor[estimable] == pytest.approx(expected[estimable])
        assert (contrasts @ effects)[estimable] == pytest.approx((asked @ beta)[estimable])
