"""iREPA: what normalising does to targets, what a convolution sees, and that both switch apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from prx import recipe
from prx.config import parse_run_config
from prx.interfaces import FlowSample, RunShape, StepView, Tap
from prx.techniques.irepa import IRepa
from prx.techniques.repa import Repa
from tests.helpers import running, weights

WIDTH, TEACHER, TOKENS, GRID = 32, 24, 16, (4, 4)
SHAPE = RunShape(channels=3, latent_size=8, depth=4, grid=GRID, width=WIDTH)


def term(**settings) -> IRepa:
    torch.manual_seed(0)
    config = IRepa.Config(use="irepa", teacher="none", **({"layer": 1} | settings))
    return IRepa("term", config, SHAPE, TEACHER)


def view(features: Tensor, target: Tensor, index: Tensor | None = None) -> StepView:
    empty = torch.zeros(len(features), 1, 1, 1)
    sample = FlowSample(empty, empty, torch.zeros(len(features)), empty)
    return StepView(sample, empty, {1: Tap(features, index)}, {"term": target}, grid=GRID)


def refused(**settings) -> list[tuple[str, str]]:
    shape = replace(SHAPE, **settings.pop("shape", {}))
    return IRepa.problems(term(**settings).config, shape)


@pytest.fixture
def tokens():
    torch.manual_seed(1)
    shared = 3 * torch.randn(1, 1, TEACHER)
    return torch.randn(3, TOKENS, WIDTH), F.layer_norm(shared + torch.randn(3, TOKENS, TEACHER), (TEACHER,))


def spread(target: Tensor) -> float:
    """Average the cosine over all pairs of different tokens of an image."""
    unit = F.normalize(target, dim=-1)
    cosines = unit @ unit.transpose(1, 2)
    return float((cosines.sum() - len(target) * TOKENS) / (len(target) * TOKENS * (TOKENS - 1)))


def test_whole_mean_leaves_every_channel_centred_and_of_unit_spread(tokens):
    normal = term(gamma=1.0)._target(tokens[1])
    torch.testing.assert_close(normal.mean(1), torch.zeros(3, TEACHER), rtol=0, atol=1e-5)
    torch.testing.assert_close(normal.std(1), torch.ones(3, TEACHER), rtol=0, atol=1e-4)
    torch.testing.assert_close(term()._target(tokens[1] + torch.randn(TEACHER)), normal, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
def test_channels_may_be_scaled_and_the_rest_of_the_mean_stays(tokens, gamma):
    target, scale = tokens[1], torch.rand(TEACHER) * 5 + 0.1
    normal = term(gamma=gamma)._target(target)
    torch.testing.assert_close(term(gamma=gamma)._target(target * scale), normal, rtol=1e-3, atol=1e-3)
    kept = (1 - gamma) * target.mean(1) / target.std(1)
    torch.testing.assert_close(normal.mean(1), kept, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(normal.std(1), torch.ones(3, TEACHER), rtol=0, atol=1e-4)


def test_only_the_papers_gamma_removes_what_tokens_share(tokens):
    """LayerNormed tokens have feature means of zero, so that PRX's gamma subtracts next to nothing."""
    raw = spread(tokens[1])
    assert raw > 0.6
    found = [spread(term(gamma=gamma)._target(tokens[1])) for gamma in (0.0, 0.6, 0.8, 1.0)]
    assert found == sorted(found, reverse=True)
    assert abs(found[-1]) < 0.1
    assert spread(term(prx_gamma=True)._target(tokens[1])) == pytest.approx(found[0], abs=1e-3)


def test_prx_gamma_is_a_mean_over_features():
    target = torch.randn(2, TOKENS, TEACHER) + 2
    gamma, mean, std = target.mean(2, keepdim=True), target.mean(1, keepdim=True), target.std(1, keepdim=True)
    torch.testing.assert_close(term(prx_gamma=True)._target(target), (target - gamma * mean) / (std + 1e-6))


def test_value_is_minus_the_mean_cosine_with_normalised_targets(tokens):
    features, target = tokens
    irepa = term()
    rows = features.transpose(1, 2).reshape(3, WIDTH, *GRID)
    projected = irepa.projector(rows).reshape(3, TEACHER, TOKENS).transpose(1, 2)
    centred = target - target.mean(1, keepdim=True)
    cosine = F.cosine_similarity(projected, centred / (centred.square().sum(1, keepdim=True) / 15).sqrt(), dim=-1)
    torch.testing.assert_close(irepa(view(features, target)), -cosine.mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_convolution_sees_its_neighbourhood_only(tokens, kernel):
    irepa, features = term(kernel=kernel), tokens[0]
    changed = features.clone()
    changed[:, 5] += 1  # row 1, column 1
    moved = (irepa._project(changed, GRID) - irepa._project(features, GRID)).abs().sum(-1) > 0
    near = {r * 4 + c for r in range(4) for c in range(4) if max(abs(r - 1), abs(c - 1)) <= kernel // 2}
    for row in moved:
        assert set(row.nonzero().flatten().tolist()) == near


def test_kernel_of_one_is_a_linear_layer_and_larger_ones_know_the_place(tokens):
    features, order = tokens[0], torch.randperm(TOKENS, generator=torch.Generator().manual_seed(0))
    single = term(kernel=1)
    linear = F.linear(features, single.projector.weight.flatten(1), single.projector.bias)
    torch.testing.assert_close(single._project(features, GRID), linear)
    for projector, equivariant in (("conv", False), ("mlp", True)):
        irepa = term(projector=projector)
        moved, plain = irepa._project(features[:, order], GRID), irepa._project(features, GRID)[:, order]
        assert torch.allclose(moved, plain, atol=1e-5) == equivariant


def test_with_both_changes_off_it_is_repa(tokens):
    torch.manual_seed(0)
    repa = Repa("term", Repa.Config(use="repa", teacher="none", layer=1), SHAPE, TEACHER)
    plain = term(projector="mlp", normalise=False)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), repa.parameters(), strict=True))
    assert torch.equal(plain(view(*tokens)), repa(view(*tokens)))
    assert not torch.equal(term(projector="mlp")(view(*tokens)), repa(view(*tokens)))


def test_routed_tokens_meet_targets_normalised_over_the_whole_image(tokens):
    features, target = tokens
    index = torch.stack([torch.randperm(TOKENS)[:5].sort().values for _ in range(3)])
    kept = torch.gather(features, 1, index.unsqueeze(-1).expand(-1, -1, WIDTH))
    irepa = term(projector="mlp")
    whole = irepa._target(target)
    wanted = torch.stack([row[chosen] for row, chosen in zip(whole, index, strict=True)])
    expected = -F.cosine_similarity(irepa.projector(kept), wanted, dim=-1).mean()
    torch.testing.assert_close(irepa(view(kept, target, index)), expected)


ROUTED = {"shape": {"route": (1, 2)}}
RULES = [
    ({"layer": 4}, "layer", "must be in 0..3 (denoiser.depth is 4), got 4"),
    (
        {"layer": 2, **ROUTED},
        "layer",
        "must be outside the routed blocks 1..2, which see no whole grid to convolve (projector: mlp needs none), "
        "got 2",
    ),
    ({"projector": "mlp", "kernel": 5}, "kernel", "must be left at 3 with projector mlp, which has none, got 5"),
    ({"hidden": 8}, "hidden", "must be null with projector conv, which has no hidden layer, got 8"),
    ({"prx_gamma": True, "normalise": False}, "prx_gamma", "must be false where normalise is false, got true"),
    (
        {"shape": {"grid": (1, 1)}},
        "normalise",
        "must be false on a grid of one token, which has no spread, got true",
    ),
    (
        {"stop_when": {"block": 2}},
        "stop_when.block",
        "must be in 0..1, where the term has a gradient, got 2",
    ),
]


@pytest.mark.parametrize(("settings", "key", "message"), RULES, ids=[key for _, key, _ in RULES])
def test_rules(settings, key, message):
    assert refused(**settings) == [(key, message)]


def test_what_works_inside_and_around_a_route_is_let_through():
    assert refused(layer=0, **ROUTED) == refused(layer=3, **ROUTED) == []
    assert refused(layer=2, projector="mlp", **ROUTED) == []


def test_only_odd_kernels_exist():
    with pytest.raises(ValidationError, match="kernel"):
        term(kernel=2)


@pytest.mark.parametrize("settings", [{}, {"projector": "mlp", "prx_gamma": True}], ids=["conv", "mlp"])
def test_it_trains(world, tmp_path, settings):
    part = {"use": "irepa", "teacher": str(world.root / "dinov3"), "layer": 0} | settings
    assert recipe.problems(parse_run_config(world.settings(losses={"irepa": part}))) == []
    with running(world, tmp_path, losses={"irepa": part}) as trainer:
        before = weights(trainer)
        assert -1 <= trainer.advance(2).terms["irepa"] <= 1
        moved = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert {name for name in before if name.startswith("losses.irepa.projector")} <= moved
