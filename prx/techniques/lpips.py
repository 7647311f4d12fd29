"""Compare the predicted picture with the clean one as people would: LPIPS."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from prx import perceptual_net
from prx.config import PositiveFloat, TermConfig
from prx.errors import UserError
from prx.interfaces import LogUniform, LossTerm, RunShape, StepView, Uniform


class Lpips(LossTerm):
    """Perceptual distance between the estimate x̂ and the clean image, for samples with t <= max_t.

    Source: PixelGen 2026 (arXiv:2602.02493), after Zhang et al. 2018 (arXiv:1801.03924). PixelGen and PRX
    divide by the number of samples under the threshold; here it is the whole batch, so that the loss does
    not depend on the micro-batch: the same at max_t 1, smaller by that share below. Nothing is clamped.
    """

    SOURCE = "PixelGen 2026, arXiv:2602.02493"
    SEARCH = {"weight": LogUniform(0.05, 0.5), "max_t": Uniform(0.5, 1.0)}
    REQUIRES = ("pixels",)
    wants_estimate = True

    class Config(TermConfig):
        """Settings of LPIPS.

        Args:
            network: Network whose features compare pictures: a local folder, a hub id or `embedded:ROLE`.
            max_t: Latest t of samples that are compared.
            resize: Factor that both pictures are shrunk by first, bilinearly with antialiasing.
        """

        network: str = "timm/vgg16.tv_in1k"
        weight: PositiveFloat = 0.1
        max_t: Annotated[float, Field(gt=0, le=1)] = 1.0
        resize: Annotated[float, Field(gt=0, le=1)] = 1.0

    @classmethod
    def problems(cls, config: Any, shape: RunShape) -> list[tuple[str, str]]:
        """Refuse latents, unknown networks and pictures too small for the network."""
        found = perceptual_net.unmet(shape)
        try:
            smallest = perceptual_net.SMALLEST[perceptual_net.kind(config.network)]
        except UserError as error:
            return [*found, ("network", str(error))]
        size = round(shape.latent_size * config.resize)
        if size < smallest:
            found.append(("resize", f"must leave at least {smallest} pixels for {config.network!r}, got {size}"))
        return found

    def forward(self, view: StepView) -> Tensor:
        """Compute the mean distance; 0 for a perfect estimate."""
        return perceptual_net.gated(self._distance, view, self.config.max_t)

    def _distance(self, estimate: Tensor, clean: Tensor) -> Tensor:
        network = perceptual_net.shared(self.config.network, str(estimate.device))
        return network.distance(self._resized(estimate), self._resized(clean))

    def _resized(self, images: Tensor) -> Tensor:
        if self.config.resize == 1:
            return images
        size = [round(side * self.config.resize) for side in images.shape[-2:]]
        return F.interpolate(images, size=size, mode="bilinear", antialias=True)
