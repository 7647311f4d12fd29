"""What tests of routers share: small modules with a router, their inputs, and what went through the blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from prx import registry
from prx.interfaces import LossTerm, Route, RunShape, TokenRouter
from prx.techniques.velocity import Velocity
from prx.train_step import StepBatch, TrainStep
from tests.helpers import random_denoiser, randomise

SIDE, PATCH, DEPTH, WIDTH, TEXT = 8, 2, 4, 32, 8
GRID, TOKENS = (4, 4), 16
SHAPE = RunShape(channels=3, latent_size=SIDE, depth=DEPTH, grid=GRID, width=WIDTH)


def router_of(use: str, **settings: object) -> TokenRouter:
    """Build a router for the small denoiser, as `recipe` does."""
    technique = registry.resolve("routing", use)
    torch.manual_seed(0)
    return technique(technique.Config(use=use, **settings), SHAPE)


def module_of(router: TokenRouter | None, losses: dict[str, LossTerm] | None = None) -> TrainStep:
    """Build a module in whose denoiser and terms nothing is zero; the router stays as it is."""
    for term in (losses or {}).values():
        randomise(term)
    flow = Velocity(Velocity.Config(use="velocity"))
    return TrainStep(random_denoiser(DEPTH, PATCH), flow, losses or {}, router, grid=GRID)


def inputs_of(num: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw noised latents, times, text and mask."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(num, 5, dtype=torch.bool)
    mask[0, 3:] = False
    return (
        torch.randn(num, 3, SIDE, SIDE, generator=generator), torch.rand(num, generator=generator),
        torch.randn(num, 5, TEXT, generator=generator), mask,
    )  # fmt: skip


def batch_of(route: Route | None, num: int = 3, **more: dict[str, Tensor]) -> StepBatch:
    """Make a training batch that goes through `route`."""
    clean, t, text, mask = inputs_of(num)
    kept, skipped = (None, None) if route is None else (route.kept, route.skipped)
    return StepBatch(clean, clean.flip(0) * 1.3, t, text, mask, kept=kept, skipped=skipped, **more)


def dropped(route: Route) -> Tensor:
    """Mark the positions that a route drops, bool [B, N]."""
    return torch.ones(len(route.kept), TOKENS, dtype=torch.bool).scatter(1, route.kept, False)


@contextmanager
def merges(router: TokenRouter) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """Note (kept, full, merged) of every merge."""
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    merge = router.merge

    def watched(kept: Tensor, full: Tensor, route: Route | None) -> Tensor:
        found.append((kept, full, merge(kept, full, route)))
        return found[-1][2]

    router.merge = watched
    try:
        yield found
    finally:
        del router.merge


@contextmanager
def traffic(module: TrainStep) -> Iterator[list[tuple[int, int, int]]]:
    """Note (block, images, tokens) of every block that runs."""
    found: list[tuple[int, int, int]] = []
    handles = [
        block.register_forward_pre_hook(lambda _, args, n=number: found.append((n, *args[0].shape[:2])))
        for number, block in enumerate(module.denoiser.blocks)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
