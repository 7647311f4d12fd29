"""Contrastive flow matching: known values, gradient, optimum, and its choice of partners."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from prx import recipe
from prx.batches import Batches
from prx.interfaces import FlowSample, PairContext, RunShape, StepView
from prx.rng import normal, stream
from prx.techniques.contrastive import Contrastive
from prx.techniques.velocity import Velocity

WEIGHT = 0.05
SHAPE = RunShape(channels=4, latent_size=8, depth=2, grid=(8, 8))
FLOW = Velocity(Velocity.Config(use="velocity"))


def term(weight: float = WEIGHT, dropout: float = 0.0, **settings) -> Contrastive:
    config = Contrastive.Config(use="contrastive", weight=weight, **settings)
    return Contrastive("contrastive", config, replace(SHAPE, caption_dropout=dropout))


def pair(num: int, rng: np.random.Generator, weight: float = WEIGHT) -> np.ndarray:
    found = term(weight).pair(PairContext(np.arange(num), np.zeros(num, dtype=bool)), rng)
    assert found is not None
    return found


def gaussian(num: int, t: float = 0.5) -> FlowSample:
    clean, noise = (normal(stream(0, which), num, 1, 1, 1) for which in ("clean", "noise"))
    return FLOW.sample(clean, noise, torch.full((num,), t))


def partners(sample: FlowSample) -> torch.Tensor:
    index = pair(len(sample.t), stream(0, "pair"))
    return sample.velocity[torch.from_numpy(index)]


def total(velocity: torch.Tensor, sample: FlowSample, partner: torch.Tensor) -> torch.Tensor:
    view = StepView(sample, velocity, {}, partners={"contrastive": partner})
    return FLOW.loss(velocity, sample) + WEIGHT * term()(view)


def test_values_of_zero_and_of_perfect_prediction():
    sample = gaussian(200_000)
    partner = partners(sample)
    assert float(total(torch.zeros_like(partner), sample, partner)) == pytest.approx(1.9, abs=0.02)
    assert float(total(sample.velocity, sample, partner)) == pytest.approx(-0.2, abs=5e-3)


def test_term_is_minus_a_mean_over_every_element():
    velocity, partner = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    value = term()(StepView(gaussian(3), velocity, {}, partners={"contrastive": partner}))
    torch.testing.assert_close(value, -((velocity - partner) ** 2).sum() / velocity.numel())


def test_gradient_is_analytic():
    sample = gaussian(16)
    partner, velocity = partners(sample), torch.randn(16, 1, 1, 1, requires_grad=True)
    total(velocity, sample, partner).backward()
    expected = 2 * ((1 - WEIGHT) * velocity - sample.velocity + WEIGHT * partner) / velocity.numel()
    torch.testing.assert_close(velocity.grad, expected.detach())


@pytest.mark.parametrize("t", [0.2, 0.8])
def test_optimum_on_gaussian_data_is_too_long_by_a_known_factor(t):
    sample = gaussian(1_000_000, t)
    partner = partners(sample)
    factor = torch.tensor(0.0, requires_grad=True)
    # The loss is a parabola in the factor, so that its gradient at 0 and 1 gives the vertex.
    slopes = [
        torch.autograd.grad(total((factor + at) * sample.noised, sample, partner), factor)[0] for at in (0.0, 1.0)
    ]
    vertex = float(slopes[0] / (slopes[0] - slopes[1]))
    best = (t - (1 - t)) / ((1 - t) ** 2 + t**2)
    assert vertex == pytest.approx(best / (1 - WEIGHT), abs=0.012)
    assert abs(vertex) > abs(best) + 0.02


def test_nobody_is_its_own_partner_and_all_others_are_equally_likely():
    num, rounds = 6, 4000
    counts = np.zeros((num, num), dtype=int)
    for step in range(rounds):
        index = pair(num, stream(0, "losses/contrastive", step))
        assert index.shape == (num,)
        counts[np.arange(num), index] += 1
    assert np.diag(counts).sum() == 0
    for row in range(num):
        assert chisquare(np.delete(counts[row], row)).pvalue > 1e-4


def test_two_samples_swap():
    assert pair(2, stream(0, "pair")).tolist() == [1, 0]


def test_partners_are_other_samples_of_the_global_batch(world):
    losses = {"contrastive": {"use": "contrastive"}}
    config = world.config(losses=losses)
    batch = Batches(config, world.cache, recipe.build(config)).batch(3)
    velocity = batch.noise - batch.clean
    index = pair(config.batch_size, stream(config.seed, "losses/contrastive", 3))
    assert torch.equal(batch.partners["contrastive"], velocity[torch.from_numpy(index)])


@pytest.mark.parametrize("rank", [0, 1])
def test_each_worker_holds_its_rows_of_one_global_batch(world, rank):
    losses = {"contrastive": {"use": "contrastive"}, "repa": world.repa()}
    alone = world.config(losses=losses)
    shared = world.config(losses=losses, infrastructure={"workers": 2, "device": "cpu"})
    module = recipe.build(alone)
    whole, part = (
        Batches(alone, world.cache, module).batch(2),
        Batches(shared, world.cache, module, rank).batch(2),
    )
    rows = slice(4 * rank, 4 * rank + 4)
    for name in ("clean", "noise", "t", "text", "mask"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[rows]), name
    assert torch.equal(part.partners["contrastive"], whole.partners["contrastive"][rows])
    assert torch.equal(part.targets["repa"], whole.targets["repa"][rows])
