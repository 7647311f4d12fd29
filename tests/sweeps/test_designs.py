"""Designs against textbooks and brute force: which cells, resolution, aliases, and what exclusions cost."""

from __future__ import annotations

import random
from collections import Counter
from fnmatch import fnmatchcase
from itertools import combinations as subsets
from itertools import product

import numpy as np
import pytest
from rich.console import Console

from prx.errors import ConfigError
from prx.yamlsource import parse_yaml
from sweeps.designs import DesignSpec, combinations, leave_one_out, pairs
from sweeps.fractional import Fraction, Loss, TooLargeError, best, effects, loss, smallest
from sweeps.plan import layout, make_plan
from sweeps.show_plan import render_plan
from sweeps.spec import SweepSpec, parse_spec

AXES = {"a": ["a0", "a1", "a2"], "b": ["b0", "b1"], "c": ["c0", "c1", "c2", "c3"]}
HEAD = "name: s\nbase: embedded\ntrial: {steps: 300, eval_every: 100}\n"


def two_level(number: int) -> str:
    """Write axes of two levels each, which change the warm-up, the batch size and so on."""
    keys = ("warmup_steps", "batch_size", "optimizer.lr", "optimizer.weight_decay", "text.caption_dropout")
    values = (4, 4, 0.01, 0.01, 0.01)
    rows = [
        f"  {axis}: [{{name: {axis}0, patch: {{}}}}, {{name: {axis}1, patch: {{{key}: {value}}}}}]"
        for axis, key, value in list(zip("abcde", keys, values, strict=True))[:number]
    ]
    return HEAD + "axes:\n" + "\n".join(rows) + "\n"


def errors(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_spec(parse_yaml(text, "s.yaml"))
    return str(caught.value)


def shown(text: str, width: int = 100) -> str:
    source = parse_yaml(text, "s.yaml")
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(render_plan(make_plan(parse_spec(source), source)))
    return capture.get()


def off(combination, baseline):
    return sum(x != y for x, y in zip(combination, baseline, strict=True))


@pytest.mark.parametrize("baseline", [("a0", "b0", "c0"), ("a1", "b1", "c2")])
def test_pairs_and_leave_one_out_against_brute_force(baseline):
    everything = set(product(*AXES.values()))
    found = list(pairs(AXES, baseline))
    assert (found[0], len(found)) == (baseline, len(set(found)))
    assert set(found) == {cell for cell in everything if off(cell, baseline) <= 2}
    full = ("a2", "b1" if baseline[1] == "b0" else "b0", "c3")
    found = list(leave_one_out(AXES, baseline, full))
    one_off = {c for c in everything if off(c, full) == 1 and off(c, baseline) == 2}
    assert (found[:2], set(found[2:]), len(found)) == ([baseline, full], one_off, 5)


def test_a_list_fills_in_the_baseline():
    design = DesignSpec(use="list", cells=[{"c": "c2"}, {"a": "a1", "b": "b1"}])
    found = list(combinations(design, AXES, {"a": "a0", "b": "b0", "c": "c1"}))
    assert found == [("a0", "b0", "c1"), ("a0", "b0", "c2"), ("a1", "b1", "c1")]


def lengths(fraction: Fraction) -> dict[int, int]:
    return dict(Counter(word.bit_count() for word in fraction.words))


@pytest.mark.parametrize(
    ("factors", "runs", "words"),
    [  # Chen, Sun & Wu 1993, catalogues of 16, 32 and 64 runs; Box, Hunter & Hunter, table of 8 runs
        (4, 8, {4: 1}), (5, 8, {3: 2, 4: 1}), (6, 8, {3: 4, 4: 3}), (7, 8, {3: 7, 4: 7, 7: 1}), (5, 16, {5: 1}),
        (6, 16, {4: 3}), (7, 16, {4: 7}), (8, 16, {4: 14, 8: 1}), (9, 16, {3: 4, 4: 14, 5: 8, 7: 4, 8: 1}),
        (6, 32, {6: 1}), (7, 32, {4: 1, 5: 2}), (8, 32, {4: 3, 5: 4}), (9, 32, {4: 6, 5: 8, 8: 1}),
        (10, 32, {4: 10, 5: 16, 8: 5}), (8, 64, {5: 2, 6: 1}), (9, 64, {4: 1, 5: 4, 6: 2}), (3, 8, {}),
    ],
)  # fmt: skip
def test_generators_have_the_minimum_aberration_of_the_catalogues(factors, runs, words):
    fraction = best(factors, runs)
    assert lengths(fraction) == words
    assert fraction.resolution == min(words, default=None)


@pytest.mark.parametrize(("factors", "runs"), [(4, 8), (5, 16), (7, 8), (6, 16)])
def test_fractions_are_orthogonal_arrays_that_hold_the_baseline(factors, runs):
    fraction = best(factors, runs)
    rows = np.array(fraction.rows())
    assert rows.shape == (runs, factors)
    assert (rows[0] == 0).all()
    assert len(np.unique(rows, axis=0)) == runs
    strength = fraction.resolution - 1
    for chosen in subsets(range(factors), strength):
        counts = Counter(map(tuple, rows[:, chosen]))
        assert set(counts.values()) == {runs // 2**strength}
        assert len(counts) == 2**strength


def words_of(text: str) -> int:
    return sum(1 << "ABCDEFG".index(letter) for letter in text)


@pytest.mark.parametrize(
    ("factors", "runs", "effect", "aliases"),
    [
        (4, 8, "A", []), (4, 8, "AB", ["CD"]), (4, 8, "AC", ["BD"]), (4, 8, "AD", ["BC"]),
        (7, 8, "A", ["BE", "CF", "DG"]), (5, 16, "A", []), (5, 16, "AB", []),
    ],
)  # fmt: skip
def test_alias_tables_of_textbooks(factors, runs, effect, aliases):
    fraction = best(factors, runs)
    found = {word for _, word in fraction.aliases(words_of(effect))}
    if factors == 7:  # letters of the added factors differ between books: compare the structure
        assert sorted(word.bit_count() for word in found) == [2, 2, 2]
        return
    assert found == {words_of(alias) for alias in aliases}


@pytest.mark.parametrize(("factors", "runs"), [(4, 8), (5, 8), (7, 8), (6, 16)])
def test_aliases_and_their_signs_are_those_of_the_columns(factors, runs):
    fraction = best(factors, runs)
    signs = 2 * np.array(fraction.rows()) - 1
    column = {word: signs[:, [i for i in range(factors) if word >> i & 1]].prod(axis=1) for word in effects(factors)}
    for one in column:
        same = {(1, two) for two in column if two != one and (column[one] == column[two]).all()}
        opposite = {(-1, two) for two in column if (column[one] == -column[two]).all()}
        assert set(fraction.aliases(one)) == same | opposite


@pytest.mark.parametrize(
    ("factors", "resolution", "runs"), [(5, 5, 16), (7, 3, 8), (4, 4, 8), (6, 5, 32), (8, 4, 16), (5, 4, 16), (3, 3, 4)]
)
def test_the_smallest_design_of_a_resolution(factors, resolution, runs):
    assert smallest(factors, resolution).runs == runs


def test_a_search_that_is_too_large_is_refused():
    with pytest.raises(TooLargeError, match="sets of generators would take too long"):
        best(14, 128)


def test_loss_against_least_squares():
    fraction = best(4, 8)
    rows = fraction.rows()
    assert loss(fraction, rows) == Loss(0, (), ())
    dropped = loss(fraction, rows[:-1])
    assert (dropped.missing, dropped.alone, set(dropped.free)) == (1, (), {1, 2, 4, 8})
    without = [row for row in rows if row[0] == 0]
    assert loss(fraction, without).alone == (1,)  # a factor that never changes
    # two factors that always change together can only be told as one, and with d = abc so can the other two
    paired = [row for row in rows if row[0] == row[1]]
    assert loss(fraction, paired) == Loss(4, (1, 2, 4, 8), ())


def test_counts_on_random_exclusions_equal_brute_force():
    rng = random.Random(5)
    for _ in range(200):
        axes = {axis: [f"{axis}{i}" for i in range(rng.randint(2, 3))] for axis in "abcd"[: rng.randint(2, 4)]}
        rules = [_random_rule(axes, rng) for _ in range(rng.randint(1, 3))]
        text = {"name": "s", "base": "embedded", "trial": {"steps": 2, "eval_every": 1}, "exclude": rules}
        text["axes"] = {axis: [{"name": n, "patch": {}} for n in names] for axis, names in axes.items()}
        text["design"] = rng.choice(["grid", "pairs", "add_one_in"])
        spec = SweepSpec.model_validate(text)
        wanted, dropped = layout(spec)
        most = {"grid": 4, "pairs": 2, "add_one_in": 1}[text["design"]]
        everything = [c for c in product(*axes.values()) if sum(not level.endswith("0") for level in c) <= most]
        kept = {c for c in everything if not any(_matches(rule, dict(zip(axes, c, strict=True))) for rule in rules)}
        assert set(wanted) == kept
        assert {combination for combination, _ in dropped} == set(everything) - kept
        assert len(wanted) + len(dropped) == len(everything)


def _random_rule(axes, rng):
    chosen = rng.sample(list(axes), rng.randint(1, len(axes)))
    patterns = {axis: rng.choice([*axes[axis], f"{axis}[12]", "?1"]) for axis in chosen}
    return patterns | {"because": "of this"}


def _matches(rule, levels):
    return all(fnmatchcase(levels[axis], pattern) for axis, pattern in rule.items() if axis != "because")


@pytest.mark.parametrize(
    ("design", "message"),
    [
        ("{use: fractional}", "s.yaml:N: design: must give one of resolution and runs for design.use fractional"),
        ("{use: fractional, runs: 8, resolution: 3}", "design: must give one of resolution and runs"),
        ("{use: fractional, runs: 12}", "design.runs: must be a power of two from 8 to 32, got 12 (for 5 axes)"),
        ("{use: fractional, resolution: 6}", "design.resolution: must be in 3..5 for 5 axes, got 6"),
        ("{use: fractional, resolution: 0}", "design.resolution: must be greater than 0, got 0"),
        ("{use: grid, runs: 8}", "s.yaml:N: design.runs: belongs to design.use fractional, got 'grid'"),
        ("{use: pairs, full: {a: a1}}", "design.full: belongs to design.use leave_one_out, got 'pairs'"),
        ("{use: leave_one_out, full: {a: a0}}",
         "design.full.a: must not be the baseline's level: leaving it out changes nothing; must be one of a1; got"),
        ("{use: leave_one_out, full: {a: a7}}", "design.full.a: must be one of a0, a1; got 'a7'"),
        ("{use: leave_one_out, full: {z: a1}}", "design.full.z: must be one of a, b, c, d, e; got 'z'"),
        ("{use: list}", "design.cells: must list at least one cell for design.use list"),
        ("{use: list, cells: [{a: a1}, {b: c1}]}", "design.cells[1].b: must be one of b0, b1; got 'c1'"),
        ("{use: gird}", "design.use: must be one of grid, add_one_in, leave_one_out, pairs, fractional, list;"),
        ("{use: grid, rums: 8}", "design.rums: unknown key; must be one of cells, full, resolution, runs, use;"),
    ],
)  # fmt: skip
def test_refused(design, message):
    assert message.replace("N", "10") in errors(two_level(5) + f"design: {design}\n")


def test_fractions_need_axes_of_two_levels():
    text = HEAD + "axes: {alignment: [none], tokenizer: [flux, flux2, repa_e]}\ndesign: {use: fractional, runs: 4}\n"
    found = errors(text)
    assert "axes.alignment: must have exactly two levels for design.use fractional, got 1" in found
    assert "axes.tokenizer: must have exactly two levels for design.use fractional, got 3" in found
    assert "design.use: must not be fractional for fewer than 3 axes, got 2" in found


def test_the_last_level_cannot_be_on_where_it_is_the_baseline():
    text = two_level(3) + "baseline: {b: b1}\ndesign: leave_one_out\n"
    assert "design.full.b: must not be the baseline's level" in errors(text)


def test_a_fraction_is_shown_with_its_resolution_and_aliases():
    text = shown(two_level(4) + "design: {use: fractional, resolution: 4}\n")
    assert "2^(4-1) fraction, 8 of 16 runs, resolution IV: main effects are clear of two-way interactions" in text
    assert "generators: d = a × b × c\n" in text
    rows = [line.split("  ", 1) for line in text.splitlines()]
    table = {row[0].strip(): row[1].strip() for row in rows if len(row) == 2}
    assert {table[effect] for effect in ("a × b", "a × c", "a × d")} == {"c × d", "b × d", "b × c"}
    assert "a" not in table
    assert "left out" not in text


def test_resolution_five_confounds_nothing_of_interest():
    text = shown(two_level(5) + "design: {use: fractional, runs: 16}\n")
    assert "2^(5-1) fraction, 16 of 32 runs, resolution V: main effects and two-way interactions are clear" in text
    assert "generators: e = −a × b × c × d" in text
    assert "is confounded with" not in text


def test_exclusions_from_a_fraction_are_not_silent():
    design = "design: {use: fractional, runs: 8}\n"
    text = " ".join(shown(two_level(4) + design + "exclude: [{a: a1, b: b1, because: clash}]\n").split())
    assert "2 of the 8 runs are left out: the others are no longer orthogonal" in text
    assert "no longer estimable free of two-way interactions: " in text
    assert "even without interactions" not in text
    text = " ".join(shown(two_level(4) + design + "exclude: [{a: a1, d: d0, because: x}, {a: a0, d: d1, because: x}]\n"
                          ).split())  # fmt: skip
    assert "no longer estimable, even without interactions: a, b, c, d" in text


@pytest.mark.parametrize("width", [80, 120])
def test_leave_one_out_says_what_is_on_and_what_no_cell_has(width):
    axes = "axes:\n  alignment: [none, repa_dinov2, repa_dinov3]\n  tokenizer: [flux, flux2]\n"
    text = shown(HEAD + axes + "design: leave_one_out\n", width)
    assert "everything on: alignment repa_dinov3, tokenizer flux2" in text
    assert "in no cell of this design: alignment repa_dinov2" in text
    assert max(map(len, text.splitlines())) <= width
    text = shown(HEAD + axes + "design: {use: leave_one_out, full: {alignment: repa_dinov2}}\n", width)
    assert "everything on: alignment repa_dinov2, tokenizer flux2" in text
    assert "in no cell of this design: alignment repa_dinov3" in text
