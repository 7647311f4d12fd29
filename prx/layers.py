"""Small trainable pieces that several techniques build from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def projector(width: int, hidden: int, out: int) -> nn.Sequential:
    """Build REPA's map from the denoiser's width to a teacher's: three linear layers, SiLU between them."""
    return nn.Sequential(
        nn.Linear(width, hidden), nn.SiLU(),
        nn.Linear(hidden, hidden), nn.SiLU(),
        nn.Linear(hidden, out),
    )  # fmt: skip


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Keep gradients from parameters, not from what flows through them, in all that is computed meanwhile."""
    held = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)
