"""Tell when a term has begun to work against the objective: the cosine between their gradients.

Source: the gradient-based stop of HASTE, Wang et al. 2025 (arXiv:2505.16792). Gradients are summed over all
images before the cosine is taken, so that it depends neither on micro-batches nor on the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from prx.config import ConflictStop
from prx.train_step import StepBatch, TrainStep


def agreement(
    module: TrainStep, name: str, stop: ConflictStop, batches: Callable[[float], Iterable[StepBatch]]
) -> float | None:
    """Average over `stop.times` the cosine between a term's gradient and the objective's on one block.

    `batches` gives this worker's micro-batches, all at one time. None where a gradient is zero: a fresh
    denoiser's output, and so its blocks' gradient, is.
    """
    found = [cosine(*gradients(module, name, stop.block, batches(t))) for t in stop.times]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if len(known) == len(found) else None


def gradients(module: TrainStep, name: str, block: int, batches: Iterable[StepBatch]) -> tuple[Tensor, Tensor]:
    """Sum the gradients of a term and of the objective over micro-batches and workers.

    Shapes: each [P], all parameters of the block in one row. Nothing is left in the parameters' `grad`.
    """
    parameters = [p for p in module.denoiser.blocks[block].parameters() if p.requires_grad]
    sums = torch.zeros(2, sum(p.numel() for p in parameters), device=parameters[0].device)
    for batch in batches:
        for row, value in enumerate(module.term_and_objective(batch, name)):
            parts = torch.autograd.grad(value, parameters, retain_graph=row == 0, materialize_grads=True)
            sums[row] += torch.cat([part.flatten().float() for part in parts])
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(sums)
    return sums[0], sums[1]


def cosine(first: Tensor, second: Tensor) -> float | None:
    """Give the cosine between two vectors [P]; None where one is zero, or not finite."""
    length = first.double().norm() * second.double().norm()
    if not torch.isfinite(length) or not length:
        return None
    return float(first.double() @ second.double() / length)
