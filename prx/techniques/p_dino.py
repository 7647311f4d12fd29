"""Compare the predicted picture with the clean one through DINOv2's patches."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from prx import perceptual_net
from prx.config import PositiveFloat, PositiveInt, TermConfig
from prx.errors import UserError
from prx.interfaces import LogUniform, LossTerm, RunShape, StepView, Uniform
from prx.teachers import Teacher, teacher_width


@lru_cache(maxsize=2)
def shared(path: str, device: str) -> Teacher:
    """Give the teacher that this process already holds: it is frozen, and no module owns it."""
    return Teacher(path, torch.device(device))


class PDino(LossTerm):
    """Mean over patches of 1 - cos(F(x̂), F(x)), F the teacher's last patch tokens, for samples with t <= max_t.

    Shapes: pictures are resized so that F gives `grid` x `grid` tokens.
    Source: PixelGen 2026 (arXiv:2602.02493). As there and unlike in PRX, nothing is clamped. Pictures are
    resized bicubically with antialiasing, as for REPA; PRX resizes bilinearly. The mean is over the whole
    batch, as for LPIPS; PixelGen and PRX divide by the number of samples under the threshold.
    """

    SOURCE = "PixelGen 2026, arXiv:2602.02493"
    SEARCH = {"weight": LogUniform(0.005, 0.05), "max_t": Uniform(0.5, 1.0)}
    REQUIRES = ("pixels",)
    wants_estimate = True

    class Config(TermConfig):
        """Settings of P-DINO.

        Args:
            teacher: Network whose patch tokens compare pictures: a local folder, a hub id or `embedded:ROLE`.
            max_t: Latest t of samples that are compared.
            grid: Patch tokens along a side; 16 are 224 pixels for a DINOv2 of patch 14.
        """

        teacher: str = "facebook/dinov2-with-registers-base"
        weight: PositiveFloat = 0.01
        max_t: Annotated[float, Field(gt=0, le=1)] = 1.0
        grid: PositiveInt = 16

    @classmethod
    def problems(cls, config: Any, shape: RunShape) -> list[tuple[str, str]]:
        """Refuse latents and unknown teachers."""
        found = perceptual_net.unmet(shape)
        try:
            teacher_width(config.teacher)
        except UserError as error:
            found.append(("teacher", str(error)))
        return found

    def forward(self, view: StepView) -> Tensor:
        """Compute the mean distance, in 0..2; 0 for a perfect estimate."""
        return perceptual_net.gated(self._distance, view, self.config.max_t)

    def _distance(self, estimate: Tensor, clean: Tensor) -> Tensor:
        teacher, grid = shared(self.config.teacher, str(estimate.device)), (self.config.grid,) * 2
        with torch.no_grad():
            wanted = teacher.features(clean, grid)
        found = teacher.features(estimate, grid)
        return 1 - F.cosine_similarity(found.float(), wanted.float(), dim=-1).mean(dim=1)
