"""Run the middle blocks on a quarter of the tokens and fuse them with those that went around."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from prx.config import RouterConfig
from prx.interfaces import Choice, Route, RunShape, TokenRouter
from prx.rng import subsets

STRUCTURED = 0.75


class Sprint(TokenRouter):
    """Dense blocks, sparse blocks on kept tokens, a linear fusion of both, dense blocks.

    The fusion reads (shallow, deep) at every position; the mask token stands for deep features that were
    dropped, and for all of them where a sample skips the deep path. It acts without a route as well.
    Source: Park et al. 2025 (arXiv:2510.21986). Blocks follow PRX's proportions; the fusion starts as the mean
    of its inputs (or as the deep one), where both sources start it at random and break the residual stream.
    """

    SOURCE = "Park et al. 2025, arXiv:2510.21986"
    SEARCH = {"selection": Choice(("structured", "random")), "path_drop": Choice((0.0, 0.1))}
    PROVIDES = frozenset({"guidance:routing", "guidance:path_drop"})
    REQUIRES = ("a denoiser of at least 2 blocks and 2 tokens", "an even grid, where selection is structured")

    class Config(RouterConfig):
        """Settings of the sparse path.

        Args:
            selection: `structured` keeps one token of every 2x2 cell, each at random; `random` keeps any.
            mask_token: `learned` starts at zero, as in PRX; `fixed` is normal with deviation 0.02 and never trained,
                as in the paper's code.
            path_drop: Share of samples that train without the deep path, in the dense stage too: what path-drop
                guidance samples from.
            fuse_init: Where the fusion starts: at the mean of shallow and deep features, or at the deep.
        """

        drop_rate: Annotated[float, Field(gt=0, lt=1)] = STRUCTURED
        selection: Literal["structured", "random"] = "structured"
        mask_token: Literal["learned", "fixed"] = "learned"
        path_drop: Annotated[float, Field(ge=0, lt=1)] = 0.1
        fuse_init: Literal["average", "deep"] = "average"

    def __init__(self, config: Config, shape: RunShape) -> None:
        super().__init__(config, shape)
        self.mask = Mask(shape.width, learned=config.mask_token == "learned")
        self.fuse = nn.Linear(2 * shape.width, shape.width)
        shallow = 0.5 if config.fuse_init == "average" else 0.0
        unit = torch.eye(shape.width)
        with torch.no_grad():
            self.fuse.weight.copy_(torch.cat([shallow * unit, (1 - shallow) * unit], dim=1))
            self.fuse.bias.zero_()

    @classmethod
    def span(cls, config: Any, shape: RunShape) -> tuple[int, int]:
        """Give the first and the last sparse block."""
        return config.span(shape.depth)

    @classmethod
    def problems(cls, config: Any, shape: RunShape) -> list[tuple[str, str]]:
        """Refuse blocks that are not there, and cells that the grid or the drop rate does not allow."""
        found = config.misfits(shape.depth, shape.num_tokens)
        if config.selection == "random":
            return found
        if config.drop_rate != STRUCTURED:
            found.append(("drop_rate", f"must be {STRUCTURED} with selection structured (one token of every 2x2 cell), "
                          f"got {config.drop_rate}; selection random takes any"))  # fmt: skip
        if shape.grid[0] % 2 or shape.grid[1] % 2:
            rows, columns = shape.grid
            found.append(("selection", f"must be random on an odd grid ({rows}x{columns} tokens), got 'structured'"))
        return found

    def draw(self, num: int, grid: tuple[int, int], rng: np.random.Generator) -> Route:
        """Keep tokens of each image, and choose the samples that skip the deep path."""
        total = grid[0] * grid[1]
        structured = self.config.selection == "structured"
        kept = one_per_cell(rng, num, grid) if structured else subsets(rng, num, total, self.config.num_kept(total))
        return Route(kept, self._skipped(num, rng))

    def draw_dense(self, num: int, grid: tuple[int, int], rng: np.random.Generator) -> Route:
        """Keep every token; samples go on skipping the deep path, as in the paper's fine-tuning.

        A route even where nobody skips: the mask token then has a gradient of zero rather than none, which the
        optimizer's momentum would treat differently at ZeRO 0 than at other stages.
        """
        return Route(torch.arange(grid[0] * grid[1]).repeat(num, 1), self._skipped(num, rng))

    def _skipped(self, num: int, rng: np.random.Generator) -> Tensor | None:
        return torch.from_numpy(rng.random(num) < self.config.path_drop) if self.config.path_drop else None

    def merge(self, kept: Tensor, full: Tensor, route: Route | None) -> Tensor:
        """Fuse tokens from before the sparse blocks, `full` [B, N, D], with those from behind them."""
        deep = kept if route is None else self._restored(kept, full.shape[1], route)
        return self.fuse(torch.cat([full, deep], dim=-1))

    def _restored(self, kept: Tensor, num_tokens: int, route: Route) -> Tensor:
        """Pad kept tokens [B, K, D] with the mask token to [B, N, D]."""
        padding = self.mask(kept, num_tokens)
        deep = padding.scatter(1, route.kept.unsqueeze(-1).expand_as(kept), kept)
        return deep if route.skipped is None else torch.where(route.skipped.view(-1, 1, 1), padding, deep)


class Mask(nn.Module):
    """Stand in for missing features. A module of its own, so that ZeRO 3 gathers the token when it is read."""

    def __init__(self, width: int, *, learned: bool) -> None:
        super().__init__()
        if learned:
            self.token = nn.Parameter(torch.zeros(width))
        else:
            self.register_buffer("token", 0.02 * torch.randn(width))

    def forward(self, like: Tensor, num_tokens: int) -> Tensor:
        """Repeat the token: [B, N, D] for `like` [B, K, D]."""
        return self.token.to(like.dtype).expand(len(like), num_tokens, -1)


def one_per_cell(rng: np.random.Generator, num: int, grid: tuple[int, int]) -> Tensor:
    """Choose one token of every 2x2 cell, each cell by itself: sorted int64 [num, N / 4]."""
    rows, columns = np.meshgrid(np.arange(0, grid[0], 2), np.arange(0, grid[1], 2), indexing="ij")
    down, right = np.divmod(rng.integers(0, 4, (num, *rows.shape)), 2)
    index = (rows + down) * grid[1] + columns + right
    return torch.from_numpy(np.sort(index.reshape(num, -1), axis=1))
