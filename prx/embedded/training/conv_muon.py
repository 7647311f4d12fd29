"""Orthogonalise the updates of convolutions, which torch's own Muon refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class ConvMuon(torch.optim.Optimizer):
    """Apply Muon to weights flattened to [out, in x kernel], with updates of AdamW's size.

    Source: Jordan et al. 2024 (Muon); Liu et al. 2025, arXiv:2502.16982 (its update scale). No weight decay.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float, momentum: float = 0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every weight along its orthogonalised Nesterov momentum."""
        if closure is not None:
            raise ValueError("ConvMuon takes no closure")
        for group in self.param_groups:
            for weight in group["params"]:
                self._move(weight, group)

    def _move(self, weight: nn.Parameter, group: dict[str, Any]) -> None:
        if weight.grad is None:
            return
        state = self.state[weight]
        average = state.setdefault("average", torch.zeros_like(weight))
        average.lerp_(weight.grad, 1 - group["momentum"])
        ahead = torch.lerp(weight.grad, average, group["momentum"]).flatten(1)
        scale = 0.2 * max(ahead.shape) ** 0.5
        weight.add_(orthogonalise(ahead).view_as(weight), alpha=-group["lr"] * scale)


def orthogonalise(matrix: Tensor) -> Tensor:
    """Push every singular value of a matrix towards one by Newton-Schulz iterations."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    wide = wide / (wide.norm() + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = wide @ wide.mT
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.mT
