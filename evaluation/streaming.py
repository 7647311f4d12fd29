"""Accumulate metrics batch by batch and over workers with torchmetrics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.utilities import dim_zero_cat

from evaluation import metrics
from evaluation.features import Extractor


class _EmbeddingDistance(Metric):
    """Collect embeddings of both sets; every sample of every worker enters the distance once.

    Shapes: embeddings [B, width].
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    real: list[Tensor]
    generated: list[Tensor]

    def __init__(self, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width = width
        self.add_state("real", default=[], dist_reduce_fx="cat")
        self.add_state("generated", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget every embedding."""
        super().reset()
        # A worker without samples must still gather a matrix of the right width.
        self.real.append(torch.empty(0, self.width, device=self.device))
        self.generated.append(torch.empty(0, self.width, device=self.device))

    def update(self, embeddings: Tensor, real: bool) -> None:
        """Add embeddings of real or of generated images.

        Raises: ValueError for another width.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.width:
            raise ValueError(f"embeddings must have shape [B, {self.width}], got {list(embeddings.shape)}")
        (self.real if real else self.generated).append(embeddings.detach().to(self.device, torch.float32))

    def _both(self) -> tuple[Tensor, Tensor]:
        return dim_zero_cat(self.generated), dim_zero_cat(self.real)


class CMMD(_EmbeddingDistance):
    """Stream `evaluation.metrics.cmmd`: V-statistic, sigma 10, scale 1000, rows scaled to unit length."""

    def compute(self) -> Tensor:
        """Return the distance in float64."""
        return torch.tensor(metrics.cmmd(*self._both()), dtype=torch.float64)


class DinoMMD(_EmbeddingDistance):
    """Stream `evaluation.metrics.dino_mmd`: V-statistic, sigma 10, scale 1000, rows scaled to unit length."""

    def compute(self) -> Tensor:
        """Return the distance in float64."""
        return torch.tensor(metrics.dino_mmd(*self._both()), dtype=torch.float64)


class _Features(nn.Module):
    """Present an extractor as the feature module that torchmetrics expects."""

    def __init__(self, extractor: Extractor) -> None:
        super().__init__()
        self.extractor = extractor
        self.num_features = extractor.width

    def forward(self, images: Tensor) -> Tensor:
        # float64 out, or torchmetrics rounds its result to float32.
        return self.extractor.embed(images).to(images.device, torch.float64)


class FID(FrechetInceptionDistance):
    """Stream FID over one of our extractors, on uint8 images only.

    With a feature module torchmetrics leaves images as they are, so `normalize` must stay False and the scale
    is fixed by the dtype: the extractor refuses anything but uint8.

    Shapes: images uint8 [B, 3, H, W].
    """

    def __init__(self, extractor: Extractor, **kwargs: Any) -> None:
        super().__init__(feature=_Features(extractor), normalize=False, **kwargs)
