"""The one module that DeepSpeed sees: denoiser, projectors, router; batch in, loss out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from diffusers import PRXTransformer2DModel
from torch import Tensor, nn

from prx.denoiser import walk
from prx.interfaces import LossTerm, Objective, StepView, TokenRouter

MAIN_TERM = "objective"


@dataclass(frozen=True)
class StepBatch:
    """What one micro-batch needs; every draw is already made.

    Shapes: `clean`, `noise` [B, C, H, W]; `t` [B]; `text` [B, L, text width]; `mask` [B, L];
    `targets` [B, N, E] and `partners` [B, C, H, W] by term; `kept` [B, K].
    """

    clean: Tensor
    noise: Tensor
    t: Tensor
    text: Tensor
    mask: Tensor
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    partners: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Tensor | None = None

    def map(self, function: Any) -> StepBatch:
        """Apply a function to every tensor."""
        return StepBatch(**{item.name: _mapped(getattr(self, item.name), function) for item in fields(self)})

    def split(self, size: int) -> list[StepBatch]:
        """Cut into micro-batches of `size` samples."""
        starts = range(0, len(self.clean), size)
        return [self.map(lambda tensor, s=start: tensor[s : s + size]) for start in starts]


def _mapped(value: Any, function: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: function(tensor) for name, tensor in value.items()}
    return None if value is None else function(value)


class TrainStep(nn.Module):
    """Turn a micro-batch into a loss; weights of the terms are applied here and nowhere else."""

    def __init__(
        self,
        denoiser: PRXTransformer2DModel,
        objective: Objective,
        losses: Mapping[str, LossTerm],
        router: TokenRouter | None = None,
        *,
        grid: tuple[int, int],
        autocast: bool = False,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.objective = objective
        self.losses = nn.ModuleDict(losses)
        self.router = router
        self.grid = grid
        self.autocast = autocast
        self.tapped = frozenset(term.layer for term in losses.values() if term.layer is not None)

    def _precision(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.autocast)

    def forward(self, batch: StepBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss, and each term unweighted and detached."""
        sample = self.objective.sample(batch.clean, batch.noise, batch.t)
        with self._precision(batch.clean.device):
            output, taps = walk(
                self.denoiser, sample.noised, batch.t, batch.text, batch.mask,
                tapped=self.tapped, router=self.router, kept=batch.kept,
            )  # fmt: skip
            velocity = self.objective.to_velocity(output.float(), sample.noised, batch.t)
            view = StepView(sample, velocity, taps, batch.targets, batch.partners, self.grid)
            loss = self.objective.loss(velocity, sample)
            terms = {MAIN_TERM: loss.detach()}
            for name, term in self.losses.items():
                value = term(view)
                loss = loss + term.weight * value
                terms[name] = value.detach()
        return loss, terms

    def predict(self, noised: Tensor, t: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Predict the velocity [B, C, H, W] in float32, dense; what a sampler integrates."""
        with self._precision(noised.device):
            output, _ = walk(self.denoiser, noised, t, text, mask)
        return self.objective.to_velocity(output.float(), noised, t)
