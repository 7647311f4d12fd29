"""Which rows of the training data a step reads: a function of (seed, step)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prx.config import DataConfig
from prx.data import subset_size
from prx.rng import stream

BLOCK = 1024
"""Steps whose sources are drawn together, so that a resumed run need not draw step by step what is past."""


class Order:
    """Rows of each step, numbered through all training sets in the order they are written.

    Every epoch of a set is a new permutation of it. With several sets, each sample first draws its set by
    weight; a set's epochs then pass at the pace of its own samples.
    """

    def __init__(self, data: DataConfig, sizes: Sequence[int], *, seed: int, batch_size: int) -> None:
        self.seed, self.batch_size = seed, batch_size
        self.names = [_name(path) for path in data.sources]
        self.starts = np.concatenate([[0], np.cumsum(sizes)])[:-1]
        self.chosen = [chosen(data, path, size) for path, size in zip(data.sources, sizes, strict=True)]
        weights = np.array([source.weight for source in data.sources.values()], dtype=np.float64)
        self.shares = weights / weights.sum()
        self._bounds = np.cumsum(weights) / weights.sum()
        self._blocks: dict[int, np.ndarray] = {}
        self._counts = np.zeros((1, len(sizes)), dtype=np.int64)
        self._permutations: dict[int, tuple[int, np.ndarray]] = {}

    def rows(self, step: int) -> np.ndarray:
        """Give the rows of a step: int64 [G]."""
        found = np.empty(self.batch_size, dtype=np.int64)
        sources = self.sources(step)
        for number in np.unique(sources).tolist():
            mine = sources == number
            first = self._seen(step, number)
            found[mine] = self.starts[number] + self._rows(number, first + np.arange(mine.sum()))
        return found

    def sources(self, step: int) -> np.ndarray:
        """Give the number of the set each sample of a step comes from: int64 [G]."""
        if len(self.names) == 1:
            return np.zeros(self.batch_size, dtype=np.int64)
        block, row = divmod(step, BLOCK)
        return self._block(block)[row]

    def _block(self, block: int) -> np.ndarray:
        if block not in self._blocks:
            uniform = stream(self.seed, "source", block).random((BLOCK, self.batch_size))
            last = len(self.names) - 1
            self._blocks = {block: np.searchsorted(self._bounds, uniform, side="right").clip(max=last)}
        return self._blocks[block]

    def _seen(self, step: int, number: int) -> int:
        """Count the samples that a set has given before a step."""
        if len(self.names) == 1:
            return step * self.batch_size
        block, row = divmod(step, BLOCK)
        while len(self._counts) <= block:
            counted = np.bincount(self._block(len(self._counts) - 1).ravel(), minlength=len(self.names))
            self._counts = np.concatenate([self._counts, self._counts[-1:] + counted])
        return int(self._counts[block, number] + (self._block(block)[:row] == number).sum())

    def _rows(self, number: int, positions: np.ndarray) -> np.ndarray:
        """Give a set's rows at positions of its endless sequence of epochs."""
        epochs, places = np.divmod(positions, len(self.chosen[number]))
        parts = [self._permutation(number, int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
        return self.chosen[number][np.concatenate(parts)]

    def _permutation(self, number: int, epoch: int) -> np.ndarray:
        held = self._permutations.get(number)
        if held is None or held[0] != epoch:
            component = "order" if not self.names[number] else f"order/{self.names[number]}"
            held = (epoch, stream(self.seed, component, epoch).permutation(len(self.chosen[number])))
            self._permutations[number] = held
        return held[1]


def chosen(data: DataConfig, path: str, size: int) -> np.ndarray:
    """Give the rows of a set that are trained on, sorted: all of them without a subset."""
    if data.subset is None:
        return np.arange(size)
    component = f"subset/{_name(path)}"
    drawn = stream(data.subset.seed, component).permutation(size)[: subset_size(data, path, size)]
    return np.sort(drawn)


def _name(path: str) -> str:
    """Name a set by its key under `data.mixture`; the only one has no name."""
    return path.removeprefix("data.mixture.").removesuffix(".train") if path != "data.train" else ""
