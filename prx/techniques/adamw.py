"""AdamW with the article's settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from prx.config import PartConfig, PositiveFloat
from prx.interfaces import LogUniform, OptimizerFactory

Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamW(OptimizerFactory):
    """Adam with decoupled weight decay.

    Source: Loshchilov and Hutter 2017 (arXiv:1711.05101); defaults are the article's.
    """

    SOURCE = "Loshchilov and Hutter 2017, arXiv:1711.05101"
    SEARCH = {"lr": LogUniform(1e-5, 1e-2)}

    class Config(PartConfig):
        """Settings of AdamW.

        Args:
            lr: Learning rate after warm-up.
            betas: Decay of the running means of gradients and of their squares.
            eps: Added to the root of the mean square.
            weight_decay: Decoupled weight decay.
        """

        lr: PositiveFloat = 1e-4
        betas: Annotated[list[Beta], Field(min_length=2, max_length=2)] = [0.9, 0.95]
        eps: PositiveFloat = 1e-15
        weight_decay: Annotated[float, Field(ge=0)] = 0.0

    def __init__(self, config: Config) -> None:
        self.config = config

    def build(self, named_parameters: Iterator[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Put every parameter in one group."""
        c = self.config
        parameters = [parameter for _, parameter in named_parameters]
        return torch.optim.AdamW(
            parameters, lr=c.lr, betas=(c.betas[0], c.betas[1]), eps=c.eps, weight_decay=c.weight_decay
        )
