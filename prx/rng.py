"""Randomness as a function: every draw is named by (seed, component, step) and by nothing else.

Switching a technique on never shifts another component's draws, resuming needs no generator state,
and trials of one seed see the same images, noise and timesteps.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor


def stream(seed: int, component: str, step: int = 0) -> np.random.Generator:
    """Open the stream of one component at one step.

    Philox takes the whole 128-bit key; torch's CPU generator would keep 32 bits of it, few enough
    for two of a long run's streams to coincide.
    """
    digest = hashlib.blake2b(f"{seed}/{component}/{step}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def normal(rng: np.random.Generator, *shape: int) -> Tensor:
    """Draw standard normal float32 values."""
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def subsets(rng: np.random.Generator, num: int, total: int, size: int) -> Tensor:
    """Draw `num` uniform subsets of `size` out of 0..`total` - 1, each sorted: int64 [num, size]."""
    chosen = np.argpartition(rng.random((num, total)), size - 1, axis=1)[:, :size]
    return torch.from_numpy(np.sort(chosen, axis=1))


def torch_seed(seed: int, component: str) -> int:
    """Derive a seed for code that only takes torch's global generator, such as module construction."""
    return int(stream(seed, component).integers(0, 2**63 - 1))
