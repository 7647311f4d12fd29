"""The walk over the PRX transformer: equal to its own forward, with taps and routes as pure data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_prx import get_image_ids, img2seq
from torch import Tensor

from prx import denoiser
from prx.config import DenoiserConfig
from prx.denoiser import walk
from prx.interfaces import Route, RunShape, TokenRouter, gather
from tests.helpers import random_denoiser

SIDE, PATCH, TOKENS = 8, 2, 16


class Router(TokenRouter):
    """Keep a random half, or what the test says; put kept tokens back in place."""

    @classmethod
    def span(cls, config: tuple[int, int], shape: RunShape) -> tuple[int, int]:
        return config

    def draw(self, num: int, grid: tuple[int, int], rng: np.random.Generator) -> Route:
        total = grid[0] * grid[1]
        rows = [np.sort(rng.permutation(total)[: total // 2]) for _ in range(num)]
        return Route(torch.from_numpy(np.stack(rows)))

    def merge(self, kept: Tensor, full: Tensor, route: Route | None) -> Tensor:
        if route is None:
            return kept
        return full.scatter(1, route.kept.unsqueeze(-1).expand_as(kept), kept)


def router(start: int, end: int) -> Router:
    return Router((start, end), RunShape(channels=3, latent_size=SIDE, depth=4, grid=(4, 4)))


@pytest.fixture(scope="module")
def model():
    return random_denoiser()


@pytest.fixture(scope="module")
def inputs():
    torch.manual_seed(0)
    mask = torch.tensor([[True, True, True, False, False], [True, False, False, False, False]])
    return torch.randn(2, 3, SIDE, SIDE), torch.tensor([0.2, 0.9]), torch.randn(2, 5, 8), mask


def half(inputs) -> Tensor:
    return router(1, 2).draw(len(inputs[0]), (4, 4), np.random.default_rng(0)).kept


def test_walk_is_the_models_own_forward(model, inputs):
    noised, t, text, mask = inputs
    expected = model(noised, t, text, mask, return_dict=False)[0]
    assert expected.abs().min() > 0
    assert torch.equal(walk(model, *inputs)[0], expected)


def test_walk_gives_the_forwards_gradients(model, inputs):
    noised, t, text, mask = inputs
    walked = torch.autograd.grad(walk(model, *inputs)[0].square().sum(), list(model.parameters()))
    plain = torch.autograd.grad(
        model(noised, t, text, mask, return_dict=False)[0].square().sum(), list(model.parameters())
    )
    assert all(torch.equal(a, b) for a, b in zip(walked, plain, strict=True))
    assert all(gradient.abs().sum() > 0 for gradient in walked)


def test_taps_leave_the_output_alone_and_hold_block_outputs(model, inputs):
    seen = {}
    handles = [
        block.register_forward_hook(lambda _, __, out, n=number: seen.__setitem__(n, out))
        for number, block in enumerate(model.blocks)
    ]
    output, taps = walk(model, *inputs, tapped={0, 3})
    for handle in handles:
        handle.remove()
    assert torch.equal(output, walk(model, *inputs)[0])
    assert taps.keys() == {0, 3}
    assert all(torch.equal(taps[n].features, seen[n]) and taps[n].index is None for n in taps)
    assert not torch.equal(taps[0].features, taps[3].features)


def test_fresh_denoiser_gives_exactly_zero(inputs):
    config = DenoiserConfig(width=32, depth=2, heads=2, patch_size=PATCH)
    fresh = denoiser.build(config, channels=3, text_width=8)
    assert torch.equal(walk(fresh, *inputs)[0], torch.zeros(2, 3, SIDE, SIDE))


def test_output_depends_on_every_input(model, inputs):
    noised, t, text, mask = inputs
    base = walk(model, *inputs)[0]
    for changed in (
        (noised + 0.1, t, text, mask),
        (noised, t * 0.5, text, mask),
        (noised, t, text + 0.1, mask),
    ):
        assert not torch.allclose(walk(model, *changed)[0], base, atol=1e-3)


def test_masked_text_changes_nothing_and_gets_no_gradient(model, inputs):
    noised, t, text, mask = inputs
    text = text.clone().requires_grad_()
    output = walk(model, noised, t, text, mask)[0]
    output.square().sum().backward()
    assert torch.equal(text.grad[~mask], torch.zeros_like(text.grad[~mask]))
    assert (text.grad[mask].abs().sum(-1) > 0).all()
    other = torch.where(mask.unsqueeze(-1), text.detach(), 50 * torch.randn_like(text))
    assert torch.equal(walk(model, noised, t, other, mask)[0], output.detach())


def test_padding_length_does_not_matter(model, inputs):
    noised, t, text, mask = inputs
    longer = torch.nn.functional.pad(text, (0, 0, 0, 7), value=3.0)
    wider = torch.nn.functional.pad(mask, (0, 7))
    torch.testing.assert_close(
        walk(model, noised, t, longer, wider)[0], walk(model, *inputs)[0], rtol=1e-5, atol=1e-5
    )


def test_samples_of_a_batch_do_not_mix(model, inputs):
    alone = walk(model, *(value[1:] for value in inputs))[0]
    torch.testing.assert_close(alone, walk(model, *inputs)[0][1:], rtol=1e-5, atol=1e-5)


def test_router_that_keeps_all_is_dense(model, inputs):
    everything = torch.arange(TOKENS).repeat(2, 1)
    output, taps = walk(model, *inputs, tapped={2}, router=router(1, 2), route=Route(everything))
    dense, plain = walk(model, *inputs, tapped={2})
    assert torch.equal(output, dense)
    assert torch.equal(taps[2].features, plain[2].features)


def test_router_without_a_choice_runs_dense(model, inputs):
    assert torch.equal(walk(model, *inputs, router=router(1, 2))[0], walk(model, *inputs)[0])


def test_dropped_tokens_bypass_the_route(model, inputs):
    index = half(inputs)
    before = walk(model, *inputs, tapped={0})[1][0].features
    _, taps = walk(model, *inputs, tapped={0, 1, 2}, router=router(1, 2), route=Route(index))
    assert torch.equal(taps[0].features, before)
    assert taps[0].index is None
    assert torch.equal(taps[1].index, index)
    assert taps[2].features.shape == (2, TOKENS // 2, 32)

    short = random_denoiser()
    short.blocks = short.blocks[:1]
    skipped = walk(short, *inputs)[0]
    whole_route = router(1, 3)
    routed = walk(model, *inputs, router=whole_route, route=Route(index))[0]
    dropped = torch.ones(2, TOKENS, dtype=torch.bool).scatter(1, index, False)
    assert torch.equal(img2seq(routed, PATCH)[dropped], img2seq(skipped, PATCH)[dropped])
    assert (
        not torch.isclose(img2seq(routed, PATCH)[~dropped], img2seq(skipped, PATCH)[~dropped]).all(-1).any()
    )


def test_route_runs_blocks_on_the_kept_tokens_at_their_own_positions(model, inputs):
    noised, t, text, mask = inputs
    index = half(inputs)
    ids = gather(get_image_ids(2, SIDE, SIDE, PATCH, noised.device), index)
    position = model.pe_embedder(ids)
    tokens = gather(walk(model, *inputs, tapped={0})[1][0].features, index)
    time = model._compute_timestep_embedding(t, dtype=torch.float32)
    for block in model.blocks[1:3]:
        tokens = block(tokens, model.txt_in(text), time, position, mask)
    _, taps = walk(model, *inputs, tapped={2}, router=router(1, 2), route=Route(index))
    torch.testing.assert_close(taps[2].features, tokens, rtol=1e-5, atol=1e-6)
