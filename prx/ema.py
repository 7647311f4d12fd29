"""Exponential moving average of the weights, in float32, whatever the run stores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from prx.config import EmaConfig


class Ema:
    """Average of every trained parameter and persistent buffer of a module.

    The average begins as the weights of step `start`, and moves every `every` steps after it; until then the
    weights themselves stand for it. It is not debiased: after m updates the first weights still count
    decay ** m, so a short run wants a late `start`, a smaller `decay` or a smaller `every`.
    """

    def __init__(self, config: EmaConfig, module: nn.Module) -> None:
        self.config = config
        tensors = module.state_dict(keep_vars=True)
        self._held = {name: t for name, t in tensors.items() if t.requires_grad or not isinstance(t, nn.Parameter)}
        self._average: dict[str, Tensor] = {}
        if config.start == 0:
            self._begin()

    def _begin(self) -> None:
        self._average = {
            name: tensor.detach().to(torch.float32, copy=True) if tensor.is_floating_point() else tensor.clone()
            for name, tensor in self._held.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` updates, if it is a step to do so."""
        if step == self.config.start:
            self._begin()
        elif step > self.config.start and (step - self.config.start) % self.config.every == 0:
            self._move()

    def _move(self) -> None:
        floats = [name for name, average in self._average.items() if average.is_floating_point()]
        weights = [self._held[name].detach().float() for name in floats]
        torch._foreach_lerp_([self._average[name] for name in floats], weights, 1 - self.config.decay)
        for name in self._average.keys() - set(floats):  # such as a counter: there is nothing between two values
            self._average[name].copy_(self._held[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Lend the average to the module. Only pointers move: the weights themselves are not touched."""
        weights = {name: self._held[name].data for name in self._average}
        for name, average in self._average.items():
            self._held[name].data = average
        try:
            yield
        finally:
            for name, tensor in weights.items():
                self._held[name].data = tensor

    def state(self) -> dict[str, Tensor]:
        """Give what a checkpoint keeps; empty before `start`."""
        return dict(self._average)

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take what a checkpoint kept.

        Raises:
            ValueError: The checkpoint averaged other tensors.
        """
        if state and state.keys() != self._held.keys():
            other = ", ".join(sorted(state.keys() ^ self._held.keys()))
            raise ValueError(f"the checkpoint's average and the model differ in {other}")
        self._average = {name: tensor.to(self._held[name].device) for name, tensor in state.items()}
