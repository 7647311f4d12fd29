"""Push the predicted velocity away from another sample's."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field
from torch import Tensor

from prx.config import TermConfig
from prx.interfaces import LogUniform, LossTerm, PairContext, StepView


class Contrastive(LossTerm):
    """Contrastive flow matching: minus the squared distance to the velocity of another sample.

    Added with weight λ this makes mean|v - u|² - λ mean|v - ũ|², with u = noise - clean of the sample
    and ũ that of another one, its own image and noise.
    Source: Stoica et al. 2025 (arXiv:2506.05350). Partners are drawn over the global batch, so that
    they do not depend on micro-batching; PRX rolls within the micro-batch. Null captions are included,
    as in PRX.
    """

    SOURCE = "Stoica et al. 2025, arXiv:2506.05350"
    SEARCH = {"weight": LogUniform(0.01, 0.15)}

    class Config(TermConfig):
        """Settings of the contrastive term; λ of 1 or more has no lower bound."""

        weight: Annotated[float, Field(gt=0, lt=1)] = 0.05

    def pair(self, context: PairContext, rng: np.random.Generator) -> np.ndarray | None:
        """Choose uniformly among the other samples: [G] int64, never the sample itself."""
        num = len(context.prompts)
        offset = rng.integers(1, num, size=num)
        return (np.arange(num) + offset) % num

    def forward(self, view: StepView) -> Tensor:
        """Compute minus the mean squared distance to the partner's velocity."""
        return -(view.velocity - view.partners[self.name]).square().mean()
