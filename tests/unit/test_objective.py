"""Rectified flow against its mathematics: oracles, known integrals, known discretisation errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from prx.interfaces import FlowSample
from prx.rng import normal, stream
from prx.sampling import euler, guided
from prx.techniques.velocity import Velocity
from prx.timesteps import T_MIN, shift_time

NUM = 400_000


def velocity(**settings) -> Velocity:
    return Velocity(Velocity.Config(use="velocity", **settings))


def draws(**settings) -> torch.Tensor:
    return velocity(**settings).timesteps(NUM, stream(0, "timestep")).double()


def optimal(noised: torch.Tensor, t: torch.Tensor, sigma: float) -> torch.Tensor:
    """The best velocity for data of N(0, sigma²): E[noise - clean | noised]."""
    time = t.view(-1, 1, 1, 1)
    return (time - (1 - time) * sigma**2) / ((1 - time) ** 2 * sigma**2 + time**2) * noised


def test_sample_is_a_straight_line_from_data_to_noise():
    clean, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    found = velocity().sample(clean, noise, torch.tensor([0.0, 0.25, 1.0]))
    assert torch.equal(found.noised[0], clean[0])
    assert torch.equal(found.noised[2], noise[2])
    torch.testing.assert_close(found.noised[1], 0.75 * clean[1] + 0.25 * noise[1])
    assert torch.equal(found.velocity, noise - clean)


def test_oracle_has_no_loss_and_one_step_gives_the_data():
    flow = velocity()
    clean, noise = torch.randn(4, 2, 4, 4), torch.randn(4, 2, 4, 4)
    sample = flow.sample(clean, noise, torch.rand(4))
    assert flow.loss(flow.to_velocity(noise - clean, sample.noised, sample.t), sample) == 0
    reached = euler(lambda noised, t: noise - clean, noise, flow.schedule(1))
    torch.testing.assert_close(reached, clean, rtol=0, atol=1e-6)


def test_loss_of_zero_output_is_one_plus_the_data_power():
    clean, noise = 0.5 * torch.randn(200, 4, 16, 16), torch.randn(200, 4, 16, 16)
    flow = velocity()
    loss = flow.loss(torch.zeros_like(clean), flow.sample(clean, noise, torch.rand(200)))
    assert float(loss) == pytest.approx(1 + float(clean.square().mean()), abs=0.02)


def test_loss_is_a_mean_over_every_element():
    sample = FlowSample(
        torch.zeros(2, 1, 1, 2), torch.zeros(2, 1, 1, 2), torch.zeros(2), torch.zeros(2, 1, 1, 2)
    )
    output = torch.tensor([[[[1.0, 2.0]]], [[[3.0, 0.0]]]])
    assert float(velocity().loss(output, sample)) == pytest.approx(14 / 4)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
@pytest.mark.parametrize(("name", "share"), [("uniform", None), ("logit_normal", 0.0), ("prx_mix", 0.1)])
def test_timesteps_follow_their_distribution(name, share, shift):
    t = draws(timesteps=name, shift=shift).numpy()
    assert t.min() >= np.float32(T_MIN)
    assert t.max() <= 1
    points = np.array([0.01, 0.05, 0.2, 0.5, 0.75, 0.9, 0.99])
    unshifted = points / (shift - (shift - 1) * points)
    if share is None:
        expected = unshifted
    else:  # the uniform share is not shifted
        expected = (1 - share) * norm.cdf(np.log(unshifted / (1 - unshifted))) + share * points
    measured = (t[:, None] < points).mean(0)
    assert np.abs(measured - expected).max() < 4 * 0.5 / math.sqrt(NUM)


def test_shifted_median_and_rare_early_times():
    assert float(draws(timesteps="logit_normal", shift=3.0).median()) == pytest.approx(0.75, abs=3e-3)
    assert float((draws(timesteps="prx_mix") < 0.05).double().mean()) == pytest.approx(0.0064, abs=6e-4)
    assert float((draws(timesteps="logit_normal") < 0.05).double().mean()) == pytest.approx(0.0016, abs=3e-4)


def test_shift_equals_noise_of_that_size():
    t = np.linspace(0.01, 0.99, 9)
    shifted = shift_time(t, 3.0)
    np.testing.assert_allclose(shifted / (1 - shifted), 3.0 * t / (1 - t))


def test_timesteps_are_a_function_of_the_stream():
    flow = velocity()
    assert torch.equal(
        flow.timesteps(8, stream(1, "timestep", 5)), flow.timesteps(8, stream(1, "timestep", 5))
    )
    assert not torch.equal(
        flow.timesteps(8, stream(1, "timestep", 5)), flow.timesteps(8, stream(1, "timestep", 6))
    )


@pytest.mark.parametrize(
    ("name", "least"), [("uniform", math.pi / 2), ("logit_normal", 1.7413), ("prx_mix", 1.7243)]
)
def test_least_loss_on_gaussian_data(name, least):
    flow, t = velocity(timesteps=name), draws(timesteps=name)
    assert float((1 / ((1 - t) ** 2 + t**2)).mean()) == pytest.approx(least, abs=3e-3)
    clean, noise = (normal(stream(0, which), NUM, 1, 1, 1) for which in ("clean", "noise"))
    sample = flow.sample(clean, noise, t.float())
    best = optimal(sample.noised, sample.t, 1.0)
    assert float(flow.loss(best, sample)) == pytest.approx(least, abs=0.015)
    assert flow.loss(1.1 * best, sample) > flow.loss(best, sample)


@pytest.mark.parametrize(("steps", "error"), [(10, -0.0692), (20, -0.0358), (40, -0.0182), (80, -0.0092)])
def test_euler_error_on_gaussian_data(steps, error):
    times = velocity().schedule(steps).double()
    reached = euler(
        lambda noised, t: optimal(noised, t.double(), 0.5), torch.ones(1, 1, 1, 1).double(), times
    )
    assert float(reached) - 0.5 == pytest.approx(error, abs=6e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_single_datum_is_hit_exactly(steps, shift):
    datum = torch.randn(1, 2, 4, 4)
    flow = velocity(shift=shift)
    reached = euler(
        lambda x, t: (x - datum) / t.view(-1, 1, 1, 1), torch.randn(5, 2, 4, 4), flow.schedule(steps)
    )
    torch.testing.assert_close(reached, datum.expand(5, -1, -1, -1), rtol=0, atol=1e-5)


def test_schedule_falls_from_noise_to_data():
    even, shifted = velocity().schedule(4), velocity(shift=3.0).schedule(4)
    torch.testing.assert_close(even, torch.tensor([1, 0.75, 0.5, 0.25, 0]))
    torch.testing.assert_close(shifted, 3 * even / (1 + 2 * even))
    assert (shifted[:-1] > shifted[1:]).all()


def predict(noised, t, text, mask):
    """A velocity that depends on text through its unmasked sum."""
    return noised * t.view(-1, 1, 1, 1) + (text * mask.unsqueeze(-1)).sum((1, 2)).view(-1, 1, 1, 1)


@pytest.fixture
def prompt():
    torch.manual_seed(0)
    return (
        torch.randn(3, 4, 2),
        torch.ones(3, 4, dtype=torch.bool),
        torch.randn(3, 4, 2),
        torch.eye(4)[:3].bool(),
    )


def test_guidance_interpolates_between_unconditional_and_conditional(prompt):
    text, mask, null_text, null_mask = prompt
    noised, t = torch.randn(3, 1, 2, 2), torch.tensor([0.1, 0.5, 0.9])
    conditional, null = predict(noised, t, text, mask), predict(noised, t, null_text, null_mask)
    assert torch.equal(guided(predict, *prompt, 1.0)(noised, t), conditional)
    assert torch.equal(guided(predict, *prompt, 0.0)(noised, t), null)
    for scale in (0.5, 2.0, 3.5):
        expected = null + scale * (conditional - null)
        torch.testing.assert_close(guided(predict, *prompt, scale)(noised, t), expected)


def test_guidance_is_affine_in_its_scale(prompt):
    noised, t = torch.randn(3, 1, 2, 2), torch.full((3,), 0.3)
    low, middle, high = (guided(predict, *prompt, scale)(noised, t) for scale in (2.0, 3.0, 4.0))
    torch.testing.assert_close(middle, (low + high) / 2)
    assert not torch.allclose(low, high)


def test_guidance_between_equal_prompts_does_nothing(prompt):
    text, mask, *_ = prompt
    noised, t = torch.randn(3, 1, 2, 2), torch.full((3,), 0.3)
    expected = predict(noised, t, text, mask)
    for scale in (0.0, 1.0, 3.5, 7.0):
        torch.testing.assert_close(guided(predict, text, mask, text, mask, scale)(noised, t), expected)
