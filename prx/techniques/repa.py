"""Align block features with a frozen image encoder."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from prx.config import AlignmentConfig, PositiveFloat, PositiveInt
from prx.interfaces import LogUniform, LossTerm, RunShape, StepView, TeacherSpec, gather
from prx.layers import projector


class Repa(LossTerm):
    """Negative mean cosine between projected block features and teacher patch tokens of the clean image.

    Shapes: tap [B, K, D], target [B, N, E], gathered to K by the tap's index.
    Source: Yu et al. 2024 (arXiv:2410.06940). Projector width is the teacher's E, as in PRX; the paper
    uses 2048. Teacher input is resized bicubically with antialiasing, as the paper, not PRX's nearest.
    """

    SOURCE = "Yu et al. 2024, arXiv:2410.06940"
    SEARCH = {"weight": LogUniform(0.1, 2.0)}
    CONFLICTS = ("stop_when with ZeRO 3",)

    class Config(AlignmentConfig):
        """Settings of one teacher; several teachers are several entries under `losses`.

        Args:
            layer: Block whose output is compared, 0-based.
            hidden: Hidden width of the projector; the teacher's width unless told.
        """

        layer: Annotated[int, Field(ge=0)] = 7
        weight: PositiveFloat = 0.5
        hidden: PositiveInt | None = None

    def __init__(self, name: str, config: Config, shape: RunShape, teacher_width: int) -> None:
        super().__init__(name, config, shape, teacher_width)
        self.projector = projector(shape.width, config.hidden or teacher_width, teacher_width)

    @property
    def layer(self) -> int:
        """Name the tapped block."""
        return self.config.layer

    @classmethod
    def problems(cls, config: Any, shape: RunShape) -> list[tuple[str, str]]:
        """Refuse a layer that the denoiser does not have, and a stop that cannot be measured."""
        found = config.stop_problems(config.layer, shape.zero_stage)
        if config.layer >= shape.depth:
            rule = f"must be in 0..{shape.depth - 1} (denoiser.depth is {shape.depth}), got {config.layer}"
            return [("layer", rule), *found]
        return found

    @classmethod
    def teacher(cls, config: Any, shape: RunShape) -> TeacherSpec:
        """Ask for one teacher token per image token."""
        return TeacherSpec(config.teacher, shape.grid)

    def forward(self, view: StepView) -> Tensor:
        """Compute the negative cosine; -1 at perfect alignment."""
        tap = view.taps[self.config.layer]
        target = gather(view.targets[self.name], tap.index)
        projected = self.projector(tap.features)
        return -F.cosine_similarity(projected.float(), target.float(), dim=-1).mean()
