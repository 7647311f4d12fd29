"""Batch norm without weights between a trained tokenizer and the denoiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

EPS, MOMENTUM = 1e-4, 0.1


class LatentNorm(nn.Module):
    """Centre and scale every channel of a latent: (z - mean) / sqrt(var + eps).

    As torch's `BatchNorm2d` without weights, but one step may use it in both ways: `forward` reads the
    running statistics and is differentiable; `batch` uses the batch's own, those of all workers, is not, and
    moves the running ones. These stay float32 whatever the run stores: moving by a tenth, bfloat16 would stop
    short of where they tend to.
    Source: REPA-E, Leng et al. 2025 (arXiv:2504.10483): eps 1e-4, momentum 0.1.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> LatentNorm:
        """Move to a device with the rest of a model, and keep the values."""
        held = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, value in held.items():
            moved = self._buffers[name]
            assert value is not None
            assert moved is not None
            self._buffers[name] = value.to(moved.device)
        return self

    @property
    def std(self) -> Tensor:
        """Give what `forward` divides by, [C, 1, 1]."""
        return (self.running_var + EPS).sqrt().view(-1, 1, 1)

    def forward(self, latents: Tensor) -> Tensor:
        """Normalise [B, C, H, W] by the running statistics; float32."""
        return (latents.float() - self.running_mean.view(-1, 1, 1)) / self.std

    def inverse(self, normalised: Tensor) -> Tensor:
        """Undo `forward`."""
        return normalised.float() * self.std + self.running_mean.view(-1, 1, 1)

    @torch.no_grad()
    def batch(self, latents: Tensor) -> Tensor:
        """Normalise [B, C, H, W] by this batch's statistics, and let the running ones follow them."""
        values = latents.float()
        workers = dist.get_world_size() if dist.is_initialized() else 1
        num = workers * values[:, 0].numel()
        mean = _over_workers(values.mean(dim=(0, 2, 3)), workers)
        centred = values - mean.view(-1, 1, 1)
        var = _over_workers(centred.square().mean(dim=(0, 2, 3)), workers)
        self._follow(mean, var * (num / max(1, num - 1)))
        return centred / (var + EPS).sqrt().view(-1, 1, 1)

    def _follow(self, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics, unless a latent is not finite: no step will be taken then."""
        finite = torch.isfinite(mean + var).all()
        for running, seen in ((self.running_mean, mean), (self.running_var, var)):
            running.copy_(torch.where(finite, running.lerp(seen, MOMENTUM), running))

    @torch.no_grad()
    def start_from(self, mean: Tensor, var: Tensor) -> None:
        """Begin with measured statistics, [C] each, in place of 0 and 1."""
        self.running_mean.copy_(mean)
        self.running_var.copy_(var)


def _over_workers(values: Tensor, workers: int) -> Tensor:
    """Average over workers, whose shares of a batch are equal."""
    if workers > 1:
        dist.all_reduce(values)
        values = values / workers
    return values
