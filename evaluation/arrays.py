"""Sets of embeddings as checked tensors: what every distance takes.

Shape letters: n samples, d embedding width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

CHUNK = 2048
Embeddings = Tensor | np.ndarray


def checked_pair(metric: str, x: Embeddings, y: Embeddings) -> tuple[Tensor, Tensor]:
    """Return both sets as tensors on one device, or say which rule they break."""
    x, y = _checked(metric, "x", x), _checked(metric, "y", y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{metric}: x and y must have equal widths, got {x.shape[1]} and {y.shape[1]}")
    return x, y.to(x.device)


def normalise(embeddings: Embeddings, name: str = "embeddings") -> Tensor:
    """Scale every row to unit length in float64.

    Shapes: [n, d] -> [n, d].
    Raises: ValueError for a row of zeros, which has no direction.
    """
    rows = as_tensor(embeddings).to(torch.float64, copy=True)
    return rows.div_(lengths(rows, name)[:, None])


def lengths(rows: Tensor, name: str) -> Tensor:
    """Give the length of every row in float64, a block at a time; raises as `normalise`."""
    found = torch.cat([block.double().norm(dim=1) for block in rows.split(CHUNK)])
    if bool((found == 0).any()):
        raise ValueError(f"{name} must not contain a row of zeros, got one at row {int(found.argmin())}")
    return found


def as_tensor(values: Embeddings) -> Tensor:
    """Take numpy or torch, without copying what need not be copied."""
    if isinstance(values, Tensor):
        return values.detach()
    array = np.asarray(values)
    plain = array.flags.writeable and min(array.strides, default=0) >= 0 and array.dtype.isnative
    return torch.from_numpy(array if plain else array.astype(array.dtype.newbyteorder("=")))


def _checked(metric: str, name: str, values: Embeddings) -> Tensor:
    rows = as_tensor(values)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(f"{metric}: {name} must have shape [samples, width], got {list(rows.shape)}")
    if len(rows) < 2:
        raise ValueError(f"{metric}: {name} must have at least 2 samples, got {len(rows)}")
    bad = sum(int((~torch.isfinite(block)).any(dim=1).sum()) for block in rows.split(CHUNK))
    if bad:
        raise ValueError(f"{metric}: {name} must be finite, got {bad} rows with NaN or infinity")
    return rows
