"""x-prediction: weights, conversions there and back, where the sampler ends, and what it shares with others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from prx import recipe
from prx.batches import Batches
from prx.interfaces import FlowSample
from prx.rng import normal, stream
from prx.sampling import draw, euler
from prx.techniques.velocity import Velocity
from prx.techniques.x_prediction import XPrediction
from tests.helpers import running

NUM = 400_000
VELOCITY = Velocity(Velocity.Config(use="velocity"))


def flow(**settings) -> XPrediction:
    return XPrediction(XPrediction.Config(use="x_prediction", **settings))


def sample_at(t: torch.Tensor, objective: XPrediction | None = None) -> FlowSample:
    clean, noise = (normal(stream(0, which), len(t), 2, 4, 4) for which in ("clean", "noise"))
    return (objective or flow()).sample(clean, noise, t)


def view(t: torch.Tensor) -> torch.Tensor:
    return t.view(-1, 1, 1, 1)


@pytest.mark.parametrize("settings", [{}, {"noise_scale": 2.0}, {"clamp": 0.3}])
def test_perfect_output_has_no_loss(settings):
    objective = flow(**settings)
    sample = sample_at(torch.linspace(0.001, 1, 9), objective)
    assert objective.loss(objective.to_velocity(sample.clean, sample.noised, sample.t), sample) == 0


def test_from_the_clamp_on_it_is_the_velocity_loss():
    objective, t = flow(), torch.linspace(0.05, 1, 20)
    sample = sample_at(t)
    velocity = objective.to_velocity(torch.randn_like(sample.clean), sample.noised, t)
    torch.testing.assert_close(objective.target(sample), sample.velocity, rtol=0, atol=5e-6)
    torch.testing.assert_close(objective.loss(velocity, sample), VELOCITY.loss(velocity, sample), rtol=1e-5, atol=0)


def test_below_the_clamp_it_is_not():
    sample = sample_at(torch.full((4,), 0.01))
    torch.testing.assert_close(flow().target(sample), 0.2 * sample.velocity, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("t", "weight"), [(0.001, 400), (0.05, 400), (0.1, 100), (0.5, 4), (1.0, 1)])
def test_error_of_the_output_is_weighted(t, weight):
    objective = flow()
    sample = sample_at(torch.full((3,), t))
    output = torch.randn_like(sample.clean)
    loss = objective.loss(objective.to_velocity(output, sample.noised, sample.t), sample)
    torch.testing.assert_close(loss, weight * (output - sample.clean).square().mean(), rtol=1e-4, atol=0)


def mean_weight(clamp: float = 0.05) -> float:
    """E[1 / max(t, clamp)²] under logit-normal(0, 1), by quadrature over the logit."""
    return quad(lambda z: norm.pdf(z) * max(1 / (1 + np.exp(-z)), clamp) ** -2, -12, 12, points=[-np.log(19)])[0]


@pytest.mark.parametrize(("name", "expected"), [("logit_normal", 10.96), ("prx_mix", 13.77)])
def test_average_weight(name, expected):
    exact = mean_weight()
    if name == "prx_mix":  # a tenth is uniform: ∫ max(t, c)^-2 dt = 1/c + 1/c - 1
        exact = 0.9 * exact + 0.1 * (2 / 0.05 - 1)
    assert exact == pytest.approx(expected, abs=0.015)
    t = flow(timesteps=name).timesteps(NUM, stream(0, "timestep")).double()
    assert float(t.clamp(min=0.05).pow(-2).mean()) == pytest.approx(expected, abs=0.2)


@pytest.mark.parametrize(("name", "expected"), [("logit_normal", 10.96), ("prx_mix", 13.77)])
def test_first_loss_is_the_average_weight_times_the_datas_power(name, expected):
    """The denoiser's output starts at zero; with velocity prediction the first loss would be 2."""
    objective = flow(timesteps=name)
    t = objective.timesteps(100_000, stream(0, "timestep"))
    clean, noise = (normal(stream(0, which), len(t), 1, 2, 2) for which in ("clean", "noise"))
    sample = objective.sample(clean, noise, t)
    loss = objective.loss(objective.to_velocity(torch.zeros_like(clean), sample.noised, t), sample)
    assert float(loss) == pytest.approx(expected, rel=0.05)


def test_clean_velocity_and_noise_lead_to_each_other():
    objective, t = flow(), torch.linspace(0.05, 1, 20).double()
    clean, noise = (normal(stream(0, which), 20, 2, 4, 4).double() for which in ("clean", "noise"))
    noised = (1 - view(t)) * clean + view(t) * noise
    velocity = objective.to_velocity(clean, noised, t)
    torch.testing.assert_close(velocity, noise - clean)
    torch.testing.assert_close(noised + (1 - view(t)) * velocity, noise)
    torch.testing.assert_close(noised - view(t) * velocity, clean)
    torch.testing.assert_close(objective.to_clean(velocity, noised, t), clean)


@pytest.mark.parametrize("clamp", [0.05, 0.4])
def test_estimate_is_the_networks_output_at_every_time(clamp):
    objective, t = flow(clamp=clamp), torch.tensor([0.0, 0.001, 0.03, 0.05, 0.2, 1.0]).double()
    output, noised = torch.randn(2, 6, 2, 4, 4).double()
    velocity = objective.to_velocity(output, noised, t)
    torch.testing.assert_close(objective.to_clean(velocity, noised, t), output, rtol=0, atol=1e-12)


def offset(steps: int, *, exact: bool, shift: float = 1.0) -> float:
    """What is left of the starting offset after Euler steps with a perfect estimate of one datum."""
    objective, datum = flow(shift=shift), torch.full((1, 1, 1, 1), 0.7).double()
    noise, times = datum + 1, objective.schedule(steps).double()

    def velocity(noised, t):
        return objective.to_velocity(datum, noised, t.double())

    reached = euler(velocity, noise, times, *([objective.stride] if exact else []))
    return float(reached - datum)


@pytest.mark.parametrize(("steps", "left"), [(10, 0.0), (20, 0.0), (25, 0.008), (50, 0.0144), (100, 0.0164)])
def test_last_step_goes_to_the_estimate_itself(steps, left):
    assert offset(steps, exact=False) == pytest.approx(left, abs=5e-5)
    assert offset(steps, exact=True) == pytest.approx(0, abs=1e-12)


def test_shifted_sampler_needs_no_exact_step_but_may_take_it():
    assert offset(50, exact=False, shift=3.0) == pytest.approx(0, abs=1e-7)
    assert offset(50, exact=True, shift=3.0) == pytest.approx(0, abs=1e-12)


def test_stride_differs_from_the_step_in_time_only_at_the_end():
    objective = flow()
    assert objective.stride(0.5, 0.25) == 0.25
    assert objective.stride(0.04, 0.02) == 0.02
    assert objective.stride(0.02, 0.0) == 0.05
    assert objective.stride(0.2, 0.0) == 0.2
    assert VELOCITY.stride(0.02, 0.0) == 0.02


def test_gradient_reaches_the_output_through_the_weight():
    objective = flow()
    sample = sample_at(torch.tensor([0.01, 0.5]))
    output = torch.randn_like(sample.clean).requires_grad_()
    objective.loss(objective.to_velocity(output, sample.noised, sample.t), sample).backward()
    weight = view(torch.tensor([400.0, 4.0]))
    expected = 2 * weight * (output.detach() - sample.clean) / output.numel()
    torch.testing.assert_close(output.grad, expected, rtol=1e-4, atol=1e-5)


def test_partners_are_clamped_velocities_too(world):
    """Contrastive flow matching works in velocity: what it moves away from is weighted like the target."""
    settings = {"use": "x_prediction", "clamp": 0.6}
    config = world.config(objective=settings, losses={"contrastive": {"use": "contrastive"}})
    module = recipe.build(config)
    batch = Batches(config, world.cache, module).batch(1)
    target = module.objective.target(module.objective.sample(batch.clean, batch.noise, batch.t))
    velocity = batch.noise - batch.clean
    index = [
        next(i for i, row in enumerate(target) if torch.equal(row, found)) for found in batch.partners["contrastive"]
    ]
    assert all(number != other for number, other in enumerate(index))
    clamped = [number for number in index if batch.t[number] < 0.6]
    assert clamped
    for number in clamped:
        torch.testing.assert_close(target[number], velocity[number] * batch.t[number] / 0.6, rtol=1e-4, atol=1e-5)


def test_a_run_starts_from_zero_output_and_samples_its_estimate(world, tmp_path):
    with running(world, tmp_path, objective={"use": "x_prediction"}, sampling={"num_steps": 3}) as trainer:
        module, batch = trainer.engine.module, trainer.batches.batch(0)
        noised = module.objective.sample(batch.clean, batch.noise, batch.t).noised
        velocity = module.predict(noised, batch.t, batch.text, batch.mask)
        assert torch.equal(velocity, noised / view(batch.t).clamp(min=0.05))
        prompts = trainer.prompts.chunk(0, 2)
        latents = draw(module, prompts, trainer.config.sampling)
        torch.testing.assert_close(latents, torch.zeros_like(latents), rtol=0, atol=1e-6)
        weight = batch.t.clamp(min=0.05).pow(-2)
        first = (weight * batch.clean.square().mean((1, 2, 3))).mean()
        assert trainer.advance(1).loss == pytest.approx(float(first), rel=1e-4)
