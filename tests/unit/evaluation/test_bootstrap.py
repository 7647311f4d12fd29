"""Bootstrap draws against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation.bootstrap import bootstrap_counts, fid_draws, mmd_draws
from evaluation.metrics import fid, mmd


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
    found = mmd_draws(x, y, resamples=12, seed=5, chunk=chunk)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def test_fid_draws_are_those_of_a_plain_loop() -> None:
    x, y = rows(30, 1), rows(25, 2, shift=0.5)
    expected = loop_draws(fid, x, y, resamples=8, seed=1)
    np.testing.assert_allclose(fid_draws(x, y, resamples=8, seed=1).numpy(), expected, rtol=1e-9)


def test_resamples_are_seeded_and_hold_every_sample_on_average() -> None:
    counts = bootstrap_counts(50, 400, seed=3)
    assert torch.equal(counts, bootstrap_counts(50, 400, seed=3))
    assert not torch.equal(counts, bootstrap_counts(50, 400, seed=4))
    assert bool((counts.sum(dim=1) == 50).all())
    assert float((counts.mean(dim=0) - 1).abs().max()) < 0.25


def test_draws_of_two_models_pair_up() -> None:
    reference, base = rows(60, 1), rows(60, 2, shift=1.0)
    nudged = base + 0.01 * rows(60, 3)
    first, second = (mmd_draws(x, reference, seed=0) for x in (base, nudged))
    assert float((first - second).std()) < 0.2 * float(first.std())


@pytest.mark.parametrize("draws", [mmd_draws, fid_draws])
@pytest.mark.parametrize("resamples", [0, 1])
def test_refuses_too_few_resamples(draws, resamples: int) -> None:
    with pytest.raises(ValueError, match=f"resamples must be at least 2, got {resamples}"):
        draws(rows(4, 1), rows(4, 2), resamples=resamples)
