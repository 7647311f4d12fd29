"""Fidelity and variety of images apart: precision and recall, density and coverage, by nearest neighbours.

Shape letters: n generated samples, m real samples, d embedding width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evaluation.arrays import CHUNK, Embeddings, checked_pair
from evaluation.mmd import blocks

PRECISION_NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5
MIN_SAMPLES = DENSITY_NEIGHBOURS + 1
"""Samples of each set without which the balls around samples have no radius."""
MANIFOLD_METRICS = ("knn_precision", "knn_recall", "density", "coverage")
"""`precision` alone names a technique: the number format that a run trains in."""


def manifold(generated: Embeddings, real: Embeddings, *, chunk: int = CHUNK) -> dict[str, float]:
    """Return precision, recall, density and coverage, each with the standard error of the samples that it averages.

    A ball around a sample reaches to its third (precision, recall) or fifth (density, coverage) nearest neighbour in
    its own set. Precision is the share of generated samples inside a real ball, recall the share of real ones inside a
    generated ball; density counts the real balls around a generated sample, over five, and coverage is the share of
    real balls that hold a generated sample. An error holds the other set fixed. Memory grows with `chunk`, not n * m.

    Shapes: generated [n, d], real [m, d].
    Raises: ValueError for fewer than six samples, unequal widths, or values that are not finite.
    Source: Kynkaanniemi et al. 2019, arXiv 1904.06991 (k = 3); Naeem et al. 2020, arXiv 2002.09797 (k = 5).
    """
    x, y = checked_pair("precision and recall", generated, real)
    if min(len(x), len(y)) < MIN_SAMPLES:
        got = f"{len(x)} and {len(y)}"
        raise ValueError(f"precision and recall need at least {MIN_SAMPLES} samples of each, got {got}")
    radius_x = _radii(x, chunk)[:, PRECISION_NEIGHBOURS - 1]
    radii_y = _radii(y, chunk)
    narrow, wide = radii_y[:, PRECISION_NEIGHBOURS - 1], radii_y[:, DENSITY_NEIGHBOURS - 1]
    precise, around = (torch.zeros(len(x), device=x.device) for _ in range(2))
    recalled, covered = (torch.zeros(len(y), device=x.device) for _ in range(2))
    for a in blocks(x, chunk):
        for b in blocks(y, chunk):
            squares = _squares(x[a], y[b])
            precise[a] += (squares <= narrow[b]).sum(dim=1)
            inside = squares <= wide[b]
            around[a] += inside.sum(dim=1)
            covered[b] += inside.sum(dim=0)
            recalled[b] += (squares <= radius_x[a, None]).sum(dim=0)
    shares = {"knn_precision": precise, "knn_recall": recalled, "coverage": covered}
    found = {name: value for name, counts in shares.items() for name, value in _share(name, counts).items()}
    density = around.double() / DENSITY_NEIGHBOURS
    return found | {"density": float(density.mean()), "density_se": float(density.std()) / math.sqrt(len(x))}


def _share(name: str, counts: Tensor) -> dict[str, float]:
    """Give the share of samples with a hit; the error never claims that a share of 0 or 1 is certain.

    Source: Agresti and Coull 1998 (The American Statistician 52).
    """
    num, hits = len(counts), int((counts > 0).sum())
    likely = (hits + 2) / (num + 4)
    return {name: hits / num, f"{name}_se": math.sqrt(likely * (1 - likely) / (num + 4))}


def _radii(rows: Tensor, chunk: int) -> Tensor:
    """Give the squared distance to each of the nearest others. Shapes: [n, d] -> [n, DENSITY_NEIGHBOURS]."""
    found = torch.full((len(rows), DENSITY_NEIGHBOURS), torch.inf, dtype=torch.float64, device=rows.device)
    for a in blocks(rows, chunk):
        for b in blocks(rows, chunk):
            squares = _squares(rows[a], rows[b])
            if a == b:
                squares.fill_diagonal_(torch.inf)
            known = torch.cat([found[a], squares], dim=1)
            found[a] = known.topk(DENSITY_NEIGHBOURS, dim=1, largest=False, sorted=True).values
    return found


def _squares(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.double(), b.double()
    squares = (a @ b.T).mul_(-2.0)
    squares += a.square().sum(dim=1)[:, None]
    squares += b.square().sum(dim=1)[None, :]
    return squares.clamp_(min=0.0)
