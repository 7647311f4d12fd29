"""REPA: bounds, optima, invariances, who gets a gradient, and that it disturbs nobody's draws."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from prx import recipe
from prx.batches import Batches
from prx.denoiser import walk
from prx.interfaces import FlowSample, Route, RunShape, StepView, Tap
from prx.techniques.repa import Repa
from prx.techniques.velocity import Velocity
from prx.train_step import StepBatch, TrainStep
from tests.helpers import random_denoiser, randomise

WIDTH, TEACHER, TOKENS = 32, 24, 16
SHAPE = RunShape(channels=3, latent_size=8, depth=4, grid=(4, 4), width=WIDTH)


def term(teacher_width: int = TEACHER, **settings) -> Repa:
    torch.manual_seed(0)
    config = Repa.Config(use="repa", teacher="none", **({"layer": 1} | settings))
    return Repa("repa", config, SHAPE, teacher_width)


def view(features: torch.Tensor, target: torch.Tensor, index: torch.Tensor | None = None) -> StepView:
    empty = torch.zeros(len(features), 1, 1, 1)
    sample = FlowSample(empty, empty, torch.zeros(len(features)), empty)
    return StepView(sample, empty, {1: Tap(features, index)}, {"repa": target})


def number(repa: Repa, *arguments: torch.Tensor) -> float:
    return float(repa(view(*arguments)).detach())


@pytest.fixture
def tokens():
    torch.manual_seed(1)
    return torch.randn(3, TOKENS, WIDTH), torch.randn(3, TOKENS, TEACHER)


def test_bounds_are_reached_at_alignment_and_opposition(tokens):
    repa, (features, _) = term(), tokens
    aligned = repa.projector(features).detach()
    assert number(repa, features, aligned) == pytest.approx(-1, abs=1e-6)
    assert number(repa, features, -aligned) == pytest.approx(1, abs=1e-6)


def test_value_is_minus_the_mean_cosine(tokens):
    repa, (features, target) = term(), tokens
    projected = repa.projector(features)
    cosine = (projected * target).sum(-1) / projected.norm(dim=-1) / target.norm(dim=-1)
    torch.testing.assert_close(repa(view(features, target)), -cosine.mean())
    assert repa(view(features, target)).shape == ()


def test_positive_scale_of_each_token_does_not_matter(tokens):
    repa, (features, target) = term(), tokens
    scale = torch.rand(3, TOKENS, 1) * 5 + 0.1
    value = repa(view(features, target))
    torch.testing.assert_close(repa(view(features, target * scale)), value)
    repa.projector = torch.nn.Identity()
    plain = repa(view(target.flip(0), target))
    torch.testing.assert_close(repa(view(target.flip(0) * scale, target)), plain)


def test_order_of_tokens_does_not_matter_when_both_sides_share_it(tokens):
    repa, (features, target) = term(), tokens
    order = torch.randperm(TOKENS)
    value = repa(view(features, target))
    torch.testing.assert_close(repa(view(features[:, order], target[:, order])), value)
    assert not torch.isclose(repa(view(features[:, order], target)), value, atol=1e-4)


def test_kept_tokens_meet_their_own_targets(tokens):
    repa, (features, target) = term(), tokens
    index = torch.stack([torch.randperm(TOKENS)[:5].sort().values for _ in range(3)])
    kept = torch.stack([row[chosen] for row, chosen in zip(features, index, strict=True)])
    aligned = repa.projector(features).detach()
    assert number(repa, kept, aligned, index) == pytest.approx(-1, abs=1e-6)
    assert number(repa, kept, target, index) > -0.9


def test_random_targets_have_the_expected_spread():
    repa = term(teacher_width=1024)
    repa.projector = torch.nn.Identity()
    torch.manual_seed(2)
    cosines = -torch.stack([repa(view(torch.randn(1, 1, 1024), torch.randn(1, 1, 1024))) for _ in range(4000)])
    assert float(cosines.mean()) == pytest.approx(0, abs=4 / math.sqrt(1024 * 4000))
    assert float(cosines.std()) == pytest.approx(1 / math.sqrt(1024), rel=0.05)


def test_zero_projector_output_gives_zero(tokens):
    repa, (features, target) = term(), tokens
    torch.nn.init.zeros_(repa.projector[-1].weight)
    torch.nn.init.zeros_(repa.projector[-1].bias)
    assert number(repa, features, target) == 0


def test_projector_is_as_wide_as_the_teacher_unless_told():
    assert [layer.out_features for layer in term().projector if hasattr(layer, "out_features")] == [TEACHER] * 3
    hidden = [layer.out_features for layer in term(hidden=48).projector if hasattr(layer, "out_features")]
    assert hidden == [48, 48, TEACHER]


def step_and_batch(layer: int = 1) -> tuple[TrainStep, StepBatch]:
    repa = term(layer=layer)
    randomise(repa)
    flow = Velocity(Velocity.Config(use="velocity"))
    module = TrainStep(random_denoiser(), flow, {"repa": repa}, grid=(4, 4))
    torch.manual_seed(3)
    clean, noise, mask = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), torch.ones(2, 5, dtype=torch.bool)
    target = {"repa": torch.randn(2, TOKENS, TEACHER)}
    return module, StepBatch(clean, noise, torch.rand(2), torch.randn(2, 5, 8), mask, target)


def test_gradient_ends_at_the_tap():
    module, batch = step_and_batch()
    sample = module.objective.sample(batch.clean, batch.noise, batch.t)
    _, taps = walk(module.denoiser, sample.noised, batch.t, batch.text, batch.mask, tapped={1})
    value = module.losses["repa"](StepView(sample, sample.velocity, taps, batch.targets))
    named = dict(module.named_parameters())
    found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    reached = {name for name, gradient in zip(named, found, strict=True) if gradient is not None and gradient.any()}
    beyond = ("denoiser.blocks.2.", "denoiser.blocks.3.", "denoiser.final_layer.")
    assert reached == {name for name in named if not name.startswith(beyond)}


def test_weight_is_applied_once_and_outside_the_term():
    module, batch = step_and_batch()
    loss, terms = module(batch)
    torch.testing.assert_close(loss.detach(), terms["objective"] + 0.5 * terms["repa"])
    heavier, unweighted = module(replace(batch, weights={"repa": 2.0}))
    assert torch.equal(unweighted["repa"], terms["repa"])
    torch.testing.assert_close(heavier.detach(), terms["objective"] + 2 * terms["repa"])
    assert -1 <= float(terms["repa"]) <= 1
    assert not terms["repa"].requires_grad


def test_term_without_a_weight_at_this_step_is_absent():
    module, batch = step_and_batch()
    alone, terms = module(replace(batch, weights={}, targets={}))
    assert terms.keys() == {"objective"}
    assert torch.equal(alone.detach(), terms["objective"])


@pytest.mark.parametrize("extra", ["repa", "two teachers", "contrastive"])
def test_switching_a_term_on_changes_no_other_draw_and_no_initial_weight(world, extra):
    second = world.repa(teacher=str(world.root / "dinov3"), layer=1)
    losses = {
        "repa": {"repa": world.repa()},
        "two teachers": {"repa": world.repa(), "repa_v3": second},
        "contrastive": {"contrastive": {"use": "contrastive"}},
    }[extra]
    off, on = world.config(), world.config(losses=losses)
    plain, module = recipe.build(off), recipe.build(on)
    weights = module.denoiser.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in plain.denoiser.state_dict().items())
    for step in (0, 7):
        without, with_term = (Batches(c, world.cache, m).batch(step) for c, m in ((off, plain), (on, module)))
        for name in ("clean", "noise", "t", "text", "mask"):
            assert torch.equal(getattr(without, name), getattr(with_term, name)), name
    randomise(plain)
    randomise(module.denoiser)
    expected, _ = plain(without)
    loss, terms = module(with_term)
    assert torch.equal(terms["objective"], expected)
    assert not torch.equal(loss, expected)


def test_terms_of_one_kind_are_initialised_apart(world):
    both = {"a": world.repa(), "b": world.repa()}
    module, alone = (
        recipe.build(world.config(losses=both)),
        recipe.build(world.config(losses={"b": world.repa()})),
    )
    first, second = (module.losses[name].projector[0].weight for name in ("a", "b"))
    assert not torch.equal(first, second)
    assert torch.equal(second, alone.losses["b"].projector[0].weight)


def test_two_teachers_meet_the_tokens_that_a_route_kept(world):
    """Each term of several compares what the router let through with its own teacher's tokens at those places."""
    second = world.repa(teacher=str(world.root / "dinov3"), layer=1, weight=0.2)
    config = world.config(
        losses={"a": world.repa(layer=1), "b": second, "before": world.repa()}, routing={"use": "tread"}
    )
    module = recipe.build(config)
    randomise(module)
    batch = Batches(config, world.cache, module).batch(0)
    assert batch.kept is not None
    assert batch.kept.shape == (8, 8)
    loss, terms = module(batch)
    sample = module.objective.sample(batch.clean, batch.noise, batch.t)
    _, taps = walk(
        module.denoiser, sample.noised, batch.t, batch.text, batch.mask, tapped={0, 1},
        router=module.router, route=Route(batch.kept),
    )  # fmt: skip
    expected = {}
    for name, layer in (("a", 1), ("b", 1), ("before", 0)):
        target = batch.targets[name]
        if layer:
            target = torch.stack([row[kept] for row, kept in zip(target, batch.kept, strict=True)])
        projected = module.losses[name].projector(taps[layer].features)
        expected[name] = -torch.nn.functional.cosine_similarity(projected, target, dim=-1).mean()
        torch.testing.assert_close(terms[name], expected[name].detach())
    total = terms["objective"] + 0.5 * expected["a"] + 0.2 * expected["b"] + 0.5 * expected["before"]
    torch.testing.assert_close(loss, total)
    assert len({float(value.detach()) for value in expected.values()}) == 3
