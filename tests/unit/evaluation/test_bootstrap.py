"""Bootstrap standard errors against plain loops and repeated draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation.metrics import bootstrap_counts, fid, fid_se, mmd, mmd_result, mmd_se


def rows(num: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, 4, generator=generator, dtype=torch.float64) + shift


def repeated(values: Tensor, counts: Tensor) -> Tensor:
    return values.repeat_interleave(counts.long(), dim=0)


def loop_draws(metric, x: Tensor, y: Tensor, resamples: int, seed: int) -> list[float]:
    counts_x = bootstrap_counts(len(x), resamples, 2 * seed)
    counts_y = bootstrap_counts(len(y), resamples, 2 * seed + 1)
    return [metric(repeated(x, a), repeated(y, b)) for a, b in zip(counts_x, counts_y, strict=True)]


@pytest.mark.parametrize("chunk", [3, 2048])
def test_mmd_draws_are_those_of_a_plain_loop(chunk: int) -> None:
    x, y = rows(15, 1), rows(11, 2, shift=0.5)
    expected = loop_draws(mmd, x, y, resamples=12, seed=5)
    found = mmd_result(x, y, resamples=12, seed=5, chunk=chunk)
    np.testing.assert_allclose(found.draws.numpy(), expected, atol=1e-9)
    assert found.se == pytest.approx(np.std(expected, ddof=1), rel=1e-9)


def test_fid_se_is_that_of_a_plain_loop() -> None:
    x, y = rows(30, 1), rows(25, 2, shift=0.5)
    expected = np.std(loop_draws(fid, x, y, resamples=8, seed=1), ddof=1)
    assert fid_se(x, y, resamples=8, seed=1) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("metric", "metric_se"), [(mmd, mmd_se), (fid, fid_se)])
def test_se_is_the_spread_over_fresh_samples(metric, metric_se) -> None:
    fresh = [metric(rows(100, 2 * seed), rows(100, 2 * seed + 1, shift=1.0)) for seed in range(60)]
    found = metric_se(rows(100, 500), rows(100, 501, shift=1.0), resamples=60)
    assert found == pytest.approx(np.std(fresh, ddof=1), rel=0.5)


def test_se_falls_with_the_number_of_samples() -> None:
    few = mmd_se(rows(40, 1), rows(40, 2, shift=1.0), resamples=60)
    many = mmd_se(rows(640, 1), rows(640, 2, shift=1.0), resamples=60)
    assert many == pytest.approx(few / 4, rel=0.5)


def test_resamples_are_seeded_and_hold_every_sample_on_average() -> None:
    counts = bootstrap_counts(50, 400, seed=3)
    assert torch.equal(counts, bootstrap_counts(50, 400, seed=3))
    assert not torch.equal(counts, bootstrap_counts(50, 400, seed=4))
    assert bool((counts.sum(dim=1) == 50).all())
    assert float((counts.mean(dim=0) - 1).abs().max()) < 0.25


def test_draws_of_two_trials_pair_up() -> None:
    reference, base = rows(60, 1), rows(60, 2, shift=1.0)
    nudged = base + 0.01 * rows(60, 3)
    first, second = (mmd_result(x, reference, seed=0) for x in (base, nudged))
    assert float((first.draws - second.draws).std()) < 0.2 * first.se


def test_refuses_too_few_resamples() -> None:
    with pytest.raises(ValueError, match="resamples must be at least 2, got 1"):
        mmd_se(rows(4, 1), rows(4, 2), resamples=1)
    with pytest.raises(ValueError, match="resamples must be at least 2, got 0"):
        fid_se(rows(4, 1), rows(4, 2), resamples=0)
