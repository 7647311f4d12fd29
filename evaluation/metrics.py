"""The distances between two sets of embeddings, as pure functions, by the names they are reported under."""

from __future__ import annotations

from evaluation.arrays import Embeddings, checked_pair, normalise
from evaluation.frechet import fid, fid_se
from evaluation.manifold import manifold
from evaluation.mmd import MmdResult, mmd, mmd_result
from evaluation.unit_mmd import unit_mmd_result

__all__ = [
    "ESTIMATORS", "MmdResult", "checked_pair", "cmmd", "cmmd_result", "dino_mmd", "dino_mmd_result", "fid", "fid_se",
    "manifold", "mmd", "mmd_result", "normalise",
]  # fmt: skip

_MMD = "1000 x MMD², V-statistic with diagonal, Gaussian kernel sigma 10, unit"
ESTIMATORS = {
    "cmmd": f"{_MMD} CLIP embeddings",
    "dino_mmd": f"{_MMD} DINO CLS tokens",
    "fid": "Frechet distance of Gaussian fits, unbiased covariances, pooled classifier features",
    "clip_score": "100 x cosine between CLIP embeddings of image and caption, mean over images",
    "knn_precision": "share of generated images inside a ball to a real image's 3rd neighbour, unit DINO CLS tokens",
    "knn_recall": "share of real images inside a ball to a generated image's 3rd neighbour, unit DINO CLS tokens",
    "density": "real balls to the 5th neighbour around a generated image, over 5, unit DINO CLS tokens",
    "coverage": "share of real balls to the 5th neighbour that hold a generated image, unit DINO CLS tokens",
    "adherence": "share of the asked attributes read back from the image, mean over images",
}


def cmmd_result(x: Embeddings, y: Embeddings) -> MmdResult:
    """Return CMMD as published (`biased`), without its bias (`unbiased`), and the standard error of either.

    Shapes: x [n, d], y [m, d], CLIP image embeddings in the projected space, of any length.
    Raises: ValueError for fewer than four samples, unequal widths, values that are not finite, or a row of zeros.
    Source: Jayasumana et al. 2023, arXiv 2401.09603: sigma 10, scale 1000, unit rows; estimator as in their
        released code (the abstract says unbiased).
    """
    return unit_mmd_result(*checked_pair("cmmd", x, y), "cmmd")


def dino_mmd_result(x: Embeddings, y: Embeddings) -> MmdResult:
    """Return DINO-MMD as `cmmd_result` returns CMMD, of DINO class tokens after the final norm.

    Shapes: x [n, d], y [m, d].
    Raises: ValueError as `cmmd_result` does.
    Source: the metric of Photoroom's PRX; the kernel is that of CMMD.
    """
    return unit_mmd_result(*checked_pair("dino_mmd", x, y), "dino_mmd")


def cmmd(x: Embeddings, y: Embeddings, *, biased: bool = True) -> float:
    """Return CMMD, or its unbiased variant; as `cmmd_result`."""
    found = cmmd_result(x, y)
    return found.biased if biased else found.unbiased


def dino_mmd(x: Embeddings, y: Embeddings, *, biased: bool = True) -> float:
    """Return DINO-MMD, or its unbiased variant; as `dino_mmd_result`."""
    found = dino_mmd_result(x, y)
    return found.biased if biased else found.unbiased
