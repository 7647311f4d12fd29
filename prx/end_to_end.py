"""A step that trains the image tokenizer with the denoiser: one loss, one backward pass, exact zeros between.

Source: REPA-E, Leng et al. 2025 (arXiv:2504.10483).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from prx import images as pictures
from prx import registry
from prx.config import RunConfig
from prx.denoiser import walk
from prx.errors import Problem
from prx.interfaces import Drawn, LossTerm, RunShape, StepView
from prx.layers import frozen
from prx.train_step import StepBatch, TrainStep

TRAINED = "trained_tokenizer"
PREFIX = "tokenizer/"

Parts = dict[str, tuple[float, Tensor]]


class EndToEnd(TrainStep):
    """A `TrainStep` whose batches hold pictures; it makes the latents.

    Both passes share latents, times and noise. The tokenizer's comes first, so that it normalises by the
    running statistics that the step began with; the denoiser's then moves them.
    """

    def forward(self, batch: StepBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the sum of both passes' losses, and each term unweighted and detached."""
        images = _images(batch)
        with self._precision(images.device):
            drawn = self._draw(batch, images)
            parts = self.tokenizer_losses(batch, images, drawn)
        assert self.tokenizer is not None
        clean = self.tokenizer.normalise_batch(drawn.latents.detach())
        loss, terms = super().forward(replace(batch, clean=clean, images=None))
        for weight, value in parts.values():
            loss = loss + weight * value
        return loss, terms | {name: value.detach() for name, (_, value) in parts.items()}

    def values(self, batch: StepBatch, terms: Sequence[LossTerm]) -> dict[str, Tensor]:
        """Compute objective and terms on the denoiser's side; pictures are encoded without a gradient."""
        if batch.images is not None:
            assert self.tokenizer is not None
            with torch.no_grad():
                drawn = self._draw(batch, _images(batch))
                batch = replace(batch, clean=self.tokenizer.normalise(drawn.latents), images=None)
        return super().values(batch, terms)

    def _draw(self, batch: StepBatch, images: Tensor) -> Drawn:
        assert self.tokenizer is not None
        assert batch.posterior is not None
        return self.tokenizer.draw(images, batch.posterior)

    def tokenizer_losses(self, batch: StepBatch, images: Tensor, drawn: Drawn) -> Parts:
        """Compute what teaches the tokenizer and its adversary, and nothing else: (weight, value) by name."""
        assert self.tokenizer is not None
        found = self.tokenizer.losses(images, drawn) | self._alignment(batch, drawn.latents)
        return {PREFIX + name: part for name, part in found.items()}

    def _alignment(self, batch: StepBatch, latents: Tensor) -> Parts:
        """Align the latents through a denoiser that stays as it is, up to the last tapped block.

        A term's schedule holds here too: its weight falls as on the denoiser's side.
        """
        assert self.tokenizer is not None
        acting = self._terms(batch.weights)
        found = {name: part for name, part in acting.items() if name in batch.targets or name in batch.attention}
        if not found or not self.tokenizer.align_weight:
            return {}
        others = [child for child in self.children() if child is not self.tokenizer]
        with frozen(*others):
            view = self._tapped(batch, latents, [term for _, term in found.values()])
            share = self.tokenizer.align_weight
            return {name: (share * weight / term.config.weight, term(view)) for name, (weight, term) in found.items()}

    def _tapped(self, batch: StepBatch, latents: Tensor, terms: Sequence[LossTerm]) -> StepView:
        """Show terms their taps of a dense pass with every caption."""
        assert self.tokenizer is not None
        sample = self.objective.sample(self.tokenizer.normalise(latents), batch.noise, batch.t)
        tapped = {term.layer for term in terms if term.layer is not None}
        attended = {layer for term in terms for layer in term.attended}
        _, taps = walk(
            self.denoiser, sample.noised, batch.t, batch.captions["text"], batch.captions["mask"],
            tapped=tapped, attended=attended, router=self.router, resolution=self.resolution,
            until=max(tapped | attended),
        )  # fmt: skip
        nothing = latents.new_full((), float("nan")).expand_as(latents)  # the pass ends before there is a velocity
        return StepView(sample, nothing, taps, batch.targets, grid=self.grid, attention=batch.attention)


def _images(batch: StepBatch) -> Tensor:
    assert batch.images is not None
    return pictures.to_unit(batch.images)


def problems(config: RunConfig, shape: RunShape) -> Iterator[Problem]:
    """Find what a trained tokenizer cannot work with."""
    if TRAINED not in shape.provides:
        return
    use, infra = config.tokenizer.use, config.infrastructure
    losses = {name: registry.resolve("loss", part.use) for name, part in config.losses.items()}
    if not any(_aligns(losses[name], part, shape) for name, part in config.losses.items()):
        yield Problem("losses", f"must have an alignment term, such as repa, through which tokenizer {use} learns, "
                      f"got {_listed(losses)}")  # fmt: skip
    for name, technique in losses.items():
        if technique.pair is not LossTerm.pair:
            yield Problem(f"losses.{name}", f"must not pair samples with tokenizer {use}, which makes each worker's "
                          f"latents in the step, got {config.losses[name].use!r}")  # fmt: skip
    if config.micro_batch != config.batch_size // infra.workers:
        yield Problem("infrastructure.micro_batch", f"must be the whole share of a worker "
                      f"({config.batch_size // infra.workers}) with tokenizer {use}, whose batch statistics depend on "
                      f"it, got {config.micro_batch}")  # fmt: skip


def _aligns(technique: Any, part: Any, shape: RunShape) -> bool:
    return technique.teacher(part, shape) is not None


def _listed(losses: Mapping[str, Any]) -> str:
    return ", ".join(losses) or "no loss"
