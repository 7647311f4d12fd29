"""Align the spatial structure of block features with a frozen image encoder."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from prx.config import AlignmentConfig, PositiveFloat, PositiveInt
from prx.interfaces import Choice, LogUniform, LossTerm, RunShape, StepView, TeacherSpec, gather
from prx.layers import projector

EPS = 1e-6
KERNEL: Final = 3


class IRepa(LossTerm):
    """REPA's negative cosine with a convolution as projector and with spatially normalised targets.

    Both changes can be switched apart; without either this is REPA, the control of such a comparison.
    Shapes: tap [B, K, D], target [B, N, E].
    Source: Singh et al. 2025 (arXiv:2512.10794). `gamma` is the paper's number; `prx_gamma` puts in its
    place what Photoroom's code computes, a mean over features for every token, close to nothing on
    normalised features. Weight as in REPA; the paper's latent runs use 1.
    """

    SOURCE = "Singh et al. 2025, arXiv:2512.10794"
    SEARCH = {"weight": LogUniform(0.1, 2.0), "gamma": Choice((0.0, 0.6, 0.8, 1.0))}
    CONFLICTS = ("conv projector on a routed layer", "stop_when with ZeRO 3")

    class Config(AlignmentConfig):
        """Settings of one teacher.

        Args:
            layer: Block whose output is compared, 0-based.
            projector: `conv`, the paper's, or REPA's `mlp`.
            kernel: Side of the convolution.
            hidden: Hidden width of the mlp; the teacher's width unless told.
            normalise: Whether targets are normalised over space.
            gamma: Share of the mean over space that normalising takes off.
            prx_gamma: Take off instead what Photoroom's code computes, close to nothing.
        """

        layer: Annotated[int, Field(ge=0)] = 7
        weight: PositiveFloat = 0.5
        projector: Literal["conv", "mlp"] = "conv"
        kernel: Literal[1, 3, 5, 7] = KERNEL
        hidden: PositiveInt | None = None
        normalise: bool = True
        gamma: Annotated[float, Field(ge=0, le=1)] = 1.0
        prx_gamma: bool = False

    def __init__(self, name: str, config: Config, shape: RunShape, teacher_width: int) -> None:
        super().__init__(name, config, shape, teacher_width)
        if config.projector == "mlp":
            self.projector: nn.Module = projector(shape.width, config.hidden or teacher_width, teacher_width)
        else:
            self.projector = nn.Conv2d(shape.width, teacher_width, config.kernel, padding=config.kernel // 2)

    @property
    def layer(self) -> int:
        """Name the tapped block."""
        return self.config.layer

    @classmethod
    def problems(cls, config: Any, shape: RunShape) -> list[tuple[str, str]]:
        """Refuse a missing layer, a grid with holes under a convolution, and settings that would do nothing."""
        found = config.stop_problems(config.layer, shape.zero_stage) + _idle(config)
        if config.layer >= shape.depth:
            rule = f"must be in 0..{shape.depth - 1} (denoiser.depth is {shape.depth}), got {config.layer}"
            found.append(("layer", rule))
        if config.projector == "conv" and shape.route and shape.route[0] <= config.layer <= shape.route[1]:
            start, end = shape.route
            found.append(("layer", f"must be outside the routed blocks {start}..{end}, which see no whole grid to "
                          f"convolve (projector: mlp needs none), got {config.layer}"))  # fmt: skip
        if config.normalise and shape.num_tokens < 2:
            found.append(("normalise", "must be false on a grid of one token, which has no spread, got true"))
        return found

    @classmethod
    def teacher(cls, config: Any, shape: RunShape) -> TeacherSpec:
        """Ask for one teacher token per image token."""
        return TeacherSpec(config.teacher, shape.grid)

    def forward(self, view: StepView) -> Tensor:
        """Compute the negative cosine; -1 at perfect alignment."""
        tap = view.taps[self.config.layer]
        target = self._target(view.targets[self.name].float())  # whole images: their kept part has other statistics
        projected = self._project(tap.features, view.grid)
        return -F.cosine_similarity(projected.float(), gather(target, tap.index), dim=-1).mean()

    def _project(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        """Map features [B, K, D] to [B, K, E]; a convolution takes them as rows of the grid, K = N."""
        if self.config.projector == "mlp":
            return self.projector(features)
        return self.projector(features.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)

    def _target(self, target: Tensor) -> Tensor:
        """Normalise over the tokens of each image, [B, N, E], where that is on."""
        if not self.config.normalise:
            return target
        gamma = target.mean(dim=2, keepdim=True) if self.config.prx_gamma else self.config.gamma
        return (target - gamma * target.mean(dim=1, keepdim=True)) / (target.std(dim=1, keepdim=True) + EPS)


def _idle(config: Any) -> list[tuple[str, str]]:
    """Refuse settings that others of this term make void."""
    found = []
    if config.projector == "mlp" and config.kernel != KERNEL:
        found.append(("kernel", f"must be left at {KERNEL} with projector mlp, which has none, got {config.kernel}"))
    if config.projector == "conv" and config.hidden is not None:
        found.append(("hidden", f"must be null with projector conv, which has no hidden layer, got {config.hidden}"))
    if config.prx_gamma and not config.normalise:
        found.append(("prx_gamma", "must be false where normalise is false, got true"))
    return found
