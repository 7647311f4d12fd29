"""Muon for the matrices inside the blocks, AdamW for everything else."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from prx.config import PartConfig, PositiveFloat
from prx.interfaces import LogUniform, OptimizerFactory, RunShape

Beta = Annotated[float, Field(ge=0, lt=1)]
REST = "adamw"


class Muon(OptimizerFactory):
    """Momentum made orthogonal by five Newton-Schulz steps; DeepSpeed's implementation, so that ZeRO shards it.

    Source: Jordan et al. 2024 (github.com/KellerJordan/Muon); matched update sizes from Liu et al. 2025
    (arXiv:2502.16982). As in PRX, matrices named `blocks` take part, a fused qkv as one matrix; DeepSpeed
    itself would also take embeddings, the final layer and projectors. It adds 1e-7 to the norm that it divides
    by, so updates shrink where a matrix's gradient is below about 1e-5.
    """

    SOURCE = "Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982"
    SEARCH = {"lr": LogUniform(1e-5, 1e-2)}
    CONFLICTS = ("grad_clip with ZeRO 1..3",)

    class Config(PartConfig):
        """Settings of Muon.

        Args:
            lr: Learning rate of Muon's matrices after warm-up.
            momentum: Decay of their running mean of gradients.
            weight_decay: Decoupled weight decay of all parameters.
            scale: `rms_matched` gives updates the size of AdamW's, so that its `lr` carries over; `original` scales
                by sqrt(max(1, rows / columns)) and wants an `lr` near 0.02.
            adaln: Whether modulation matrices are Muon's.
            rest_lr: Learning rate of the parameters left to AdamW; `lr` unless told.
            betas: AdamW's, for those.
            eps: AdamW's, for those.
        """

        lr: PositiveFloat = 1e-4
        momentum: Beta = 0.95
        weight_decay: Annotated[float, Field(ge=0)] = 0.0
        scale: Literal["rms_matched", "original"] = "rms_matched"
        adaln: bool = True
        rest_lr: PositiveFloat | None = None
        betas: Annotated[list[Beta], Field(min_length=2, max_length=2)] = [0.9, 0.95]
        eps: PositiveFloat = 1e-8

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def problems(cls, config: Config, shape: RunShape) -> list[tuple[str, str]]:
        """Refuse clipping where DeepSpeed would clip the orthogonal updates instead of the gradients."""
        if shape.zero_stage and shape.grad_clip is not None:
            rule = "needs grad_clip null at infrastructure.zero_stage 1..3, where DeepSpeed clips Muon's updates"
            return [("use", f"{rule} by their joint norm; got grad_clip {shape.grad_clip}")]
        return []

    def groups(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, list[str]]:
        """List the names in every group: `muon COLUMNS` by input width, and `adamw`."""
        return {key: [name for name, _ in members] for key, members in self._split(named_parameters).items()}

    def zero_optimization(self, stage: int) -> dict[str, Any]:
        """Reduce whole gradients at stage 3: DeepSpeed's Muon refuses pieces of matrices there."""
        return {"reduce_scatter": False} if stage == 3 else {}

    def build(self, named_parameters: Iterator[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Build DeepSpeed's Muon over our groups, a learning rate per input width."""
        found = []
        for key, members in self._split(named_parameters).items():
            for _, parameter in members:
                parameter.use_muon = key != REST
            found.append({"params": [parameter for _, parameter in members], **self._settings(key)})
        return _optimizer_class()(found, adam_optimizer=torch.optim.AdamW)

    def _split(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, list[Any]]:
        groups: dict[str, list[Any]] = {}
        for name, parameter in named_parameters:
            key = f"muon {parameter.shape[1]}" if self._orthogonal(name, parameter) else REST
            groups.setdefault(key, []).append((name, parameter))
        return groups

    def _orthogonal(self, name: str, parameter: nn.Parameter) -> bool:
        parts = name.split(".")
        return parameter.ndim == 2 and "blocks" in parts and (self.config.adaln or "modulation" not in parts)

    def _settings(self, key: str) -> dict[str, Any]:
        """Give one group's settings. DeepSpeed knows the original scale only, so ours goes into the rate."""
        c = self.config
        if key == REST:
            lr = c.lr if c.rest_lr is None else c.rest_lr
            settings = {"lr": lr, "betas": (c.betas[0], c.betas[1]), "eps": c.eps, "weight_decay": c.weight_decay}
            return settings | {"use_muon": False}
        factor = 0.2 * int(key.split()[1]) ** 0.5 if c.scale == "rms_matched" else 1.0
        # DeepSpeed multiplies the decay by the group's rate; it must be lr * weight_decay at either scale.
        settings = {"lr": c.lr * factor, "momentum": c.momentum, "weight_decay": c.weight_decay / factor}
        return settings | {"use_muon": True}


def _optimizer_class() -> type[Any]:
    """Import DeepSpeed's Muon and take `torch.compile` off its kernels.

    Compiling needs a C++ compiler and about a minute for each process, and what it emits depends on which shapes
    came first: a resumed run would not repeat the uninterrupted one bit for bit.
    """
    from deepspeed.runtime.zero.muon import muon_optimizer, original_muon

    for module in (original_muon, muon_optimizer):
        for name in ("zeropower_via_newtonschulz5", "zeropower_via_gram_newtonschulz", "muon_update"):
            if hasattr(module, name):
                setattr(module, name, inspect.unwrap(getattr(module, name)))
    return muon_optimizer.MuonWithAuxAdam
