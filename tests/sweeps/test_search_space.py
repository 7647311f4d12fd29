"""What a search may say: spaces cell by cell, snapping, declared ranges, points to try first, and every refusal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from rich.console import Console

from prx.errors import ConfigError
from prx.yamlsource import parse_yaml
from sweeps.history.remember import waypoints
from sweeps.plan import make_plan
from sweeps.search.space import contains, listed, settled, with_values
from sweeps.show_plan import render_plan
from sweeps.spec import parse_spec
from tests.sweeps import fakes
from tests.sweeps.searches import STOP, WEIGHT, plan

THREE = "[none, repa_dinov2, irepa_dinov2]"


def space(*lines, sampler="random", trials=2, more=""):
    listed = "".join(f"    {line}\n" for line in lines)
    return f"  sampler: {sampler}\n  trials: {trials}\n{more}  space:\n{listed}"


def spaces(planned):
    return {study.name: next(iter(study.spaces.values())) for study in planned.search.studies}


def refusal(text, **more):
    with pytest.raises(ConfigError) as error:
        plan(text, **more)
    return str(error.value)


def test_a_path_is_asked_only_where_the_part_is_on():
    found = spaces(plan(space(f"{WEIGHT}: {{log_uniform: [0.05, 2.0]}}", "losses.irepa.gamma: {uniform: [0.5, 1.0]}"),
                        alignment=THREE))  # fmt: skip
    assert found == {
        "repa_dinov2": {WEIGHT: FloatDistribution(0.05, 2.0, log=True)},
        "irepa_dinov2": {"losses.irepa.gamma": FloatDistribution(0.5, 1.0)},
    }


def test_with_all_levels_are_parameters_and_conditions_follow():
    text = space(f"{WEIGHT}: {{log_uniform: [0.05, 2.0]}}", "losses.irepa.gamma: {choice: [0.6, 1.0]}", trials=12)
    here = plan(text + "  within: all\n", alignment=THREE)
    (study,) = here.search.studies
    assert study.axes == {"alignment": ("none", "repa_dinov2", "irepa_dinov2")}
    assert [cell.name for cell in here.cells if not cell.values] == ["baseline"]
    for proposal in here.search.proposals["all"]:
        own = {"none": set(), "repa_dinov2": {WEIGHT}, "irepa_dinov2": {"losses.irepa.gamma"}}
        assert proposal.params.keys() - {"axes.alignment"} == own[proposal.params["axes.alignment"]]
    levels = {proposal.params["axes.alignment"] for proposal in here.search.proposals["all"]}
    assert levels == {"none", "repa_dinov2", "irepa_dinov2"}


def test_excluded_combinations_are_never_suggested():
    excluded = "exclude: [{alignment: 'repa*', objective: contrastive, because: x}]\n"
    exclude = f"  objective: [flow_matching, contrastive]\n{excluded}"
    here = plan(space(f"{WEIGHT}: {{log_uniform: [0.05, 2.0]}}", trials=10) + "  within: all\n", more=exclude)
    chosen = {tuple(cell.levels.values()) for cell in here.search.cells}
    assert ("repa_dinov2", "contrastive") not in chosen
    assert ("repa_dinov2", "flow_matching") in chosen


def test_steps_snap_to_evaluations():
    choice = plan(space(f"{STOP}: {{choice: [20%, 12, 60%, never]}}"))
    assert listed(spaces(choice)["repa_dinov2"][STOP]) == [10, 20, "never"]
    ranged = plan(space(f"{STOP}: {{int_uniform: [11, 39]}}"))
    assert spaces(ranged)["repa_dinov2"] == {STOP: IntDistribution(20, 30, step=10)}
    shares = plan(space(f"{STOP}: {{uniform: [25%, 90%]}}"))
    assert spaces(shares)["repa_dinov2"] == {STOP: IntDistribution(10, 30, step=10)}
    assert "snap to evaluations (every 10 steps)" in shown(shares)


def shown(planned):
    output = io.StringIO()
    Console(file=output, width=200).print(render_plan(planned))
    return output.getvalue()


def test_ranges_default_to_what_the_technique_declares():
    found = spaces(plan(space(f"{WEIGHT}: default", "losses.irepa: default"), alignment=THREE))
    assert found["repa_dinov2"] == {WEIGHT: FloatDistribution(0.1, 2.0, log=True)}
    assert found["irepa_dinov2"] == {
        "losses.irepa.weight": FloatDistribution(0.1, 2.0, log=True),
        "losses.irepa.gamma": CategoricalDistribution((0.0, 0.6, 0.8, 1.0)),
    }


def test_a_point_is_a_cell_of_its_own_that_is_what_its_name_says():
    here = plan(space(f"{WEIGHT}: {{log_uniform: [0.05, 2.0]}}", f"{STOP}: {{choice: [10, never]}}", trials=4))
    design = {cell.cell_id for cell in here.cells if not cell.values}
    for cell in here.search.cells:
        repa = cell.config.losses["repa"]
        assert cell.name == f"repa_dinov2 · weight={repa.weight:.4g} · stop_step={repa.stop_step}"
        assert cell.values == {WEIGHT: repa.weight, STOP: repa.stop_step}
        assert cell.levels == {"alignment": "repa_dinov2"}
        assert "losses.repa" in cell.difference
        assert float(f"{repa.weight:.4g}") == repa.weight
    assert not design & {cell.cell_id for cell in here.search.cells}


def test_points_that_differ_in_the_fifth_digit_have_names_of_their_own():
    """Cells of one name would be seeds of one unit to early stopping."""
    here = plan(space(f"{WEIGHT}: {{choice: [0.99991, 0.99995, 0.99999]}}", sampler="grid", trials=3))
    names = [f"repa_dinov2 · weight={value}" for value in (0.99991, 0.99995, 0.99999)]
    assert [cell.name for cell in here.search.cells] == names


def test_points_to_try_first_come_first_and_the_sampler_fills_them_in():
    first = f"  first: [{{{WEIGHT}: 0.31, {STOP}: 20}}, {{{WEIGHT}: 0.7}}]\n"
    here = plan(space(f"{WEIGHT}: {{log_uniform: [0.05, 2.0]}}", f"{STOP}: {{choice: [10, 20]}}", trials=3, more=first))
    assert here.search.cells[0].values == {WEIGHT: 0.31, STOP: 20}
    assert here.search.cells[1].values[WEIGHT] == 0.7
    assert len(here.search.cells) == 3


def test_all_points_to_try_first_are_tried_also_where_the_sampler_would_start_with_fewer():
    points = "".join(f"  - {{{WEIGHT}: {weight}}}\n" for weight in (0.1, 0.2, 0.3, 0.4))
    more = f"  startup: 2\n  first:\n{points}"
    text = space(f"{WEIGHT}: {{log_uniform: [0.05, 2.0]}}", sampler="tpe", trials=4, more=more)
    proposals = plan(text).search.proposals["repa_dinov2"]
    assert [proposal.params[WEIGHT] for proposal in proposals[1:]] == [0.1, 0.2, 0.3, 0.4]
    fewer = text.replace("trials: 4", "trials: 3")
    assert "search.first: must be no more points than search.trials (3), got 4" in refusal(fewer)


def test_a_grid_is_planned_whole():
    text = space(f"{WEIGHT}: {{choice: [0.25, 0.5]}}", f"{STOP}: {{choice: [25%, 50%, never]}}", sampler="grid")
    here = plan(text.replace("  trials: 2\n", ""))
    # Weight 0.5 without a stop is the design's own cell.
    assert len(here.search.cells) == 5
    assert len(here.trials) == 7
    assert "5 known now and planned above, none to be chosen later" in shown(here)


def test_a_plan_says_how_many_points_come_in_how_many_waves():
    text = shown(plan(space(f"{WEIGHT}: {{log_uniform: [0.05, 2.0]}}", sampler="tpe", trials=40)))
    assert "40 points beside the design's cells: 10 known now" in text
    assert "30 to be chosen in 8 more waves" in text
    assert "42 trials, 1,680 steps in all" in text


def test_small_parts():
    assert with_values({"a": {"b": 1, "c": 2}}, {"a.b": 3}) == {"a": {"b": 3, "c": 2}}
    assert settled(FloatDistribution(0.05, 2.0), 0.123456) == 0.1235
    assert settled(FloatDistribution(0.123449, 2.0), 0.123449) == 0.123449
    assert contains(IntDistribution(10, 30, step=10), 20)
    assert not contains(IntDistribution(10, 30, step=10), 15)
    assert not contains(CategoricalDistribution((10, "never")), "10")
    assert listed(FloatDistribution(0.0, 1.0, step=0.5)) == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (space(f"{WEIGHT}: {{log_uniform: [2.0, 0.05]}}"),
         f"search.space.{WEIGHT}: log_uniform must have low < high, got [2.0, 0.05]"),
        (space(f"{WEIGHT}: {{log_uniform: [0, 1]}}"), "log_uniform must have bounds above 0, got [0, 1]"),
        (space(f"{WEIGHT}: {{loguniform: [0.1, 1]}}"),
         "unknown key; must be one of uniform, log_uniform, int_uniform, choice, step"),
        (space(f"{WEIGHT}: {{uniform: [0.1]}}"), "uniform must be [low, high], got [0.1]"),
        (space(f"{WEIGHT}: {{uniform: [0.1, .inf]}}"), "uniform must have finite numbers as bounds, got inf"),
        (space(f"{WEIGHT}: {{choice: []}}"), "choice must be a list of values, got []"),
        (space(f"{WEIGHT}: {{choice: [1.0, 1.0]}}"), "choice must list distinct values, got 1.0 twice"),
        (space(f"{WEIGHT}: {{uniform: [-1.0, 1.0]}}"),
         "cannot be -1.0: losses.repa.weight: must be greater than 0, got -1.0"),
        (space(f"{WEIGHT}: {{uniform: [10%, 20%]}}"), "is no step of the run, so 10% means nothing; write numbers"),
        (space("losses.repa.wieght: {uniform: [0.1, 1.0]}"),
         "search.yaml:11: search.space.losses.repa.wieght: names a setting of no cell (did you mean "
         "'losses.repa.weight'?)"),
        (space("losses.irepa.weight: {uniform: [0.1, 1.0]}"), "losses.irepa.weight: names a setting of no cell"),
        (space("seed: {choice: [1, 2]}"), "search.space.seed: is decided by seeds of the sweep"),
        (space("infrastructure.threads: {choice: [1, 2]}"), "decides no result"),
        (space("losses.repa.layer: {int_uniform: [0, 40]}"), "cannot be 40: losses.repa.layer: must be in 0.."),
        (space("losses.repa.layer: default"), "has no declared range; must be one of weight; got 'layer'"),
        (space("warmup_steps: default"), "is no setting of a technique"),
        (space(f"{STOP}: {{choice: [10, 40]}}"),
         "must be a step inside the run (1..39), a share of it such as 20%, or never, got 40"),
        (space(f"{STOP}: {{int_uniform: [0, 30]}}"), "must be a step inside the run (1..39)"),
        (space(f"{STOP}: {{int_uniform: [0%, 50%]}}"),
         "must be a step inside the run (1..39), a share of it such as 20%, or never, got '0%'"),
        (space(f"{STOP}: {{choice: [120%]}}"), "a share of it such as 20%, or never, got '120%'"),
        (space(f"{STOP}: {{int_uniform: [11, 19]}}"),
         "must hold an evaluation before the run's end (one every 10 of 40 steps), got 11..19"),
        (space(f"{STOP}: {{log_uniform: [10, 30]}}"), "write int_uniform or choice, not log_uniform"),
        (space(f"{WEIGHT}: default", trials=0), "search.trials: must be greater than 0, got 0"),
        (space(f"{WEIGHT}: default").replace("  trials: 2\n", ""), "search: trials: is required for sampler random"),
        (space(f"{WEIGHT}: default", sampler="tpa"),
         "search.sampler: must be one of tpe, multivariate_tpe, cma_es, nsga2, random, grid; got 'tpa' (did "
         "you mean 'tpe'?)"),
        (space(f"{WEIGHT}: default", sampler="grid"), "must be a choice, or a range with a step, for sampler grid"),
        (space(f"{WEIGHT}: {{choice: [0.1, 0.2, 0.3]}}", sampler="grid"),
         "search.trials: must be at least 3, the points of the grid in 'repa_dinov2', or be left out, got 2"),
        (space(f"{WEIGHT}: {{choice: [0.1, 0.2]}}", sampler="cma_es"),
         "search.sampler: cma_es needs a continuous range to move, and 'repa_dinov2' has none"),
        (space(f"{WEIGHT}: default", sampler="cma_es", more="  within: all\n"), "write search.within: cell"),
        (space(f"{WEIGHT}: default", more=f"  first: [{{{WEIGHT}: 5.0}}]\n"),
         f"search.first[0]: {WEIGHT} must be within 0.1..2, got 5.0"),
        (space("warmup_steps: {int_uniform: [0, 30]}", more="  first: [{warmup_steps: 31}]\n"),
         "search.first[0]: warmup_steps must be within 0..30, got 31"),
        (space(f"{STOP}: {{int_uniform: [10, 20]}}", more=f"  first: [{{{STOP}: 30}}]\n"),
         f"search.first[0]: {STOP} must be one of 10, 20, got 30"),
        (space(f"{WEIGHT}: default", more="  first: [{losses.repa.layer: 1}]\n"),
         "search.first[0]: has paths that no cell has together"),
        (space(f"{WEIGHT}: default", more="  first: [{}]\n"),
         "search.first[0]: must name a value of at least one searched path"),
        (space(f"{WEIGHT}: default", more="  storage: study.db\n"),
         "search.storage: must be 'journal', a file in the sweep's folder, or"),
    ],
)  # fmt: skip
def test_refused(text, message):
    found = refusal(text)
    assert message in found
    assert found.startswith("search.yaml:")


def test_one_study_needs_one_range_for_a_path():
    levels = (
        "[none, {name: a, patch: {losses.x: {use: repa, teacher: 'embedded:dinov2', layer: 1}}}, "
        "{name: b, patch: {losses.x: {use: contrastive}}}]"
    )
    found = refusal(space("losses.x.weight: default") + "  within: all\n", alignment=levels)
    assert "losses.x.weight: must be the same range in every cell for search.within all" in found


def test_two_objectives_are_not_for_cma_es():
    found = refusal(space(f"{WEIGHT}: default", sampler="cma_es"), more="objectives: {cmmd: min, adherence: max}\n")
    assert "must be nsga2, tpe, multivariate_tpe, random or grid for two objectives" in found


def test_checkpoints_stay_where_points_to_come_may_part():
    steps = f"{STOP}: {{choice: [10, 20, 30, never]}}"
    few = plan(space(f"{WEIGHT}: {{choice: [0.25, 0.5]}}", steps, sampler="tpe", trials=6, more="  startup: 2\n"))
    by_stop = {cell.values[STOP]: few.search.forks(cell.config) for cell in few.search.cells}
    for stop, forks in by_stop.items():
        assert forks == {step for step in (10, 20, 30) if stop == "never" or step <= stop}
    baseline, repa = few.cells[:2]
    assert few.search.forks(baseline.config) == frozenset()
    assert few.search.forks(repa.config) == {10, 20, 30}
    lineage = fakes.Lineage(repa.config, Path())
    kept = waypoints({"t": (repa.config, lineage)}, {"t": few.search.forks(repa.config)})["t"]
    assert [point.keep for point in kept] == [True] * 4
    assert [point.keep for point in waypoints({"t": (repa.config, lineage)})["t"]] == [False, False, False, True]
    # Two continuous weights are never the same, so nothing can part; a grid has no points to come.
    endless = plan(space(f"{WEIGHT}: {{uniform: [0.25, 0.5]}}", steps, sampler="tpe", trials=6, more="  startup: 2\n"))
    assert endless.search.forks(endless.cells[1].config) == frozenset()


def test_the_example_of_the_documentation_plans():
    text = (Path(__file__).parents[2] / "docs" / "search.md").read_text(encoding="utf-8")
    source = parse_yaml(text.partition("```yaml\n")[2].partition("```")[0], "search.md")
    here = make_plan(parse_spec(source), source)
    assert here.search.cells[0].values == {WEIGHT: 0.5, STOP: 200}
    assert "14 to be chosen in 4 more waves" in shown(here)
