"""SPRINT: one token a cell, a fusion that starts as the residual stream, a path that can be dropped."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from prx import recipe
from prx.batches import Batches
from prx.interfaces import Route, gather
from prx.rng import stream
from prx.techniques.sprint import Sprint, one_per_cell
from tests.helpers import randomise, running, same, weights
from tests.routes import (
    GRID,
    SHAPE,
    TOKENS,
    WIDTH,
    batch_of,
    dropped,
    inputs_of,
    merges,
    module_of,
    router_of,
    traffic,
)

DEEP = ("denoiser.blocks.1.", "denoiser.blocks.2.")


def drawn(router: Sprint, num: int = 3, seed: int = 0) -> Route:
    return router.draw(num, GRID, stream(seed, "routing"))


def fused(shallow: float, deep: float, **settings) -> Sprint:
    """Give a router whose fusion is [shallow I, deep I]."""
    router, unit = router_of("sprint", **settings), torch.eye(WIDTH)
    router.fuse.weight.data = torch.cat([shallow * unit, deep * unit], dim=1)
    return router


@pytest.mark.parametrize("grid", [(4, 4), (4, 6), (2, 8), (16, 16)])
def test_structured_selection_keeps_one_token_of_every_cell(grid):
    kept = one_per_cell(stream(0, "cells"), 50, grid)
    assert kept.dtype == torch.int64
    assert kept.shape == (50, grid[0] * grid[1] // 4)
    assert (kept.diff() > 0).all()
    marks = torch.zeros(50, grid[0] * grid[1]).scatter(1, kept, 1.0).view(50, grid[0] // 2, 2, grid[1] // 2, 2)
    assert torch.equal(marks.sum((2, 4)), torch.ones(50, grid[0] // 2, grid[1] // 2))


def test_cells_choose_uniformly_and_each_for_itself():
    num = 20_000
    kept = one_per_cell(stream(0, "cells"), num, (2, 4))
    marks = torch.zeros(num, 8).scatter(1, kept, 1.0)
    together = marks.T @ marks / num
    left = torch.tensor([0, 1, 4, 5])
    error = 5 * (0.25 / num) ** 0.5
    assert (together[left][:, left + 2] - 1 / 16).abs().max() < error
    assert (together[left][:, left] - torch.eye(4) / 4).abs().max() < error


@pytest.mark.parametrize("rate", [0.5, 0.75, 0.875])
def test_random_selection_takes_any_share(rate):
    kept = drawn(router_of("sprint", selection="random", drop_rate=rate), 50).kept
    assert kept.shape == (50, round((1 - rate) * TOKENS))
    assert (kept.diff() > 0).all()
    assert len({tuple(row) for row in kept.tolist()}) > 10


@pytest.mark.parametrize(
    ("settings", "shape", "problem"),
    [
        ({"drop_rate": 0.5}, {}, ("drop_rate", "must be 0.75 with selection structured (one token of every 2x2 cell), "
                                  "got 0.5; selection random takes any")),
        ({}, {"grid": (4, 3)}, ("selection", "must be random on an odd grid (4x3 tokens), got 'structured'")),
        ({"start": 3, "end": 2}, {}, ("start", "must be at most end (2; denoiser.depth is 4), got 3")),
        ({"end": 9}, {}, ("end", "must be in 0..3 (denoiser.depth is 4), got 9")),
    ],
)  # fmt: skip
def test_problems_name_key_rule_and_value(settings, shape, problem):
    assert Sprint.problems(Sprint.Config(use="sprint", **settings), replace(SHAPE, **shape)) == [problem]


def test_random_selection_needs_no_cells():
    config = Sprint.Config(use="sprint", selection="random", drop_rate=0.5)
    assert Sprint.problems(config, replace(SHAPE, grid=(3, 3))) == []


def test_defaults_are_those_of_the_study():
    config = Sprint.Config(use="sprint")
    assert (config.drop_rate, config.selection, config.path_drop) == (0.75, "structured", 0.1)
    assert Sprint.span(config, replace(SHAPE, depth=16)) == (2, 12)


def test_fusion_starts_as_the_mean_or_as_the_deep_path():
    shallow, deep = torch.randn(3, TOKENS, WIDTH), torch.randn(3, TOKENS, WIDTH)
    torch.testing.assert_close(router_of("sprint").merge(deep, shallow, None), (shallow + deep) / 2)
    assert torch.equal(router_of("sprint", fuse_init="deep").merge(deep, shallow, None), deep)


def test_deep_fusion_without_a_route_is_the_baseline():
    router, inputs = router_of("sprint", fuse_init="deep"), inputs_of()
    expected = module_of(None).predict(*inputs)
    assert torch.equal(module_of(router).predict(*inputs), expected)
    for nobody in (None, torch.zeros(3, dtype=torch.bool)):
        everyone = Route(torch.arange(TOKENS).repeat(3, 1), nobody)
        assert torch.equal(module_of(router).predict(*inputs, route=everyone), expected)


def test_fusion_acts_without_a_route():
    module, inputs = module_of(router_of("sprint")), inputs_of()
    expected = module.predict(*inputs)
    randomise(module.router, seed=7)
    assert not torch.allclose(module.predict(*inputs), expected, atol=1e-2)


def test_shallow_fusion_does_not_hear_the_deep_blocks():
    router = fused(1.0, 0.0)
    module, inputs, route = module_of(router), inputs_of(), drawn(router)
    short = copy.deepcopy(module)
    del short.denoiser.blocks[1:3]
    short.router = None
    expected = short.predict(*inputs)
    for choice in (None, route):
        assert torch.equal(module.predict(*inputs, route=choice), expected)
        changed = copy.deepcopy(module)
        randomise(changed.denoiser.blocks[1:3], seed=9)
        assert torch.equal(changed.predict(*inputs, route=choice), expected)


def test_deep_features_stand_at_their_places_and_the_mask_token_elsewhere():
    router = fused(0.0, 1.0, path_drop=0.0)
    randomise(router.mask)
    module, route = module_of(router), drawn(router)
    with merges(router) as found:
        module.predict(*inputs_of(), route=route)
    kept, full, merged = found[0]
    assert kept.shape == (3, TOKENS // 4, WIDTH)
    assert torch.equal(gather(merged, route.kept), kept)
    assert torch.equal(merged[dropped(route)], router.mask.token.expand(3 * 12, -1))
    assert not torch.equal(gather(full, route.kept), kept)


def test_samples_that_skip_see_the_mask_token_alone_and_teach_the_deep_blocks_nothing():
    router = fused(0.0, 1.0)
    randomise(router.mask)
    module = module_of(router)
    route = replace(drawn(router), skipped=torch.tensor([False, True, False]))
    with merges(router) as found:
        module.predict(*inputs_of(), route=route)
    merged = found[0][2]
    assert torch.equal(merged[1], router.mask.token.expand(TOKENS, -1))
    assert torch.equal(gather(merged, route.kept)[[0, 2]], found[0][0][[0, 2]])
    assert deep_gradient(module, merged[1].sum()) == 0
    assert deep_gradient(module, merged[0].square().sum()) > 0


def deep_gradient(module, value: Tensor) -> float:
    """Add up what reaches the sparse blocks."""
    deep = [parameter for name, parameter in module.named_parameters() if name.startswith(DEEP)]
    found = torch.autograd.grad(value, deep, retain_graph=True, allow_unused=True)
    return sum(float(gradient.abs().sum()) for gradient in found if gradient is not None)


def mask_gradient(route: Route | None) -> Tensor:
    router = router_of("sprint")
    module = module_of(router)
    loss, _ = module(batch_of(route))
    (found,) = torch.autograd.grad(loss, [router.mask.token], allow_unused=True)
    return torch.zeros(WIDTH) if found is None else found


def test_mask_token_learns_if_and_only_if_something_was_dropped():
    nobody, somebody = torch.zeros(3, dtype=torch.bool), torch.tensor([False, True, False])
    everyone, route = torch.arange(TOKENS).repeat(3, 1), drawn(router_of("sprint"))
    for choice in (None, Route(everyone), Route(everyone, nobody)):
        assert not mask_gradient(choice).any()
    for choice in (Route(route.kept), Route(route.kept, nobody), Route(everyone, somebody)):
        assert (mask_gradient(choice) != 0).all()


def test_mask_token_is_learned_from_zero_or_fixed_at_small_noise():
    learned = router_of("sprint")
    assert not learned.mask.token.any()
    assert {name for name, _ in learned.named_parameters()} == {"mask.token", "fuse.weight", "fuse.bias"}
    fixed = router_of("sprint", mask_token="fixed")
    assert {name for name, _ in fixed.named_parameters()} == {"fuse.weight", "fuse.bias"}
    assert "mask.token" in fixed.state_dict()
    technique, wide = type(fixed), replace(SHAPE, width=4096)
    token = technique(fixed.config, wide).mask.token
    assert float(token.std()) == pytest.approx(0.02, rel=0.05)
    assert abs(float(token.mean())) < 0.002
    assert torch.equal(fixed.mask.token, router_of("sprint", mask_token="fixed").mask.token)


def test_path_drop_is_a_share_of_the_samples_and_moves_no_other_draw():
    never, often = (router_of("sprint", path_drop=share) for share in (0.0, 0.3))
    without, with_drops = drawn(never, 10_000), drawn(often, 10_000)
    assert without.skipped is None
    assert torch.equal(without.kept, with_drops.kept)
    assert float(with_drops.skipped.float().mean()) == pytest.approx(0.3, abs=5 * (0.21 / 10_000) ** 0.5)


def test_dense_stage_goes_on_dropping_paths():
    route = router_of("sprint").draw_dense(1000, GRID, stream(0, "routing"))
    assert torch.equal(route.kept, torch.arange(TOKENS).repeat(1000, 1))
    assert 50 < int(route.skipped.sum()) < 150
    assert router_of("sprint", path_drop=0.0).draw_dense(4, GRID, stream(0, "routing")).skipped is None


def test_without_kept_tokens_the_deep_blocks_do_not_run():
    router = router_of("sprint")
    randomise(router)
    module, inputs = module_of(router), inputs_of()
    nothing = Route(torch.empty(3, 0, dtype=torch.int64))
    with traffic(module) as found:
        weak = module.predict(*inputs, route=nothing)
    assert found == [(0, 3, TOKENS), (3, 3, TOKENS)]
    randomise(module.denoiser.blocks[1:3], seed=4)
    assert torch.equal(module.predict(*inputs, route=nothing), weak)
    skipped = replace(drawn(router), skipped=torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(module.predict(*inputs, route=skipped), weak)
    assert not torch.allclose(module.predict(*inputs), weak, atol=1e-2)


def test_deep_blocks_run_on_a_quarter_of_the_tokens():
    router = router_of("sprint")
    module, route = module_of(router), drawn(router)
    with traffic(module) as found:
        module(batch_of(route))
    assert found == [(0, 3, TOKENS), (1, 3, 4), (2, 3, 4), (3, 3, TOKENS)]


def batches(world, rank: int = 0, **changes) -> Batches:
    config = world.config(**{"routing": {"use": "sprint", "path_drop": 0.5}} | changes)
    return Batches(config, world.cache, recipe.build(config), rank)


def test_workers_take_their_rows_of_the_route(world):
    whole = batches(world).batch(2)
    assert 0 < int(whole.skipped.sum()) < 8
    infrastructure = {"workers": 2, "threads": 1, "device": "cpu"}
    parts = [batches(world, rank, infrastructure=infrastructure).batch(2) for rank in (0, 1)]
    for name in ("kept", "skipped"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
        assert torch.equal(torch.cat([getattr(part, name) for part in whole.split(4)]), getattr(whole, name))


def test_dense_stage_starts_at_its_step(world):
    made = batches(world, routing={"use": "sprint", "dense_from": 3})
    assert [made.batch(step).kept.shape[1] for step in (0, 2, 3, 9)] == [4, 4, TOKENS, TOKENS]
    made = batches(world, routing={"use": "sprint", "dense_from": 3, "path_drop": 0.0})
    assert [made.batch(step).kept.shape[1] for step in (0, 2, 3, 9)] == [4, 4, TOKENS, TOKENS]
    assert made.batch(3).skipped is None


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_training_crosses_into_the_dense_stage(world, tmp_path, stage):
    """A resumed run goes on as the one that was not stopped: no gradient of the sparse stage lives on."""
    routing = {"use": "sprint", "dense_from": 2, "path_drop": 0.0}
    with running(world, tmp_path, routing=routing, zero_stage=stage) as trainer:
        trainer.advance(3)
        trainer.save()
        loss, expected = trainer.advance(6).loss, weights(trainer)
        assert torch.isfinite(torch.tensor(loss))
    with running(world, tmp_path, routing=routing, zero_stage=stage) as trainer:
        assert trainer.resume() == 3
        assert trainer.advance(6).loss == loss
        assert same(weights(trainer), expected)


def test_mask_token_rests_in_the_dense_stage_where_nothing_pushes_it(world, tmp_path):
    """With momentum off its own gradient alone moves it, so that a stale one would show."""
    adamw = {"use": "adamw", "lr": 1e-3, "eps": 1e-8, "betas": [0.0, 0.9]}
    routing = {"use": "sprint", "dense_from": 3, "path_drop": 0.0}
    for stage in (0, 2, 3):
        with running(world, tmp_path / str(stage), routing=routing, optimizer=adamw, zero_stage=stage) as trainer:
            tokens = [weights(trainer)["router.mask.token"] for step in range(3, 6) if trainer.advance(step)]
        assert tokens[0].any()
        assert torch.equal(tokens[0], tokens[1])
        assert torch.equal(tokens[0], tokens[2])


def test_fixed_mask_token_survives_a_checkpoint(world, tmp_path):
    routing = {"use": "sprint", "mask_token": "fixed"}
    with running(world, tmp_path, routing=routing) as trainer:
        token = trainer.engine.module.router.mask.token.clone()
        trainer.advance(2)
        assert torch.equal(trainer.engine.module.router.mask.token, token)
        trainer.engine.module.router.mask.token += 1
        trainer.save()
    with running(world, tmp_path, routing=routing) as trainer:
        trainer.resume()
        assert torch.equal(trainer.engine.module.router.mask.token, token + 1)
