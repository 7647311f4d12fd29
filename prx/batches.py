"""The global batch of a step, as a function of (seed, step), and one worker's rows of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prx import cache, prepare, recipe
from prx.cache import Encoded
from prx.config import RunConfig
from prx.interfaces import ImageTokenizer, LossTerm
from prx.rng import normal, stream
from prx.train_step import StepBatch, TrainStep


class Batches:
    """Assemble training batches from the caches."""

    def __init__(self, config: RunConfig, root: Path, step: TrainStep, rank: int = 0) -> None:
        caches = prepare.plan(config, root)
        self.config, self.module = config, step
        self.latents = cache.read(root, caches.latents.key)
        self.texts = {column: cache.read(root, job.key) for column, job in caches.texts.items()}
        self.targets = {name: cache.read(root, job.key) for name, job in caches.targets.items()}
        self.null = cache.read(root, caches.null.key)
        self.tokenizer = recipe.tokenizer(config.tokenizer, recipe.device_of(config))
        share = config.batch_size // config.infrastructure.workers
        self.rows = np.arange(rank * share, (rank + 1) * share)
        self.length = max(text.take("mask", np.array([0])).shape[1] for text in (*self.texts.values(), self.null))
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def order(self, step: int) -> np.ndarray:
        """Give the data rows of a step, [G]: every epoch a new permutation, cut into batches."""
        positions = step * self.config.batch_size + np.arange(self.config.batch_size)
        epochs, rows = np.divmod(positions, self.latents.num)
        return np.concatenate([self._permutation(int(e))[rows[epochs == e]] for e in np.unique(epochs)])

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            order = stream(self.config.seed, "order", epoch).permutation(self.latents.num)
            self._order = (epoch, order)
        return self._order[1]

    def batch(self, step: int) -> StepBatch:
        """Assemble this worker's rows of the batch that takes the run from `step` to `step` + 1."""
        seed, total = self.config.seed, self.config.batch_size
        order = self.order(step)
        pairs = self._pairs(step)
        noise = normal(stream(seed, "noise", step), total, *self._latent_shape())
        wanted = np.arange(total) if pairs else self.rows
        clean = torch.empty(total, *self._latent_shape())
        clean[wanted] = self._clean(step, order, wanted)
        t = self.module.objective.timesteps(total, stream(seed, "timestep", step))
        text, mask = self._text(step, order)
        rows = torch.from_numpy(self.rows)
        return StepBatch(
            clean[rows], noise[rows], t[rows], text, mask,
            targets={name: data.take("tokens", order[self.rows]) for name, data in self.targets.items()},
            partners={name: (noise - clean)[index[self.rows]] for name, index in pairs.items()},
            kept=self._kept(step),
        )  # fmt: skip

    def _latent_shape(self) -> tuple[int, ...]:
        size = self.config.data.image_size // self.tokenizer.downsample
        return (self.tokenizer.channels, size, size)

    def _clean(self, step: int, order: np.ndarray, rows: np.ndarray) -> Tensor:
        noise = normal(stream(self.config.seed, "posterior", step), len(order), *self._latent_shape())
        return self.tokenizer.latent(self.latents.take("moments", order[rows]), noise[rows])

    def _pairs(self, step: int) -> dict[str, Tensor]:
        found = {}
        for name, term in self.module.losses.items():
            assert isinstance(term, LossTerm)
            index = term.pair(self.config.batch_size, stream(self.config.seed, f"losses/{name}", step))
            if index is not None:
                found[name] = torch.from_numpy(index)
        return found

    def _kept(self, step: int) -> Tensor | None:
        if self.module.router is None:
            return None
        rng = stream(self.config.seed, "routing", step)
        grid = self.module.grid
        return self.module.router.select(self.config.batch_size, grid[0] * grid[1], rng)[self.rows]

    def _text(self, step: int, order: np.ndarray) -> tuple[Tensor, Tensor]:
        """Draw a caption for every row, then replace dropped ones by the encoded empty string."""
        seed, total = self.config.seed, self.config.batch_size
        columns, weights = zip(*sorted(self.config.data.captions.items()), strict=True)
        shares = np.cumsum(weights) / np.sum(weights)
        choice = np.searchsorted(shares, stream(seed, "caption", step).random(total), side="right")[self.rows]
        choice = choice.clip(max=len(columns) - 1)
        dropped = stream(seed, "caption_dropout", step).random(total)[self.rows] < self.config.text.caption_dropout
        text = self.null_rows(len(self.rows))
        for number, column in enumerate(columns):
            chosen = torch.from_numpy((choice == number) & ~dropped)
            found = read_text(self.texts[column], order[self.rows][chosen.numpy()], self.length)
            text[0][chosen], text[1][chosen] = found
        return text

    def null_rows(self, num: int) -> tuple[Tensor, Tensor]:
        """Repeat the empty caption: embeddings [num, L, E], mask [num, L]."""
        text, mask = read_text(self.null, np.zeros(1, dtype=np.int64), self.length)
        return text.repeat(num, 1, 1), mask.repeat(num, 1)


def read_text(data: Encoded, index: np.ndarray, length: int) -> tuple[Tensor, Tensor]:
    """Read embeddings [B, L, E] and mask [B, L], padded on the right to `length` tokens."""
    text, mask = data.take("embeddings", index), data.take("mask", index).bool()
    missing = max(0, length - mask.shape[1])
    return torch.nn.functional.pad(text, (0, 0, 0, missing)), torch.nn.functional.pad(mask, (0, missing))


class Prompts:
    """Evaluation prompts and their noise: the same for every trial with the same latent shape."""

    NOISE_SEED = 42

    def __init__(self, config: RunConfig, root: Path, batches: Batches, tokenizer: ImageTokenizer) -> None:
        self.config, self.batches, self.tokenizer = config, batches, tokenizer
        self.text = cache.read(root, prepare.plan(config, root).prompts.key)

    def chunk(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """Give text, mask and noise of prompts `start`..`stop`; noise is drawn by prompt, not by batch."""
        length = self.text.take("mask", np.array([0])).shape[1]
        text, mask = read_text(self.text, np.arange(start, stop), max(length, self.batches.length))
        shape = self.batches._latent_shape()
        noise = torch.cat([normal(stream(self.NOISE_SEED, "evaluation", i), 1, *shape) for i in range(start, stop)])
        return text, mask, noise
