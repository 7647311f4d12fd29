"""The one module that DeepSpeed sees: denoiser, projectors, router; batch in, loss out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from diffusers import PRXTransformer2DModel
from torch import Tensor, nn

from prx.denoiser import ResolutionTokens, walk
from prx.interfaces import LossTerm, Objective, Route, StepView, TokenRouter, TrainedTokenizer

MAIN_TERM = "objective"


@dataclass(frozen=True)
class StepBatch:
    """What one micro-batch needs; every draw is already made.

    Shapes: `clean`, `noise` [B, C, H, W]; `t` [B]; `text` [B, L, text width]; `mask` [B, L];
    `targets` [B, N, E], `attention` [B, layers, heads, N, N] and `partners` [B, C, H, W] by term; `kept`
    [B, K] and `skipped` [B], the router's choice; `unconditional` [B]. `weights` names the terms that act
    at this step; None means all of them, as configured.

    A tokenizer that is trained makes the latents itself, from `images`, uint8 [B, 3, S, S], with the noise
    of its `posterior` [B, C, H, W]; `clean` holds no number until then. `captions` has `text` and `mask` as
    above, before any caption was dropped.
    """

    clean: Tensor
    noise: Tensor
    t: Tensor
    text: Tensor
    mask: Tensor
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    partners: Mapping[str, Tensor] = field(default_factory=dict)
    attention: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Tensor | None = None
    skipped: Tensor | None = None
    unconditional: Tensor | None = None
    weights: Mapping[str, float] | None = None
    images: Tensor | None = None
    posterior: Tensor | None = None
    captions: Mapping[str, Tensor] = field(default_factory=dict)

    def map(self, function: Any) -> StepBatch:
        """Apply a function to every tensor."""
        return StepBatch(**{item.name: _mapped(getattr(self, item.name), function) for item in fields(self)})

    def split(self, size: int) -> list[StepBatch]:
        """Cut into micro-batches of `size` samples."""
        starts = range(0, len(self.clean), size)
        return [self.map(lambda tensor, s=start: tensor[s : s + size]) for start in starts]


def _mapped(value: Any, function: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _mapped(item, function) for name, item in value.items()}
    return function(value) if isinstance(value, Tensor) else value


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
        resolution: ResolutionTokens | None = None,
        tokenizer: TrainedTokenizer | None = None,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.objective = objective
        self.losses = nn.ModuleDict(losses)
        self.router = router
        self.grid = grid
        self.autocast = autocast
        self.resolution = resolution
        self.tokenizer = tokenizer
        self.mean_clean: Tensor | None = None
        """Mean latent [C, H, W], for terms that correct the velocity when sampling."""
        self.acting: Mapping[str, float] | None = None
        """Weights of the terms that acted in the last update, for the same; None means all, as configured."""

    def _precision(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.autocast)

    def _terms(self, weights: Mapping[str, float] | None) -> dict[str, tuple[float, LossTerm]]:
        """List the terms that act, with their weights."""
        found: dict[str, tuple[float, LossTerm]] = {}
        for name, term in self.losses.items():
            assert isinstance(term, LossTerm)
            weight = term.config.weight if weights is None else weights.get(name, 0.0)
            if weight:
                found[name] = (weight, term)
        return found

    def forward(self, batch: StepBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss, and each term unweighted and detached."""
        terms = self._terms(batch.weights)
        with self._precision(batch.clean.device):
            values = self.values(batch, [term for _, term in terms.values()])
            loss = values[MAIN_TERM]
            for name, (weight, _) in terms.items():
                loss = loss + weight * values[name]
        return loss, {name: value.detach() for name, value in values.items()}

    def term_and_objective(self, batch: StepBatch, name: str) -> tuple[Tensor, Tensor]:
        """Compute one term and the objective's loss in one pass, unweighted and differentiable."""
        term = self.losses[name]
        assert isinstance(term, LossTerm)
        with self._precision(batch.clean.device):
            values = self.values(batch, [term])
        return values[name], values[MAIN_TERM]

    def values(self, batch: StepBatch, terms: Sequence[LossTerm]) -> dict[str, Tensor]:
        """Compute the objective's loss and the terms', unweighted and differentiable, in one pass."""
        sample = self.objective.sample(batch.clean, batch.noise, batch.t)
        route = None if batch.kept is None else Route(batch.kept, batch.skipped)
        output, taps = walk(
            self.denoiser, sample.noised, batch.t, batch.text, batch.mask,
            tapped={term.layer for term in terms if term.layer is not None},
            attended={layer for term in terms for layer in term.attended}, router=self.router, route=route,
            resolution=self.resolution,
        )  # fmt: skip
        velocity = self.objective.to_velocity(output.float(), sample.noised, batch.t)
        wanted = any(term.wants_estimate for term in terms)
        view = StepView(
            sample, velocity, taps, batch.targets, batch.partners, self.grid, batch.attention,
            self.objective.to_clean(velocity, sample.noised, batch.t) if wanted else None, batch.unconditional,
        )  # fmt: skip
        return {MAIN_TERM: self.objective.loss(velocity, sample)} | {term.name: term(view) for term in terms}

    def predict(self, noised: Tensor, t: Tensor, text: Tensor, mask: Tensor, route: Route | None = None) -> Tensor:
        """Predict the velocity [B, C, H, W] in float32; what a sampler integrates. Dense without a route."""
        with self._precision(noised.device):
            output, _ = walk(
                self.denoiser, noised, t, text, mask, router=self.router, route=route, resolution=self.resolution
            )
        velocity = self.objective.to_velocity(output.float(), noised, t)
        for weight, term in self._terms(self.acting).values():
            if term.corrects:
                assert self.mean_clean is not None
                velocity = term.correct(velocity, self.mean_clean, weight)
        return velocity
