"""Standard errors against the spread over fresh samples: intervals cover as often as they say."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation.bootstrap import fid_draws, mmd_draws
from evaluation.metrics import fid, fid_se, mmd_result

WIDTH, COUNT, REPEATS = 8, 80, 200
Measured = Callable[[Tensor, Tensor], tuple[float, float]]


def rows(num: int, seed: int, shift: float = 0.0, stretch: float = 1.0) -> Tensor:
    """Draw rows of unequal spread; `shift` is the distance between means."""
    generator = torch.Generator().manual_seed(seed)
    spread = stretch * torch.linspace(1.5, 0.3, WIDTH, dtype=torch.float64)
    return torch.randn(num, WIDTH, generator=generator, dtype=torch.float64) * spread + shift / WIDTH**0.5


def mmd_and_error(x: Tensor, y: Tensor) -> tuple[float, float]:
    found = mmd_result(x, y, sigma=3.0)
    return found.unbiased, found.se


def fid_and_error(x: Tensor, y: Tensor) -> tuple[float, float]:
    return fid(x, y), fid_se(x, y)


@lru_cache
def repeated(measured: Measured, shift: float, stretch: float) -> tuple[np.ndarray, np.ndarray]:
    pairs = ((rows(COUNT, 2 * i), rows(COUNT, 2 * i + 1, shift, stretch)) for i in range(REPEATS))
    values, errors = zip(*(measured(x, y) for x, y in pairs), strict=True)
    return np.array(values), np.array(errors)


@pytest.mark.parametrize("measured", [mmd_and_error, fid_and_error])
@pytest.mark.parametrize(("shift", "stretch"), [(0.0, 1.0), (0.5, 1.0), (1.0, 1.3), (4.0, 1.0)])
def test_error_is_the_spread_over_fresh_samples(measured: Measured, shift: float, stretch: float) -> None:
    values, errors = repeated(measured, shift, stretch)
    assert 0.85 < np.sqrt(np.mean(errors**2)) / values.std(ddof=1) < 1.3


@pytest.mark.parametrize("measured", [mmd_and_error, fid_and_error])
@pytest.mark.parametrize(("shift", "stretch"), [(0.5, 1.0), (1.0, 1.3), (4.0, 1.0)])
def test_intervals_cover_near_their_nominal_level(measured: Measured, shift: float, stretch: float) -> None:
    values, errors = repeated(measured, shift, stretch)
    # FID is biased by the number of samples: what its intervals cover is the figure to expect of so many.
    covered = np.abs(values - values.mean()) < 1.96 * errors
    assert 0.88 <= covered.mean() <= 0.99


def test_intervals_around_the_unbiased_mmd_cover_the_truth() -> None:
    """Linear shift of a Gaussian: the kernel's expectations are known in closed form."""
    shift, gamma = 2.0, 1 / (2 * 3.0**2)
    spread = 2 * torch.linspace(1.5, 0.3, WIDTH, dtype=torch.float64) ** 2
    scale = (1 + 2 * gamma * spread).rsqrt().prod()
    moved = torch.exp(-gamma * (shift**2 / WIDTH) * (1 / (1 + 2 * gamma * spread)).sum())
    truth = 2000 * float(scale * (1 - moved))
    values, errors = repeated(mmd_and_error, shift, 1.0)
    assert 0.90 <= np.mean(np.abs(values - truth) < 1.96 * errors) <= 0.99


def test_two_sets_of_one_distribution_are_rarely_called_different() -> None:
    """At the null the statistic is skewed; its intervals err on the wide side, less than a bootstrap's."""
    values, errors = repeated(mmd_and_error, 0.0, 1.0)
    assert np.mean(np.abs(values) < 1.96 * errors) >= 0.95
    drawn = np.mean([float(mmd_draws(rows(COUNT, 2 * i), rows(COUNT, 2 * i + 1), sigma=3.0).std()) for i in range(10)])
    assert drawn > 1.3 * errors.mean()


def test_far_from_zero_the_bootstrap_agrees() -> None:
    x, y = rows(COUNT, 1), rows(COUNT, 2, shift=4.0)
    drawn = [float(mmd_draws(x, y, sigma=3.0, resamples=200).std()), float(fid_draws(x, y, resamples=200).std())]
    assert drawn == pytest.approx([mmd_and_error(x, y)[1], fid_se(x, y)], rel=0.15)


def test_errors_fall_with_the_root_of_the_number() -> None:
    for measured in (mmd_and_error, fid_and_error):
        few, many = (measured(rows(num, 1), rows(num, 2, shift=3.0))[1] for num in (60, 960))
        assert many == pytest.approx(few / 4, rel=0.25)


def test_fid_error_stands_where_covariances_are_singular() -> None:
    flat = torch.cat([rows(COUNT, 1), torch.zeros(COUNT, 3)], dim=1)
    wide = torch.cat([rows(COUNT, 2, shift=4.0), torch.zeros(COUNT, 3)], dim=1)
    assert fid_se(flat, wide) == pytest.approx(fid_se(rows(COUNT, 1), rows(COUNT, 2, shift=4.0)), rel=1e-6)
    few = fid_se(rows(6, 1), rows(6, 2, shift=4.0))
    assert 0 < few < 10 * fid(rows(6, 1), rows(6, 2, shift=4.0))
    with pytest.raises(ValueError, match="fid: a standard error needs at least 4 samples of each, got 3 and 6"):
        fid_se(rows(3, 1), rows(6, 2))
