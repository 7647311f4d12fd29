"""Bootstrap draws of the distances: slower than the closed standard errors, and free of their assumptions.

Shape letters: n samples of x, m samples of y, d embedding width, R resamples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evaluation.arrays import CHUNK, Embeddings, checked_pair
from evaluation.frechet import fit, frechet
from evaluation.mmd import SCALE, SIGMA, blocks, checked_gamma, kernel_minus_one

RESAMPLES = 100


def bootstrap_counts(num: int, resamples: int, seed: int) -> Tensor:
    """Draw how often each sample occurs in each resample.

    Shapes: [R, num] float64, rows sum to num.
    """
    if resamples < 2:
        raise ValueError(f"resamples must be at least 2, got {resamples}")
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(num, (num,), generator=generator).bincount(minlength=num) for _ in range(resamples)]
    return torch.stack(rows).double()


def mmd_draws(
    x: Embeddings,
    y: Embeddings,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    sigma: float = SIGMA,
    scale: float = SCALE,
    chunk: int = CHUNK,
) -> Tensor:
    """Return the V-statistic of every resample, both sets drawn with replacement: float64 [R].

    Each resample is a row of multinomial weights around one kernel, so nothing is recomputed. Equal seed and
    counts give equal resamples, so the draws of two models on the same prompts and reference may be subtracted in
    pairs. For two sets of one distribution the statistic is degenerate, and the spread is about 1.5 times too wide.

    Shapes: x [n, d], y [m, d].
    Raises: ValueError as `evaluation.mmd.mmd` does, and for fewer than two resamples.
    Source: Efron 1979 (Annals of Statistics 7).
    """
    x, y = checked_pair("mmd", x, y)
    gamma, (n, m) = checked_gamma(sigma, chunk), (len(x), len(y))
    of_x, of_y = _counts(x, resamples, 2 * seed), _counts(y, resamples, 2 * seed + 1)
    within_x, within_y = (_weighted(rows, rows, w, w, gamma, chunk) for rows, w in ((x, of_x), (y, of_y)))
    between = _weighted(x, y, of_x, of_y, gamma, chunk)
    return scale * (within_x / n**2 + within_y / m**2 - 2 * between / (n * m)).cpu()


def fid_draws(x: Embeddings, y: Embeddings, *, resamples: int = RESAMPLES, seed: int = 0) -> Tensor:
    """Return the FID of every resample, both sets drawn with replacement: float64 [R].

    Shapes: x [n, d], y [m, d].
    Raises: ValueError as `evaluation.frechet.fid` does, and for fewer than two resamples.
    """
    x, y = checked_pair("fid", x, y)
    counts = zip(_counts(x, resamples, 2 * seed), _counts(y, resamples, 2 * seed + 1), strict=True)
    return torch.tensor([frechet(fit(x, a), fit(y, b)) for a, b in counts], dtype=torch.float64)


def _counts(rows: Tensor, resamples: int, seed: int) -> Tensor:
    return bootstrap_counts(len(rows), resamples, seed).to(rows.device)


def _weighted(x: Tensor, y: Tensor, of_x: Tensor, of_y: Tensor, gamma: float, chunk: int) -> Tensor:
    """Sum k - 1 over all pairs, weighted by how often both samples were drawn; a set with itself by halves."""
    total = torch.zeros(len(of_x), dtype=torch.float64, device=x.device)
    for a in blocks(x, chunk):
        for b in blocks(y, chunk, start=a.start if x is y else 0):
            kernel = kernel_minus_one(x[a].double(), y[b].double(), gamma)
            if x is y and a == b:
                kernel.fill_diagonal_(0.0)
            part = ((of_x[:, a] @ kernel) * of_y[:, b]).sum(dim=1)
            total += part if x is not y or a == b else 2 * part
    return total
