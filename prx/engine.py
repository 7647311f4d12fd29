"""DeepSpeed around one `TrainStep`: sharding, precision, clipping, checkpoints, the finite guard."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from prx import recipe
from prx.config import RunConfig
from prx.errors import NonFiniteError
from prx.train_step import MAIN_TERM, StepBatch, TrainStep

TAG = "state"
STATE = "run"


def rank_and_world() -> tuple[int, int]:
    """Read this process's rank and the number of workers from the launcher's environment."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def join(device: torch.device) -> None:
    """Join the process group; a single process needs no port, so trials cannot collide on one."""
    if dist.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if rank_and_world()[1] == 1:
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    else:
        dist.init_process_group(backend)


def import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed, telling it the accelerator so that it need not guess and warn."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    # A kernel for inference that would be compiled on first use, with the user's C++ compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed


def deepspeed_config(config: RunConfig) -> dict[str, Any]:
    """Translate a run's configuration. Clipping is always explicit: DeepSpeed's default is 1.0, not off."""
    infra = config.infrastructure
    share = config.batch_size // infra.workers
    found: dict[str, Any] = {
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": share // config.micro_batch,
        "gradient_clipping": config.grad_clip or 0.0,
        "zero_optimization": {"stage": infra.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**12,
    }
    if config.precision in {"bf16_master", "bf16_pure"}:
        pure = config.precision == "bf16_pure"
        found["bf16"] = {
            "enabled": True, "bf16_master_weights_and_grads": pure, "bf16_optimizer_states": pure,
        }  # fmt: skip
    return found


class Engine:
    """Train a `TrainStep` one global batch at a time."""

    def __init__(self, config: RunConfig, module: TrainStep) -> None:
        self.config = config
        self.device = recipe.device_of(config)
        join(self.device)
        deepspeed = import_deepspeed(self.device)
        self._losses: list[Tensor] = []
        self._terms: list[dict[str, Tensor]] = []
        self._step = 0
        self._moved = False
        module = module.to(self.device)
        optimizer = recipe.optimizer(config).build(module.named_parameters())
        self._base_rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:  # some of DeepSpeed's optimizers take a dry step, which would decay
            group["lr"] = 0.0
        self._handle = optimizer.register_step_pre_hook(self._guard)
        self.engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=deepspeed_config(config))
        self.module: TrainStep = self.engine.module
        if rank_and_world()[1] == 1 and config.infrastructure.zero_stage == 0:
            # Alone there is nobody to average with; DeepSpeed would still copy every gradient twice.
            self.engine.enable_backward_allreduce = False
        self.optimizer = optimizer
        for state in optimizer.state.values():
            if "step" in state:  # the dry step would shift Adam's bias correction
                state["step"].zero_()

    def train(self, batch: StepBatch, step: int) -> dict[str, float]:
        """Take one optimizer step; returns the mean of the loss (`loss`) and of every term, unweighted.

        Raises:
            NonFiniteError: Loss or gradient is not finite; the weights are as before the step.
        """
        self._step, self._losses, self._terms, self._moved = step, [], [], False
        self._set_rate(step)
        for micro in batch.split(self.config.micro_batch):
            loss, terms = self.engine(micro.map(lambda tensor: tensor.to(self.device, non_blocking=True)))
            self._losses.append(loss.detach())
            self._terms.append(terms)
            self.engine.backward(loss)
            self._refuse_overflow()
            self.engine.step()
        if not self._moved:  # some of DeepSpeed's optimizers skip a non-finite step in silence
            raise NonFiniteError(self._explain())
        return self._means()

    def _refuse_overflow(self) -> None:
        """Stop where clipping without ZeRO would turn gradients whose norm overflows into zeros, unnoticed."""
        clipped = self.config.grad_clip and self.config.infrastructure.zero_stage == 0
        if not clipped or not self.engine.is_gradient_accumulation_boundary():
            return
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        if gradients and not torch.isfinite(torch.stack(torch._foreach_norm(gradients)).float().norm()):
            raise NonFiniteError(self._explain())

    def _means(self) -> dict[str, float]:
        names = list(self._terms[0])
        rows = [torch.stack([terms[name].float() for terms in self._terms]).mean() for name in names]
        values = torch.stack([torch.stack([loss.float() for loss in self._losses]).mean(), *rows])
        if dist.get_world_size() > 1:
            dist.all_reduce(values)
            values = values / dist.get_world_size()
        return dict(zip(["loss", *names], values.tolist(), strict=True))

    def _set_rate(self, step: int) -> None:
        """Warm up linearly, then stay constant: a function of the step, so that nothing is to be stored."""
        warmup = self.config.warmup_steps
        scale = min(1.0, (step + 1) / warmup) if warmup else 1.0
        for group, base in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = base * scale

    def _guard(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Stop before the optimizer moves when a loss or a gradient is not finite, on every rank at once."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms = torch._foreach_norm(gradients) if gradients else []
        parts = [norm.float() for norm in (*norms, *self._losses)]
        if not parts:  # DeepSpeed's own dry step at initialisation
            return
        total = torch.stack(parts).sum()
        finite = torch.isfinite(total).float()
        if dist.get_world_size() > 1:
            dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        if not finite.item():
            raise NonFiniteError(self._explain())
        self._moved = True

    def _explain(self) -> str:
        """Say what broke, on whichever worker; every worker must call it."""
        culprits = [self._culprit()]
        if dist.get_world_size() > 1:
            culprits = culprits * dist.get_world_size()
            dist.all_gather_object(culprits, self._culprit())
        what = next(filter(None, culprits), "the gradient is not finite while every loss term is")
        return f"step {self._step + 1}: {what}; the weights are those of step {self._step}"

    def _culprit(self) -> str | None:
        """Name the first term that this worker saw break."""
        for terms in self._terms:
            for name, value in terms.items():
                if not torch.isfinite(value):
                    return f"{name if name == MAIN_TERM else f'losses.{name}'} became {value.item()}"
        return None

    def save(self, folder: Path, state: Mapping[str, Any] | None = None) -> None:
        """Write model, optimizer and `state` (plain data) to a folder that appears whole or not at all."""
        partial = folder.with_name(folder.name + ".partial")
        rank, _ = rank_and_world()
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        dist.barrier()
        self.engine.save_checkpoint(str(partial), tag=TAG, client_state={STATE: dict(state or {})}, save_latest=False)
        dist.barrier()
        if rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        dist.barrier()

    def load(self, folder: Path) -> dict[str, Any]:
        """Read what `save` wrote and give its `state`; training continues bit for bit.

        Raises:
            RuntimeError: DeepSpeed does not accept the checkpoint.
        """
        path, found = self.engine.load_checkpoint(str(folder), tag=TAG)
        if path is None:
            raise RuntimeError(f"DeepSpeed found no checkpoint in {folder}")
        return dict(found.get(STATE, {}))

    def close(self) -> None:
        """Give back what the engine holds, so that the next trial of this process starts clean."""
        self._handle.remove()
        self.engine.destroy()


def mean(values: Sequence[float]) -> float:
    """Average, for reports."""
    return sum(values) / len(values) if values else float("nan")
