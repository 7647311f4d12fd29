"""The stage tree: what the configurations alone say of shared steps is what the keys of states say."""

from __future__ import annotations

import io
from itertools import product

import pytest
import yaml
from rich.console import Console

from prx import prepare
from prx.config import parse_run_config
from prx.yamlsource import parse_yaml
from sweeps.history.keys import Lineage
from sweeps.history.remember import boundaries
from sweeps.plan import make_plan
from sweeps.show_plan import render_plan
from sweeps.spec import parse_spec
from sweeps.tree import grow, render_tree, stage_tree

STOPS = (100, 200, 300, 400, 500, "never")


def level(stop, weight, **more):
    term = {"use": "repa", "teacher": "embedded:dinov2", "layer": 1, "weight": weight, "stop_step": stop}
    return {"name": f"stop_{stop}_{weight}", "patch": {"losses.repa": term | more}}


def planned(*levels, seeds=(0,), steps=600):
    sweep = {
        "name": "forks", "base": "embedded", "axes": {"alignment": ["none", *levels]}, "seeds": list(seeds),
        "scheduler": {"use": "none"}, "trial": {"steps": steps, "eval_every": 100},
    }  # fmt: skip
    source = parse_yaml(yaml.safe_dump(sweep, sort_keys=False), "forks.yaml")
    return make_plan(parse_spec(source), source)


def text_of(renderable) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(renderable)
    return console.file.getvalue()


def test_stop_steps_of_one_weight_share_a_trunk():
    tree = stage_tree(planned(*(level(stop, weight) for weight in (0.25, 0.5) for stop in STOPS), seeds=(0, 1)))
    assert tree.asked == 2 * 13 * 600
    assert tree.needed == 2 * (600 + 2 * (600 + 500 + 400 + 300 + 200 + 100))
    trunk = tree.roots[1][0]
    assert (trunk.start, trunk.end, trunk.cells) == (0, 600, 6)
    assert [(child.start, child.end) for child in trunk.children] == [(stop, 600) for stop in STOPS[:-1]]


def test_a_schedule_that_leans_towards_its_stop_shares_nothing():
    tree = stage_tree(planned(*(level(stop, 0.5, schedule="cosine") for stop in STOPS)))
    assert tree.needed == tree.asked


def test_parting_within_a_segment_parts_at_the_boundary_before():
    tree = stage_tree(planned(level(150, 0.5), level(50, 0.5), level("never", 0.5)))
    assert tree.needed == 600 + 600 + 600 + 500
    assert [root.cells for root, _ in tree.roots] == [1, 2, 1]


def test_the_plan_shows_the_tree_and_what_it_saves():
    text = text_of(render_plan(planned(*(level(stop, 0.5) for stop in (100, 500, "never")), seeds=(0, 1))))
    assert "3,600 of 4,800 steps need training (saves 25%): what is shared trains once\n" in text
    assert "  0 → 600  stop_never_0.5, shared by 3 cells, 2 seeds each\n" in text
    assert "    100 → 600  stop_100_0.5\n    500 → 600  stop_500_0.5\n" in text


def test_a_plan_without_shared_steps_shows_no_tree():
    assert "need training" not in text_of(render_plan(planned(level("never", 0.5))))


def test_a_large_tree_is_cut():
    tree = stage_tree(planned(*(level(stop, weight) for weight in (0.25, 0.5, 1.0) for stop in STOPS)))
    drawn = render_tree(tree, limit=4)
    assert len(drawn.plain.splitlines()) == 6
    assert drawn.plain.endswith("and 14 more branches")


@pytest.mark.parametrize("every", [1, 2, 3, 4])
def test_tree_and_keys_agree(world, every):
    """Every combination of two scheduled terms and dense training from some step on, in the tiny world."""
    stops, configs = (1, 2, 3, "never"), []
    for one, two, dense, weight in product(stops, stops, (None, 2, "never"), (0.5, 1.0)):
        losses = {"a": world.repa(stop_step=one), "b": world.repa(stop_step=two, weight=weight)}
        routing = {"use": "tread", "start": 0, "end": 0, "dense_from": dense} if dense else None
        settings = world.settings(
            losses=losses, routing=routing, evaluation={**world.settings()["evaluation"], "every": every}
        )
        configs.append(parse_run_config(settings))
    trained = {}
    for config in configs:
        lineage, before = Lineage(config, prepare.plan(config, world.cache)), 0
        for step in boundaries(config):
            trained[lineage.key(step)] = step - before
            before = step
    roots = grow((str(number), config) for number, config in enumerate(configs))
    assert sum(root.steps for root in roots) == sum(trained.values())
    assert sum(trained.values()) < len(configs) * 4 or every == 4
    assert sum(root.cells for root in roots) == len(configs)


def test_benchmark_counts_what_searches_choose(tmp_path):
    from sweeps.benchmarks import tree

    assert tree.count(tree.grid_plan().trials) == (12, 12 * 600, 2 * (600 + 500 + 400 + 300 + 200 + 100))
    (weights, *_) = tree.SEARCHED.values()
    trials = tree.searched(tree.search_plan(weights), tmp_path)
    number, asked, needed = tree.count(trials)
    assert number == len({trial.trial_id for trial in trials}) >= tree.TRIALS
    assert asked == number * 600
    assert needed < asked
