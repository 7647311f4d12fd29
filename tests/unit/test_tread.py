"""TREAD: who is routed, that routed tokens are left alone, and that routes belong to (seed, step)."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_prx import get_image_ids, img2seq, seq2img
from pydantic import ValidationError
from torch import Tensor

from prx import recipe
from prx.batches import Batches
from prx.denoiser import walk
from prx.interfaces import Route, gather
from prx.rng import stream, subsets
from prx.techniques.repa import Repa
from prx.techniques.tread import Tread
from tests.helpers import randomise, running, same, weights
from tests.routes import DEPTH, GRID, PATCH, SHAPE, TOKENS, batch_of, dropped, inputs_of, merges, module_of, router_of


def drawn(router, num: int = 3, seed: int = 0) -> Route:
    return router.draw(num, GRID, stream(seed, "routing"))


@pytest.mark.parametrize(
    ("depth", "span"), [(16, (2, 12)), (12, (2, 8)), (28, (2, 24)), (8, (2, 5)), (4, (1, 2)), (3, (1, 2)), (2, (1, 1))]
)
def test_span_follows_the_sources_and_shrinks_with_depth(depth, span):
    config = Tread.Config(use="tread")
    assert Tread.span(config, replace(SHAPE, depth=depth)) == span
    assert Tread.problems(config, replace(SHAPE, depth=depth)) == []


def test_span_can_be_told_in_part():
    assert Tread.span(Tread.Config(use="tread", start=0), SHAPE) == (0, 2)
    assert Tread.span(Tread.Config(use="tread", end=3), SHAPE) == (1, 3)


@pytest.mark.parametrize(
    ("total", "rate", "kept"),
    [(256, 0.5, 128), (256, 0.75, 64), (1024, 0.25, 768), (9, 0.4, 5), (16, 0.999, 1), (16, 0.001, 15), (2, 0.5, 1)],
)
def test_number_of_kept_tokens_is_rounded_and_never_all_or_none(total, rate, kept):
    assert Tread.Config(use="tread", drop_rate=rate).num_kept(total) == kept


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_off_means_absent(rate):
    with pytest.raises(ValidationError, match="drop_rate"):
        Tread.Config(use="tread", drop_rate=rate)


@pytest.mark.parametrize(
    ("settings", "shape", "problem"),
    [
        ({"end": 4}, {}, ("end", "must be in 0..3 (denoiser.depth is 4), got 4")),
        ({"start": 3}, {}, ("start", "must be at most end (2; denoiser.depth is 4), got 3")),
        ({}, {"depth": 1}, ("start", "must be at most end (0; denoiser.depth is 1), got 1")),
        ({}, {"grid": (1, 1)}, ("drop_rate", "needs at least 2 image tokens to drop one of, got 1")),
    ],
)
def test_problems_name_key_rule_and_value(settings, shape, problem):
    assert Tread.problems(Tread.Config(use="tread", **settings), replace(SHAPE, **shape)) == [problem]


def test_routes_are_sorted_subsets_of_their_own_for_every_image():
    kept = drawn(router_of("tread"), 200).kept
    assert kept.shape == (200, 8)
    assert kept.dtype == torch.int64
    assert (kept.diff() > 0).all()
    assert kept.min() >= 0
    assert kept.max() < TOKENS
    assert len({tuple(row) for row in kept.tolist()}) > 190
    everyone = torch.cat([kept, dropped(Route(kept)).nonzero()[:, 1].view(200, -1)], dim=1)
    assert torch.equal(everyone.sort().values, torch.arange(TOKENS).repeat(200, 1))


def test_every_token_and_every_pair_is_kept_equally_often():
    num, total, size = 20_000, 8, 3
    chosen = torch.zeros(num, total).scatter(1, subsets(stream(0, "subsets"), num, total, size), 1.0)
    together = chosen.T @ chosen / num
    expected = torch.full((total, total), size / total * (size - 1) / (total - 1)).fill_diagonal_(size / total)
    assert (together - expected).abs().max() < 5 * (0.25 / num) ** 0.5


def test_without_a_route_nothing_happens():
    router, inputs = router_of("tread"), inputs_of()
    kept = torch.randn(3, TOKENS, 32)
    assert router.merge(kept, torch.zeros_like(kept), None) is kept
    assert torch.equal(module_of(router).predict(*inputs), module_of(None).predict(*inputs))
    assert list(router.parameters()) == []


def test_routed_tokens_leave_as_they_entered_and_kept_ones_as_blocks_made_them():
    router = router_of("tread")
    module, route = module_of(router), drawn(router)
    with merges(router) as found:
        _, taps = walk(module.denoiser, *inputs_of(), tapped={0, 2}, router=router, route=route)
    ((kept, full, merged),) = found
    away = dropped(route)
    assert torch.equal(full, taps[0].features)
    assert torch.equal(merged[away], full[away])
    assert torch.equal(gather(merged, route.kept), taps[2].features)
    assert torch.equal(kept, taps[2].features)
    assert not torch.isclose(kept, gather(full, route.kept)).all(-1).any()


def test_identity_blocks_give_back_what_came_in():
    router = router_of("tread")
    module, route = module_of(router), drawn(router)
    for block in module.denoiser.blocks[1:3]:
        torch.nn.init.zeros_(block.modulation.lin.weight)
        torch.nn.init.zeros_(block.modulation.lin.bias)
    assert torch.equal(module.predict(*inputs_of(), route=route), module.predict(*inputs_of()))


def test_routed_tokens_change_no_kept_one():
    router = router_of("tread", start=0)
    module, route, (noised, *rest) = module_of(router), drawn(router), inputs_of()
    other = torch.where(dropped(route).unsqueeze(-1), 9.0, img2seq(noised, PATCH))
    found = [
        walk(module.denoiser, image, *rest, tapped={2}, router=router, route=route)[1][2].features
        for image in (noised, seq2img(other, PATCH, noised.shape))
    ]
    assert torch.equal(*found)
    kept = torch.where(dropped(route).unsqueeze(-1), img2seq(noised, PATCH), 9.0)
    changed = seq2img(kept, PATCH, noised.shape)
    features = walk(module.denoiser, changed, *rest, tapped={2}, router=router, route=route)[1][2].features
    assert not torch.isclose(features, found[0]).all(-1).any()


def test_order_of_tokens_does_not_matter_when_positions_and_route_follow(monkeypatch):
    router = router_of("tread")
    module, route, (noised, *rest) = module_of(router), drawn(router), inputs_of()
    straight = img2seq(module.predict(noised, *rest, route=route), PATCH)
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(3))
    kept = (~dropped(route))[:, order].nonzero()[:, 1].view(len(noised), -1)
    monkeypatch.setattr("prx.denoiser.get_image_ids", lambda *sizes: get_image_ids(*sizes)[:, order])
    shuffled = seq2img(img2seq(noised, PATCH)[:, order], PATCH, noised.shape)
    moved = img2seq(module.predict(shuffled, *rest, route=Route(kept)), PATCH)
    torch.testing.assert_close(moved, straight[:, order], rtol=1e-4, atol=1e-4)
    unmoved = img2seq(module.predict(shuffled, *rest, route=route), PATCH)
    assert not torch.allclose(unmoved, straight[:, order], rtol=1e-2, atol=1e-2)


def reached(value: Tensor, module) -> set[int]:
    """List the blocks whose weights have a gradient of `value`."""
    found = set()
    for number, block in enumerate(module.denoiser.blocks):
        gradients = torch.autograd.grad(value, list(block.parameters()), retain_graph=True, allow_unused=True)
        if any(gradient is not None and gradient.any() for gradient in gradients):
            found.add(number)
    return found


def test_routed_tokens_teach_the_blocks_they_jump_over_nothing():
    router = router_of("tread")
    module, route = module_of(router), drawn(router)
    with merges(router) as found:
        module.predict(*inputs_of(), route=route)
    merged, away = found[0][2], dropped(route)
    assert reached(merged[away].square().sum(), module) == {0}
    assert reached(merged[~away].square().sum(), module) == {0, 1, 2}


def test_micro_batches_take_their_rows_of_the_route():
    router = router_of("tread")
    module, batch = module_of(router), batch_of(drawn(router, 4), 4)
    whole, _ = module(batch)
    parts = torch.stack([module(micro)[0] for micro in batch.split(2)])
    torch.testing.assert_close(parts.mean(), whole)
    assert not torch.isclose(module(replace(batch, kept=batch.kept.flip(0)))[0], whole)


def batches(world, rank: int = 0, **changes) -> Batches:
    config = world.config(**{"routing": {"use": "tread"}} | changes)
    return Batches(config, world.cache, recipe.build(config), rank)


def test_route_is_a_function_of_seed_and_step(world):
    made, again = batches(world), batches(world)
    again.batch(9)
    first = made.batch(4).kept
    assert first.shape == (8, 8)
    assert torch.equal(first, again.batch(4).kept)
    assert torch.equal(first, made.module.router.draw(8, GRID, stream(0, "routing", 4)).kept)
    assert not torch.equal(first, made.batch(5).kept)
    assert not torch.equal(first, batches(world, seed=1).batch(4).kept)


def test_workers_take_their_rows_of_the_route(world):
    infrastructure = {"workers": 2, "threads": 1, "device": "cpu"}
    parts = [batches(world, rank, infrastructure=infrastructure).batch(2).kept for rank in (0, 1)]
    assert torch.equal(torch.cat(parts), batches(world).batch(2).kept)


def test_routing_changes_no_other_draw_and_no_weight(world):
    plain, made = batches(world, routing=None), batches(world)
    for name in ("clean", "noise", "t", "text", "mask", "unconditional"):
        assert torch.equal(getattr(plain.batch(3), name), getattr(made.batch(3), name)), name
    assert plain.batch(3).kept is None
    first, second = plain.module.state_dict(), made.module.state_dict()
    assert same(first, second)


def test_dense_stage_is_the_baseline(world, tmp_path):
    """From `dense_from` on, steps are those of a run without a router, from the same checkpoint."""
    made = batches(world, routing={"use": "tread", "dense_from": 3})
    assert [made.batch(step).kept is None for step in (1, 2, 3, 4)] == [False, False, True, True]
    with running(world, tmp_path, routing={"use": "tread", "dense_from": 2}) as trainer:
        trainer.advance(2)
        trainer.save()
        expected = trainer.advance(4).loss, weights(trainer)
    with running(world, tmp_path) as trainer:
        trainer.resume(2)
        assert trainer.advance(4).loss == expected[0]
        assert same(weights(trainer), expected[1])
    with running(world, tmp_path / "routed", routing={"use": "tread"}) as trainer:
        trainer.advance(4)
        assert not same(weights(trainer), expected[1])


def repa(layer: int) -> Repa:
    config = Repa.Config(use="repa", teacher="none", layer=layer)
    return Repa("repa", config, SHAPE, 24)


@pytest.mark.parametrize("layer", range(DEPTH))
def test_alignment_inside_the_route_meets_the_targets_of_kept_tokens(layer):
    router, target = router_of("tread"), torch.randn(3, TOKENS, 24)
    module, route = module_of(router, {"repa": repa(layer)}), drawn(router)
    batch = batch_of(route, targets={"repa": target})
    noised = module.objective.sample(batch.clean, batch.noise, batch.t).noised
    arguments = (noised, batch.t, batch.text, batch.mask)
    features = walk(module.denoiser, *arguments, tapped={layer}, router=router, route=route)[1][layer].features
    if layer in (1, 2):
        target = torch.stack([row[kept] for row, kept in zip(target, route.kept, strict=True)])
    assert features.shape[1] == target.shape[1] == (8 if layer in (1, 2) else TOKENS)
    projected = module.losses["repa"].projector(features)
    cosine = torch.nn.functional.cosine_similarity(projected, target, dim=-1)
    torch.testing.assert_close(module(batch)[1]["repa"], -cosine.mean().detach())


@pytest.mark.parametrize("use", ["tread", "sprint"])
def test_copies_keep_the_route_and_nothing_is_hooked(use):
    router = router_of(use)
    module, batch = module_of(router), batch_of(drawn(router))
    twin = copy.deepcopy(module)
    expected = module(batch)[0]
    assert torch.equal(twin(batch)[0], expected)
    randomise(module, seed=5)
    assert torch.equal(twin(batch)[0], expected)
    assert not torch.isclose(module(batch)[0], expected)
    assert not torch.isclose(twin(replace(batch, kept=None, skipped=None))[0], expected)
    for part in twin.modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks


def test_route_is_numpy_free_of_global_state():
    router = router_of("tread")
    first = drawn(router).kept
    np.random.seed(1)
    torch.manual_seed(1)
    assert torch.equal(drawn(router).kept, first)
