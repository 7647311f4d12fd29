"""Small trainable pieces that several techniques build from."""

from __future__ import annotations

from torch import nn


def projector(width: int, hidden: int, out: int) -> nn.Sequential:
    """Build REPA's map from the denoiser's width to a teacher's: three linear layers, SiLU between them."""
    return nn.Sequential(
        nn.Linear(width, hidden), nn.SiLU(),
        nn.Linear(hidden, hidden), nn.SiLU(),
        nn.Linear(hidden, out),
    )  # fmt: skip
