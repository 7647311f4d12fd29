"""Let part of the tokens jump over the middle blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from prx.config import RouterConfig
from prx.interfaces import Choice, Route, RunShape, TokenRouter
from prx.rng import subsets


class Tread(TokenRouter):
    """Routed tokens leave the last routed block as they entered the first; nothing else changes.

    Every image keeps K tokens of its own choice, at their own positions and with all of the text; without a
    route all tokens run. It has no parameters.
    Source: Krause et al. 2025 (arXiv:2501.04765). Their K is N - floor(r N); ours rounds, as PRX's.
    """

    SOURCE = "Krause et al. 2025, arXiv:2501.04765"
    SEARCH = {"drop_rate": Choice((0.25, 0.5, 0.75))}
    PROVIDES = frozenset({"guidance:routing"})
    REQUIRES = ("a denoiser of at least 2 blocks and 2 tokens",)

    class Config(RouterConfig):
        """Settings of the route; the drop rate is above 0, because off means absent."""

    @classmethod
    def span(cls, config: Any, shape: RunShape) -> tuple[int, int]:
        """Give the first and the last routed block."""
        return config.span(shape.depth)

    @classmethod
    def problems(cls, config: Any, shape: RunShape) -> list[tuple[str, str]]:
        """Refuse blocks that are not there and grids too small to drop from."""
        return config.misfits(shape.depth, shape.num_tokens)

    def draw(self, num: int, grid: tuple[int, int], rng: np.random.Generator) -> Route:
        """Keep K tokens of each image, uniformly."""
        total = grid[0] * grid[1]
        return Route(subsets(rng, num, total, self.config.num_kept(total)))

    def merge(self, kept: Tensor, full: Tensor, route: Route | None) -> Tensor:
        """Put kept tokens [B, K, D] back into `full` [B, N, D]; without a route they are all there."""
        if route is None:
            return kept
        return full.scatter(1, route.kept.unsqueeze(-1).expand_as(kept), kept)
