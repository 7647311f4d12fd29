"""Times and noise that objectives share: distributions, mirrors, equal signal-to-noise, an unmoved stream."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.stats import kstest, norm

from prx.config import SamplingConfig
from prx.interfaces import RunShape
from prx.rng import normal, stream
from prx.sampling import PromptBatch, draw
from prx.techniques.velocity import Velocity
from prx.techniques.x_prediction import XPrediction
from prx.timesteps import T_MIN, UNIFORM_SHARE, shift_time

NUM = 400_000
SHAPE = RunShape(channels=4, latent_size=4, depth=2, grid=(4, 4))
OBJECTIVES = {"velocity": Velocity, "x_prediction": XPrediction}


@pytest.fixture(params=sorted(OBJECTIVES))
def kind(request) -> str:
    return request.param


def flow(kind: str, **settings):
    technique = OBJECTIVES[kind]
    return technique(technique.Config(use=kind, **settings))


def times(kind: str, num: int = NUM, **settings) -> np.ndarray:
    return flow(kind, **settings).timesteps(num, stream(0, "timestep")).double().numpy()


def logit(t: np.ndarray) -> np.ndarray:
    return np.log(t / (1 - t))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_draws_are_those_written_out(kind, shift):
    """Mean 0 and std 1 must not move a bit of what runs without these settings drew."""
    rng = stream(5, "timestep", 2)
    gauss, uniform, mix = rng.standard_normal(4096), rng.random(4096), rng.random(4096)
    curve = 1 / (1 + np.exp(-gauss))
    curve = shift * curve / (1 + (shift - 1) * curve)
    expected = {
        "prx_mix": np.where(mix < UNIFORM_SHARE, uniform, curve),
        "logit_normal": curve,
        "uniform": shift * uniform / (1 + (shift - 1) * uniform),
    }
    for name, t in expected.items():
        found = flow(kind, timesteps=name, shift=shift).timesteps(4096, stream(5, "timestep", 2))
        assert torch.equal(found, torch.from_numpy(np.clip(t, T_MIN, 1).astype(np.float32)))


def test_baselines_first_draws_stay_what_they_were():
    found = flow("velocity").timesteps(256, stream(0, "timestep", 0)).numpy()
    assert hashlib.blake2b(found.tobytes(), digest_size=8).hexdigest() == "46113e108ccfe433"


@pytest.mark.parametrize(("shift", "median"), [(1.0, 0.5), (3.0, 0.75), (0.5, 1 / 3)])
def test_shift_moves_the_median(kind, shift, median):
    for name in ("logit_normal", "uniform"):
        assert np.median(times(kind, timesteps=name, shift=shift)) == pytest.approx(median, abs=3e-3)


def test_uniform_share_makes_early_times_four_times_as_frequent(kind):
    bound = 4 * math.sqrt(0.0064 / NUM)
    assert (times(kind, timesteps="logit_normal") < 0.05).mean() == pytest.approx(norm.cdf(-math.log(19)), abs=bound)
    assert norm.cdf(-math.log(19)) == pytest.approx(0.0016, abs=5e-5)
    expected = 0.9 * norm.cdf(-math.log(19)) + 0.1 * 0.05
    assert (times(kind, timesteps="prx_mix") < 0.05).mean() == pytest.approx(expected, abs=bound)
    assert expected == pytest.approx(0.0064, abs=1e-4)  # 0.64 % where times below 0.001 are redrawn


def test_jits_times_are_mirrored(kind):
    """JiT draws s = 1 - t from logit-normal(-0.8, 0.8)."""
    t = times(kind, 20_000, timesteps="logit_normal", mean=0.8, std=0.8)
    assert kstest(logit(1 - t), norm(-0.8, 0.8).cdf).pvalue > 1e-3
    assert kstest(logit(t), norm(-0.8, 0.8).cdf).pvalue < 1e-12
    assert np.median(t) == pytest.approx(1 / (1 + math.exp(-0.8)), abs=5e-3)


def test_least_loss_under_jits_times():
    t = times("velocity", timesteps="logit_normal", mean=0.8, std=0.8)
    assert (1 / ((1 - t) ** 2 + t**2)).mean() == pytest.approx(1.6863, abs=3e-3)


def test_mean_and_std_shape_the_mix_but_not_its_uniform_share(kind):
    t = times(kind, mean=6.0, std=0.1)
    assert (t < 0.9).mean() == pytest.approx(0.09, abs=3e-3)


@pytest.mark.parametrize("scale", [0.5, 2.0, 3.0])
def test_scaled_noise_is_unit_noise_at_shifted_times(kind, scale):
    """Divided by its gain, the noised latent is the one that unit noise gives at the shifted time."""
    clean, noise, t = torch.randn(7, 2, 4, 4), torch.randn(7, 2, 4, 4), torch.linspace(0.01, 0.99, 7)
    scaled = flow(kind, noise_scale=scale).sample(clean, noise, t)
    unit = flow(kind).sample(clean, noise, shift_time(t, scale))
    gain = (1 - t + scale * t).view(-1, 1, 1, 1)
    torch.testing.assert_close(scaled.noised / gain, unit.noised, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scaled.velocity, scale * noise - clean)


def test_noise_of_scale_one_is_not_touched(kind):
    clean, noise, t = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.rand(3)
    assert flow(kind).sample(clean, noise, t).noise is noise


def test_sampling_starts_from_scaled_noise(kind):
    objective, noise = flow(kind, noise_scale=3.0), normal(stream(0, "noise"), 2, 3, 4, 4)

    class Still:
        """Predict no velocity, so that sampling ends where it starts."""

        def __init__(self) -> None:
            self.objective = objective

        def predict(self, noised, t, text, mask, route=None):
            return torch.zeros_like(noised)

    prompts = PromptBatch(torch.arange(2), *(torch.zeros(2, 1, 1), torch.ones(2, 1).bool()) * 2, noise)
    assert torch.equal(draw(Still(), prompts, SamplingConfig(num_steps=3, guidance_scale=1.0)), 3.0 * noise)


def test_schedule_is_shifted_like_the_draws(kind):
    found = flow(kind, shift=3.0).schedule(50)
    assert (found[0], found[-1]) == (1, 0)
    assert float(found[25]) == pytest.approx(0.75)
    assert float(found[-2]) == pytest.approx(0.0577, abs=5e-5)


def test_shape_of_a_logit_normal_that_is_not_drawn_is_refused(kind):
    technique = OBJECTIVES[kind]
    config = technique.Config(use=kind, timesteps="uniform", mean=0.8)
    rule = "acts on timesteps prx_mix and logit_normal only: must be left out with uniform, got 0.8"
    assert technique.problems(config, SHAPE) == [("mean", rule)]
    for settings in ({"timesteps": "uniform"}, {"timesteps": "logit_normal", "mean": 0.8, "std": 0.8}):
        assert technique.problems(technique.Config(use=kind, **settings), SHAPE) == []


@pytest.mark.parametrize("settings", [{"std": 0.0}, {"noise_scale": -1.0}, {"mean": float("nan")}, {"shift": 0.0}])
def test_values_without_meaning_are_refused(kind, settings):
    with pytest.raises(ValidationError, match=next(iter(settings))):
        flow(kind, **settings)
