"""Precision, recall, density and coverage against plain loops and sets whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation.manifold import MANIFOLD_METRICS, manifold


def cloud(num: int, seed: int, shift: float = 0.0, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(num, 4, generator=generator, dtype=torch.float64) + shift


def brute_force(generated: Tensor, real: Tensor) -> dict[str, float]:
    x, y = generated.tolist(), real.tolist()

    def radius(points: list[list[float]], i: int, k: int) -> float:
        return sorted(math.dist(points[i], other) for j, other in enumerate(points) if j != i)[k - 1]

    narrow, wide = ([radius(y, j, k) for j in range(len(y))] for k in (3, 5))
    own = [radius(x, i, 3) for i in range(len(x))]
    inside = [[math.dist(a, b) <= wide[j] for j, b in enumerate(y)] for a in x]
    return {
        "knn_precision": np.mean([any(math.dist(a, b) <= narrow[j] for j, b in enumerate(y)) for a in x]),
        "knn_recall": np.mean([any(math.dist(a, b) <= own[i] for i, a in enumerate(x)) for b in y]),
        "density": np.sum(inside) / (5 * len(x)),
        "coverage": np.mean(np.any(inside, axis=0)),
    }


@pytest.mark.parametrize("chunk", [7, 2048])
@pytest.mark.parametrize(("shift", "spread"), [(0.0, 1.0), (0.7, 0.8), (0.2, 2.0)])
def test_agrees_with_plain_loops(chunk: int, shift: float, spread: float) -> None:
    x, y = cloud(40, 1, shift, spread), cloud(50, 2)
    found = manifold(x, y, chunk=chunk)
    assert {name: found[name] for name in MANIFOLD_METRICS} == pytest.approx(brute_force(x, y), abs=1e-12)


def test_equal_sets_are_perfect_and_distant_ones_share_nothing() -> None:
    x = cloud(50, 1)
    same, apart = manifold(x, x.clone()), manifold(x + 100.0, x)
    assert [same[name] for name in ("knn_precision", "knn_recall", "coverage")] == [1.0, 1.0, 1.0]
    assert [apart[name] for name in MANIFOLD_METRICS] == [0.0] * 4
    assert 0 < apart["knn_precision_se"] < 0.1


def test_one_picture_again_and_again_is_precise_and_covers_nothing() -> None:
    found = manifold(cloud(60, 1, spread=0.01), cloud(60, 2))
    assert found["knn_precision"] == 1.0
    assert found["knn_recall"] < 0.05
    assert found["coverage"] < 0.3


def test_errors_are_of_the_size_of_the_spread_over_fresh_samples() -> None:
    runs = [manifold(cloud(80, 2 * i, 0.8), cloud(80, 2 * i + 1)) for i in range(80)]
    for name in MANIFOLD_METRICS:
        spread = np.std([run[name] for run in runs], ddof=1)
        assert 0.4 < np.mean([run[f"{name}_se"] for run in runs]) / spread < 1.6, name


def test_refuses_sets_without_neighbours() -> None:
    with pytest.raises(ValueError, match="precision and recall need at least 6 samples of each, got 5 and 9"):
        manifold(cloud(5, 1), cloud(9, 2))
