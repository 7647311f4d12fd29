"""FID against scipy's matrix root and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from evaluation.metrics import fid


def correlated(num: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(num, width, generator=generator, dtype=torch.float64) @ mix + seed


def with_covariance(scales: Tensor, seed: int) -> Tensor:
    """Draw rows whose sample mean is zero and whose sample covariance is diagonal, exactly."""
    rows = correlated(200, len(scales), seed)
    centred = rows - rows.mean(dim=0)
    return torch.linalg.qr(centred).Q * np.sqrt(199) * scales.sqrt()


def test_agrees_with_scipy() -> None:
    x, y = correlated(120, 8, 1), correlated(90, 8, 2)
    cov_x, cov_y = np.cov(x.numpy().T), np.cov(y.numpy().T)
    shift = np.square(x.numpy().mean(0) - y.numpy().mean(0)).sum()
    expected = shift + np.trace(cov_x + cov_y - 2 * sqrtm(cov_x @ cov_y).real)
    assert fid(x, y) == pytest.approx(expected, rel=1e-9)


def test_identical_features_are_at_zero() -> None:
    x = correlated(100, 12, 1)
    assert fid(x, x) == pytest.approx(0, abs=1e-9)
    assert fid(x, x.flip(0)) == pytest.approx(0, abs=1e-9)


def test_pure_shift_gives_its_squared_length() -> None:
    x, shift = correlated(100, 5, 1), torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0])
    assert fid(x, x + shift) == pytest.approx(float(shift.square().sum()), abs=1e-8)


def test_diagonal_gaussians_give_the_closed_form() -> None:
    first, second = torch.tensor([[1.0, 4.0, 0.25], [2.0, 1.0, 9.0]], dtype=torch.float64)
    expected = float((first.sqrt() - second.sqrt()).square().sum())
    found = fid(with_covariance(first, 1), with_covariance(second, 2))
    assert found == pytest.approx(expected, abs=1e-9)


def test_symmetric_and_invariant_to_rotation_and_order() -> None:
    x, y = correlated(60, 6, 1), correlated(70, 6, 2)
    rotation = torch.linalg.qr(correlated(6, 6, 3)).Q
    assert fid(y, x) == pytest.approx(fid(x, y), rel=1e-12)
    assert fid(x @ rotation, y @ rotation) == pytest.approx(fid(x, y), rel=1e-10)
    assert fid(x[torch.randperm(60)], y) == pytest.approx(fid(x, y), rel=1e-10)


def test_rows_split_over_blocks_give_the_same_moments() -> None:
    x, y = correlated(9000, 3, 1), correlated(50, 3, 2)
    cov = np.cov(x.numpy().T)
    roots = sqrtm(cov @ np.cov(y.numpy().T)).real
    shift = np.square(x.numpy().mean(0) - y.numpy().mean(0)).sum()
    expected = shift + np.trace(cov + np.cov(y.numpy().T) - 2 * roots)
    assert fid(x, y) == pytest.approx(expected, rel=1e-9)


def test_singular_covariances_are_finite_and_not_negative() -> None:
    x, y = correlated(5, 20, 1), correlated(4, 20, 2)
    assert np.isfinite(fid(x, y))
    assert fid(x, x) == pytest.approx(0, abs=1e-6)


def test_bias_of_few_samples_has_the_known_size() -> None:
    width, num = 24, 400
    draws = [
        fid(*torch.randn(2, num, width, generator=torch.Generator().manual_seed(seed)).unbind())
        for seed in range(5)
    ]
    covariance_part, mean_part = width * (width + 1) / (2 * num), 2 * width / num
    assert np.mean(draws) == pytest.approx(covariance_part + mean_part, rel=0.15)


def test_refuses_bad_input() -> None:
    x = correlated(5, 3, 1)
    with pytest.raises(ValueError, match="fid: y must have at least 2 samples, got 1"):
        fid(x, x[:1])
    with pytest.raises(ValueError, match="fid: x and y must have equal widths, got 3 and 2"):
        fid(x, x[:, :2])
    with pytest.raises(ValueError, match="fid: x must be finite, got 1 rows"):
        fid(torch.cat([x, x[:1] * torch.inf]), x)
