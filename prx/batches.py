"""The global batch of a step, as a function of (seed, step), and one worker's rows of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prx import cache, prepare, recipe
from prx.cache import Rows
from prx.config import RouterConfig, RunConfig, TermConfig
from prx.interfaces import ImageTokenizer, LossTerm, PairContext, Route
from prx.order import Order
from prx.rng import normal, stream
from prx.sampling import PromptBatch
from prx.train_step import StepBatch, TrainStep


class Batches:
    """Assemble training batches from the caches."""

    def __init__(self, config: RunConfig, root: Path, step: TrainStep, rank: int = 0) -> None:
        caches = prepare.plan(config, root)
        self.config, self.module = config, step
        self.latents = prepare.read(root, caches.latents)
        self.texts = {column: prepare.read(root, jobs) for column, jobs in sorted(caches.texts.items())}
        self.targets = {name: prepare.read(root, jobs) for name, jobs in caches.targets.items()}
        self.stopped: dict[str, int] = {}
        """Terms that ended during the run, and the step from which on they are absent."""
        self.null = cache.read(root, caches.null.key)
        self.tokenizer: ImageTokenizer = (
            recipe.tokenizer(config.tokenizer, recipe.device_of(config)) if step.tokenizer is None else step.tokenizer
        )
        share = config.batch_size // config.infrastructure.workers
        self.rows = np.arange(rank * share, (rank + 1) * share)
        self.length = max(text.take("mask", np.array([0])).shape[1] for text in (*self.texts.values(), self.null))
        sizes = [job.num for job in caches.latents]
        self._order = Order(config.data, sizes, seed=config.seed, batch_size=config.batch_size)

    def order(self, step: int) -> np.ndarray:
        """Give the data rows of a step, [G]: every epoch a new permutation, cut into batches."""
        return self._order.rows(step)

    def batch(self, step: int) -> StepBatch:
        """Assemble this worker's rows of the batch that takes the run from `step` to `step` + 1."""
        return self._assemble(step, self.weights(step))

    def probe(self, number: int, name: str, t: float, step: int) -> StepBatch:
        """Assemble batch `number` once more for one term alone: all samples at time `t`, routed as at `step`."""
        return self._assemble(number, {name: 1.0}, torch.full((self.config.batch_size,), t), step)

    def _assemble(
        self, step: int, weights: Mapping[str, float], t: Tensor | None = None, now: int | None = None
    ) -> StepBatch:
        """Draw what belongs to a step; `t` and `now` stand in for its times and for how far the run is."""
        seed, total = self.config.seed, self.config.batch_size
        order = self.order(step)
        choice, dropped = self._captions(step)
        pairs = self._pairs(step, order, choice, dropped, weights)
        noise = normal(stream(seed, "noise", step), total, *self.latent_shape())
        wanted = np.arange(total) if pairs else self.rows
        clean = torch.full((total, *self.latent_shape()), float("nan"))
        if self.module.tokenizer is None:
            clean[wanted] = self._clean(step, order, wanted)
        if t is None:
            t = self.module.objective.timesteps(total, stream(seed, "timestep", step))
        text, mask = self._text(order, choice, dropped)
        rows = torch.from_numpy(self.rows)
        route = self._route(step, step if now is None else now)
        objective = self.module.objective
        velocity = objective.target(objective.sample(clean, noise, t)) if pairs else clean
        return StepBatch(
            clean[rows], noise[rows], t[rows], text, mask,
            targets=self._taught("tokens", order, weights), attention=self._taught("attention", order, weights),
            partners={name: velocity[index[self.rows]] for name, index in pairs.items()},
            kept=None if route is None else route.kept[rows],
            skipped=None if route is None or route.skipped is None else route.skipped[rows],
            unconditional=torch.from_numpy(dropped[self.rows]), weights=weights, **self._pictures(step, order, choice),
        )  # fmt: skip

    def _pictures(self, step: int, order: np.ndarray, choice: np.ndarray) -> dict[str, Any]:
        """Read what a trained tokenizer makes latents from, and the captions that its own pass sees."""
        if self.module.tokenizer is None:
            return {}
        images, posterior = self.latents.take("images", order[self.rows]), self._posterior(step, len(order))
        text, mask = self._text(order, choice, np.zeros(len(order), dtype=bool))
        return {"images": images, "posterior": posterior[self.rows], "captions": {"text": text, "mask": mask}}

    def weights(self, step: int) -> dict[str, float]:
        """Give the weights of the terms that act at a step."""
        found = {}
        for name, part in self.config.losses.items():
            assert isinstance(part, TermConfig)
            weight = part.weight_at(step, self.config.steps)
            if weight and step < self.stopped.get(name, step + 1):
                found[name] = weight
        return found

    def _taught(self, column: str, order: np.ndarray, weights: Mapping[str, float]) -> dict[str, Tensor]:
        """Read what teachers say of the images, for the terms that still listen."""
        found = {name: data for name, data in self.targets.items() if name in weights and data.has(column)}
        return {name: data.take(column, order[self.rows]) for name, data in found.items()}

    def latent_shape(self) -> tuple[int, ...]:
        """Give (C, H, W)."""
        size = self.config.data.image_size // self.tokenizer.downsample
        return (self.tokenizer.channels, size, size)

    def mean_clean(self, most: int = 8_192, chunk: int = 256) -> Tensor:
        """Average the modes of cached latents as training weighs them, [C, H, W].

        Of each set `most` of the rows that are trained on, evenly spaced, or all.
        """
        total = torch.zeros(self.latent_shape(), dtype=torch.float64)
        for start, rows, share in zip(self._order.starts, self._order.chosen, self._order.shares, strict=True):
            num = min(len(rows), most)
            rows = start + rows[np.arange(num) * len(rows) // num]
            for part in np.split(rows, range(chunk, num, chunk)):
                latents = self.tokenizer.latent(self.latents.take("moments", part), None)
                total += share / num * latents.double().sum(0)
        return total.float()

    def _clean(self, step: int, order: np.ndarray, rows: np.ndarray) -> Tensor:
        noise = self._posterior(step, len(order))
        return self.tokenizer.latent(self.latents.take("moments", order[rows]), noise[rows])

    def _posterior(self, step: int, num: int) -> Tensor:
        return normal(stream(self.config.seed, "posterior", step), num, *self.latent_shape())

    def _pairs(
        self, step: int, order: np.ndarray, choice: np.ndarray, dropped: np.ndarray, weights: Mapping[str, float]
    ) -> dict[str, Tensor]:
        found = {}
        for name, term in self.module.losses.items():
            assert isinstance(term, LossTerm)
            if name not in weights or type(term).pair is LossTerm.pair:
                continue
            context = PairContext(self._prompts(order, choice), dropped)
            index = term.pair(context, stream(self.config.seed, f"losses/{name}", step))
            if index is not None:
                found[name] = torch.from_numpy(index)
        return found

    def _prompts(self, order: np.ndarray, choice: np.ndarray) -> np.ndarray:
        """Give a number for every caption of the global batch, equal where captions are equal: int64 [G]."""
        found = np.empty(len(order), dtype=np.int64)
        for number, data in enumerate(self.texts.values()):
            chosen = choice == number
            found[chosen] = data.take("caption", order[chosen]).numpy()
        return found

    def _route(self, step: int, now: int) -> Route | None:
        if self.module.router is None:
            return None
        assert isinstance(self.config.routing, RouterConfig)
        router, rng = self.module.router, stream(self.config.seed, "routing", step)
        choose = router.draw if self.config.routing.drops_at(now) else router.draw_dense
        return choose(self.config.batch_size, self.module.grid, rng)

    def _captions(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw for the global batch which caption is read, [G], and whether it is dropped, bool [G]."""
        seed, total = self.config.seed, self.config.batch_size
        shares = np.array([self.config.data.captions[column] for column in self.texts], dtype=np.float64)
        bounds = np.cumsum(shares) / shares.sum()
        choice = np.searchsorted(bounds, stream(seed, "caption", step).random(total), side="right")
        dropped = stream(seed, "caption_dropout", step).random(total) < self.config.text.caption_dropout
        return choice.clip(max=len(shares) - 1), dropped

    def _text(self, order: np.ndarray, choice: np.ndarray, dropped: np.ndarray) -> tuple[Tensor, Tensor]:
        """Read this worker's captions; dropped ones are the encoded empty string."""
        text = self.null_rows(len(self.rows))
        for number, data in enumerate(self.texts.values()):
            chosen = (choice[self.rows] == number) & ~dropped[self.rows]
            found = read_text(data, order[self.rows][chosen], self.length)
            mask = torch.from_numpy(chosen)
            text[0][mask], text[1][mask] = found
        return text

    def null_rows(self, num: int, length: int | None = None) -> tuple[Tensor, Tensor]:
        """Repeat the empty caption: embeddings [num, L, E], mask [num, L]."""
        text, mask = read_text(self.null, np.zeros(1, dtype=np.int64), length or self.length)
        return text.repeat(num, 1, 1), mask.repeat(num, 1)


def read_text(data: Rows, index: np.ndarray, length: int) -> tuple[Tensor, Tensor]:
    """Read embeddings [B, L, E] and mask [B, L], padded on the right to `length` tokens."""
    text, mask = data.take("embeddings", index), data.take("mask", index).bool()
    missing = max(0, length - mask.shape[1])
    return torch.nn.functional.pad(text, (0, 0, 0, missing)), torch.nn.functional.pad(mask, (0, missing))


def seed_normalisation(module: TrainStep, config: RunConfig, root: Path) -> None:
    """Let a tokenizer that is trained begin with the latent statistics measured on the training sets."""
    if module.tokenizer is None:
        return
    measured = prepare.read(root, prepare.plan(config, root).statistics)
    mean, square = measured.take("channels", np.arange(measured.num)).mean(0)
    module.tokenizer.start_from(mean, square - mean.square())


class Prompts:
    """Evaluation prompts and their noise: the same for every trial with the same latent shape."""

    NOISE_SEED = 42

    def __init__(self, config: RunConfig, root: Path, batches: Batches, tokenizer: ImageTokenizer) -> None:
        self.config, self.batches, self.tokenizer = config, batches, tokenizer
        self.text = cache.read(root, prepare.plan(config, root).prompts.key)

    def chunk(self, start: int, stop: int) -> PromptBatch:
        """Give prompts `start`..`stop`; noise is drawn by prompt, not by batch."""
        rows = np.arange(start, stop)
        length = max(self.text.take("mask", np.array([0])).shape[1], self.batches.length)
        text, mask = read_text(self.text, rows, length)
        null_text, null_mask = self.batches.null_rows(len(rows), length)
        shape = self.batches.latent_shape()
        noise = torch.cat([normal(stream(self.NOISE_SEED, "evaluation", i), 1, *shape) for i in rows.tolist()])
        return PromptBatch(torch.from_numpy(rows), text, mask, null_text, null_mask, noise)
