"""Compute distances between two sets of embeddings as pure functions, in float64.

Shape letters: n samples of x, m samples of y, d embedding width, R bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SIGMA = 10.0
SCALE = 1000.0
CHUNK = 2048
RESAMPLES = 100
FID_RESAMPLES = 20
ESTIMATORS = {
    "cmmd": "1000 x MMD², V-statistic with diagonal, Gaussian kernel sigma 10, unit CLIP embeddings",
    "dino_mmd": "1000 x MMD², V-statistic with diagonal, Gaussian kernel sigma 10, unit DINO CLS tokens",
    "fid": "Frechet distance of Gaussian fits, unbiased covariances, pooled classifier features",
    "adherence": "share of the asked attributes read back from the image, mean over images",
}

Embeddings = Tensor | np.ndarray


@dataclass(frozen=True)
class MmdResult:
    """Hold every figure that one pass over the kernel gives.

    Shapes: draws [R], the V-statistic of each bootstrap resample. Equal seed and counts give equal
        resamples, so the draws of two trials on the same prompts and reference may be subtracted in pairs.
    """

    biased: float
    unbiased: float
    se: float
    draws: Tensor


def mmd(
    x: Embeddings,
    y: Embeddings,
    *,
    sigma: float = SIGMA,
    scale: float = SCALE,
    biased: bool = True,
    chunk: int = CHUNK,
) -> float:
    """Return scale times the squared MMD between two sets of embeddings.

    `biased=True` is the V-statistic over all pairs, diagonals included, as CMMD is published; `biased=False`
    is the U-statistic over pairs of different samples, which may be negative. Memory grows with `chunk`, not
    n * m.

    Shapes: x [n, d], y [m, d].
    Raises: ValueError for fewer than two samples, unequal widths, or values that are not finite.
    Source: Gretton et al. 2012 (JMLR 13), lemma 6; kernel and constants of Jayasumana et al. 2023, arXiv
        2401.09603.
    """
    x, y = checked_pair("mmd", x, y)
    ones = (_ones(x), _ones(y))
    sums = _kernel_sums(x, y, *ones, sigma=sigma, chunk=chunk)
    return _estimate(sums, len(x), len(y), scale, biased)


def mmd_result(
    x: Embeddings,
    y: Embeddings,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    sigma: float = SIGMA,
    scale: float = SCALE,
    chunk: int = CHUNK,
) -> MmdResult:
    """Return both estimators and the bootstrap standard error from one pass over the kernel.

    Shapes: x [n, d], y [m, d].
    Raises: ValueError as `mmd` does, and for fewer than two resamples.
    """
    x, y = checked_pair("mmd", x, y)
    counts_x = torch.cat([_ones(x), bootstrap_counts(len(x), resamples, 2 * seed).to(x.device)])
    counts_y = torch.cat([_ones(y), bootstrap_counts(len(y), resamples, 2 * seed + 1).to(x.device)])
    sums = _kernel_sums(x, y, counts_x, counts_y, sigma=sigma, chunk=chunk)
    n, m = len(x), len(y)
    draws = scale * (sums[0] / n**2 + sums[1] / m**2 - 2 * sums[2] / (n * m))[1:].cpu()
    biased, unbiased = (_estimate(sums, n, m, scale, kind) for kind in (True, False))
    return MmdResult(biased, unbiased, float(draws.std()), draws)


def mmd_se(
    x: Embeddings,
    y: Embeddings,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    sigma: float = SIGMA,
    scale: float = SCALE,
    chunk: int = CHUNK,
) -> float:
    """Return the bootstrap standard error of the V-statistic, both sets resampled with replacement.

    Each resample is a row of multinomial weights around one kernel, so nothing is recomputed.

    Shapes: x [n, d], y [m, d].
    Raises: ValueError as `mmd_result` does.
    Source: Efron 1979 (Annals of Statistics 7). For two sets of one distribution the V-statistic is
        degenerate and the plain bootstrap errs on the wide side.
    """
    return mmd_result(x, y, resamples=resamples, seed=seed, sigma=sigma, scale=scale, chunk=chunk).se


def cmmd(x: Embeddings, y: Embeddings, *, biased: bool = True, chunk: int = CHUNK) -> float:
    """Return CMMD: V-statistic (unless `biased=False`), sigma 10, scale 1000, rows first scaled to unit
    length.

    Shapes: x [n, d], y [m, d], CLIP image embeddings in the projected space.
    Raises: ValueError as `mmd` does, and for a row of zeros.
    Source: Jayasumana et al. 2023, arXiv 2401.09603; estimator as in their released code (the abstract says
        unbiased).
    """
    return _unit_mmd("cmmd", x, y, biased, chunk)


def dino_mmd(x: Embeddings, y: Embeddings, *, biased: bool = True, chunk: int = CHUNK) -> float:
    """Return DINO-MMD: V-statistic (unless `biased=False`), sigma 10, scale 1000, rows first scaled to unit
    length.

    Shapes: x [n, d], y [m, d], DINO class tokens after the final norm.
    Raises: ValueError as `cmmd` does.
    Source: the metric of Photoroom's PRX; the kernel is that of CMMD.
    """
    return _unit_mmd("dino_mmd", x, y, biased, chunk)


def fid(x: Embeddings, y: Embeddings) -> float:
    """Return the Frechet distance between Gaussian fits of two sets of features.

    Refuses fewer than two samples. With n <= d a covariance is singular: the value is still defined here, but
    meaningless as a claim, and `evaluation.evaluate` refuses it unless told otherwise.

    Shapes: x [n, d], y [m, d].
    Raises: ValueError for fewer than two samples, unequal widths, or values that are not finite.
    Source: Heusel et al. 2017, arXiv 1706.08500. The trace of the root is taken as the sum of the singular
        values of the product of both symmetric roots, which treats x and y alike.
    """
    x, y = checked_pair("fid", x, y)
    return _frechet(_moments(x, _ones(x)[0]), _moments(y, _ones(y)[0]))


def fid_se(x: Embeddings, y: Embeddings, *, resamples: int = FID_RESAMPLES, seed: int = 0) -> float:
    """Return the bootstrap standard error of FID, both sets resampled with replacement.

    Shapes: x [n, d], y [m, d].
    Raises: ValueError as `fid` does, and for fewer than two resamples.
    """
    x, y = checked_pair("fid", x, y)
    counts_x = bootstrap_counts(len(x), resamples, 2 * seed).to(x.device)
    counts_y = bootstrap_counts(len(y), resamples, 2 * seed + 1).to(x.device)
    draws = [_frechet(_moments(x, a), _moments(y, b)) for a, b in zip(counts_x, counts_y, strict=True)]
    return float(np.std(draws, ddof=1))


def normalise(embeddings: Embeddings, name: str = "embeddings") -> Tensor:
    """Scale every row to unit length in float64.

    Shapes: [n, d] -> [n, d].
    Raises: ValueError for a row of zeros, which has no direction.
    """
    rows = _tensor(embeddings).to(torch.float64, copy=True)
    lengths = rows.norm(dim=1, keepdim=True)
    if bool((lengths == 0).any()):
        raise ValueError(f"{name} must not contain a row of zeros, got one at row {int(lengths.argmin())}")
    return rows.div_(lengths)


def checked_pair(metric: str, x: Embeddings, y: Embeddings) -> tuple[Tensor, Tensor]:
    """Return both sets as tensors on one device, or say which rule they break."""
    x, y = _checked(metric, "x", x), _checked(metric, "y", y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{metric}: x and y must have equal widths, got {x.shape[1]} and {y.shape[1]}")
    return x, y.to(x.device)


def bootstrap_counts(num: int, resamples: int, seed: int) -> Tensor:
    """Draw how often each sample occurs in each resample.

    Shapes: [R, num] float64, rows sum to num.
    """
    if resamples < 2:
        raise ValueError(f"resamples must be at least 2, got {resamples}")
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(num, (num,), generator=generator).bincount(minlength=num) for _ in range(resamples)]
    return torch.stack(rows).double()


def _unit_mmd(metric: str, x: Embeddings, y: Embeddings, biased: bool, chunk: int) -> float:
    x, y = checked_pair(metric, x, y)
    return mmd(normalise(x, f"{metric}: x"), normalise(y, f"{metric}: y"), biased=biased, chunk=chunk)


def _tensor(values: Embeddings) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    array = np.asarray(values)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _checked(metric: str, name: str, values: Embeddings) -> Tensor:
    rows = _tensor(values)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(f"{metric}: {name} must have shape [samples, width], got {list(rows.shape)}")
    if len(rows) < 2:
        raise ValueError(f"{metric}: {name} must have at least 2 samples, got {len(rows)}")
    bad = sum(int((~torch.isfinite(block)).any(dim=1).sum()) for block in rows.split(CHUNK))
    if bad:
        raise ValueError(f"{metric}: {name} must be finite, got {bad} rows with NaN or infinity")
    return rows


def _ones(rows: Tensor) -> Tensor:
    return torch.ones(1, len(rows), dtype=torch.float64, device=rows.device)


def _estimate(sums: tuple[Tensor, Tensor, Tensor], n: int, m: int, scale: float, biased: bool) -> float:
    # The sums hold k - 1: the ones cancel in both estimators, and the diagonals are zero.
    within_x, within_y, between = (float(part[0]) for part in sums)
    if biased:
        return max(0.0, scale * (within_x / n**2 + within_y / m**2 - 2 * between / (n * m)))
    return scale * (within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * between / (n * m))


def _kernel_sums(
    x: Tensor, y: Tensor, counts_x: Tensor, counts_y: Tensor, *, sigma: float, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum (k - 1) over pairs within x, within y and between, once for each row of counts.

    Shapes: counts_x [R, n], counts_y [R, m] -> three times [R].
    """
    if not sigma > 0:
        raise ValueError(f"mmd: sigma must be positive, got {sigma}")
    if chunk < 1:
        raise ValueError(f"mmd: chunk must be at least 1, got {chunk}")
    gamma = 1.0 / (2.0 * sigma**2)
    return (
        _within_sum(x, counts_x, gamma, chunk),
        _within_sum(y, counts_y, gamma, chunk),
        _between_sum(x, y, counts_x, counts_y, gamma, chunk),
    )


def _blocks(rows: Tensor, counts: Tensor, chunk: int, start: int = 0) -> Iterator[tuple[int, Tensor, Tensor]]:
    for first in range(start, len(rows), chunk):
        yield first, rows[first : first + chunk].double(), counts[:, first : first + chunk]


def _within_sum(rows: Tensor, counts: Tensor, gamma: float, chunk: int) -> Tensor:
    total = torch.zeros(len(counts), dtype=torch.float64, device=rows.device)
    for first, a, weights_a in _blocks(rows, counts, chunk):
        for second, b, weights_b in _blocks(rows, counts, chunk, start=first):
            kernel = _kernel_minus_one(a, b, gamma)
            if first == second:
                # A sample is at distance zero from itself; rounding would leave a crumb here.
                kernel.fill_diagonal_(0.0)
            part = ((weights_a @ kernel) * weights_b).sum(dim=1)
            total += part if first == second else 2 * part
    return total


def _between_sum(
    x: Tensor, y: Tensor, counts_x: Tensor, counts_y: Tensor, gamma: float, chunk: int
) -> Tensor:
    total = torch.zeros(len(counts_x), dtype=torch.float64, device=x.device)
    for _, a, weights_a in _blocks(x, counts_x, chunk):
        for _, b, weights_b in _blocks(y, counts_y, chunk):
            total += ((weights_a @ _kernel_minus_one(a, b, gamma)) * weights_b).sum(dim=1)
    return total


def _kernel_minus_one(a: Tensor, b: Tensor, gamma: float) -> Tensor:
    squares = (a @ b.T).mul_(-2.0)
    squares += a.square().sum(dim=1)[:, None]
    squares += b.square().sum(dim=1)[None, :]
    return squares.clamp_(min=0.0).mul_(-gamma).expm1_()


def _moments(rows: Tensor, counts: Tensor, chunk: int = 8192) -> tuple[Tensor, Tensor]:
    blocks = range(0, len(rows), chunk)
    total = counts.sum()
    mean = sum(counts[i : i + chunk] @ rows[i : i + chunk].double() for i in blocks) / total
    cov = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    for i in blocks:
        centred = rows[i : i + chunk].double() - mean
        cov += (centred * counts[i : i + chunk, None]).T @ centred
    return mean, cov / (total - 1)


def _frechet(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    (mean_x, cov_x), (mean_y, cov_y) = first, second
    cross = torch.linalg.svdvals(_root(cov_x) @ _root(cov_y)).sum()
    distance = (mean_x - mean_y).square().sum() + cov_x.trace() + cov_y.trace() - 2 * cross
    return max(0.0, float(distance))


def _root(cov: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(cov)
    return (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T
