"""DeepSpeed around one `TrainStep`: sharding, precision, clipping, checkpoints, the finite guard."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from prx import recipe, reshard
from prx.config import RunConfig
from prx.ema import Ema
from prx.end_to_end import PREFIX
from prx.errors import NonFiniteError
from prx.train_step import MAIN_TERM, StepBatch, TrainStep

TAG = "state"
STATE = "run"
AVERAGE = "ema.pt"
MAX_BUCKET = 500_000_000
"""How many gradients are averaged at once; DeepSpeed's own default."""
LOST = "bf16.lost_steps"
LOST_EVERY = 100
"""How often a `bf16_pure` run counts the weights whose step was rounded away; one copy of the weights each time."""


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
        "zero_optimization": {
            "stage": infra.zero_stage,
            **recipe.optimizer(config).zero_optimization(infra.zero_stage),
        },
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
        names = {parameter: name for name, parameter in module.named_parameters()}
        self._groups = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
        self._base_rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:  # some of DeepSpeed's optimizers take a dry step, which would decay
            group["lr"] = 0.0
        self._handle = optimizer.register_step_pre_hook(self._note_step)
        settings = deepspeed_config(config)
        if config.infrastructure.zero_stage in {1, 2}:
            # DeepSpeed takes a fresh buffer of this size, 2 GB by default, at every step: no more than can be filled.
            numel = sum(parameter.numel() for parameter in module.parameters())
            settings["zero_optimization"]["reduce_bucket_size"] = min(numel, MAX_BUCKET)
        self.engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
        self.module: TrainStep = self.engine.module
        if rank_and_world()[1] == 1 and config.infrastructure.zero_stage == 0:
            # Alone there is nobody to average with; DeepSpeed would still copy every gradient twice.
            self.engine.enable_backward_allreduce = False
        self.optimizer = optimizer
        for state in optimizer.state.values():
            if "step" in state:  # the dry step would shift Adam's bias correction
                state["step"].zero_()
        self.ema = None if config.ema is None else Ema(config.ema, self.module)

    def train(self, batch: StepBatch, step: int) -> dict[str, float]:
        """Take one optimizer step; returns the mean of the loss (`loss`) and of every term, unweighted.

        Raises:
            NonFiniteError: Loss or gradient is not finite; the weights are as before the step.
        """
        self._step, self._losses, self._terms, self._moved = step, [], [], False
        self._set_rate(step)
        self._forget_gradients()
        before = self._copy_to_compare(step)
        for micro in batch.split(self.config.micro_batch):
            loss, terms = self.engine(micro.map(lambda tensor: tensor.to(self.device, non_blocking=True)))
            self._losses.append(loss.detach())
            self._terms.append(terms)
            self.engine.backward(loss)
            if self.engine.is_gradient_accumulation_boundary():
                self._refuse_non_finite()
            self.engine.step()
        if not self._moved:  # DeepSpeed skips the step, in silence, when the norm of all gradients is not finite
            raise NonFiniteError(self._explain())
        if self.ema is not None:
            self.ema.update(step + 1)
        return self._means() | self._lost(before)

    def _forget_gradients(self) -> None:
        """Clear ZeRO 3's gradients: of a parameter without one, as when its term has stopped, it keeps the last."""
        if self.config.infrastructure.zero_stage == 3:
            self.engine.optimizer.grad_partitions_flat_buffer.zero_()

    def _refuse_non_finite(self) -> None:
        """Stop on every rank, before anything moves, when a loss or a gradient is not finite.

        ZeRO 1..3 take the norm over every group themselves before they step the first; without ZeRO nobody
        does, and clipping would turn gradients whose norm overflows into zeros.
        """
        gradients = []
        if self.config.infrastructure.zero_stage == 0:
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        norms = torch._foreach_norm(gradients) if gradients else []
        finite = torch.isfinite(torch.stack([part.float() for part in (*norms, *self._losses)]).norm()).float()
        if dist.get_world_size() > 1:
            dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        if not finite.item():
            raise NonFiniteError(self._explain())

    def _note_step(self, *_: Any) -> None:
        self._moved = True

    def _copy_to_compare(self, step: int) -> dict[Tensor, Tensor]:
        """Copy what the optimizer steps, at the steps where `_lost` is to compare."""
        if self.config.precision != "bf16_pure" or (step + 1) % LOST_EVERY:
            return {}
        return {weight: weight.detach().clone() for weight in self.optimizer.state}

    def _lost(self, before: Mapping[Tensor, Tensor]) -> dict[str, float]:
        """Measure the share of weights that a step meant to move and bfloat16 left where they were."""
        if not before:
            return {}
        counts = torch.zeros(2, dtype=torch.float64, device=self.device)
        for weight, old in before.items():
            state = self.optimizer.state[weight]
            if "exp_avg" not in state and dist.get_world_size() > 1:
                continue  # Muon's momentum belongs to whole matrices, the weights to this worker's part of them
            moment = state.get("exp_avg", state.get("momentum_buffer")).flatten()
            stayed = (weight.detach() == old).flatten()[: len(moment)]
            counts += torch.stack([((moment != 0) & stayed).sum(), (moment != 0).sum()])
        if dist.get_world_size() > 1:
            dist.all_reduce(counts)
        return {LOST: float(counts[0] / counts[1].clamp(min=1))}

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
                    own = name == MAIN_TERM or name.startswith(PREFIX)
                    return f"{name if own else f'losses.{name}'} became {value.item()}"
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
        if self.ema is not None and rank == 0:
            torch.save(self.ema.state(), partial / AVERAGE)
        dist.barrier()
        if rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        dist.barrier()

    def load(self, folder: Path) -> dict[str, Any]:
        """Read what `save` wrote and give its `state`; training continues bit for bit.

        Other workers or another ZeRO stage may have written it: weights and the optimizer's state are the same
        then, and what follows differs by the order of sums.

        Raises:
            RuntimeError: DeepSpeed does not accept the checkpoint.
            UserError: It is of another configuration, or not complete.
            FileNotFoundError: The checkpoint has no average of the weights, and `ema` asks for one.
        """
        found = self._read(folder)
        if self.ema is not None:
            self.ema.restore(torch.load(folder / AVERAGE, map_location=self.device, weights_only=True))
        return dict(found.get(STATE, {}))

    def _read(self, folder: Path) -> Mapping[str, Any]:
        """Fill the engine; gives what else the checkpoint holds."""
        here = reshard.Layout.of(self.config.infrastructure.zero_stage, self.config.infrastructure.workers)
        if reshard.layout(folder / TAG) != here:
            return reshard.load(self.engine, folder / TAG, self._groups)
        path, found = self.engine.load_checkpoint(str(folder), tag=TAG)
        if path is None:
            raise RuntimeError(f"DeepSpeed found no checkpoint in {folder}")
        return dict(found)

    def gathered(self, part: Tensor, size: int) -> list[Tensor]:
        """Collect every worker's part, at most `size` long, at the first, by rank; the others get nothing."""
        rank, world = rank_and_world()
        if world == 1:
            return [part]
        lengths = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(world)]
        dist.all_gather(lengths, torch.tensor([len(part)], device=self.device))
        padded = torch.zeros(size, *part.shape[1:], dtype=part.dtype, device=self.device)
        padded[: len(part)] = part
        found = [torch.empty_like(padded) for _ in range(world)] if rank == 0 else None
        dist.gather(padded, found)
        return [piece[: int(length)].to(part.device) for piece, length in zip(found or [], lengths, strict=False)]

    def everywhere(self, holds: bool) -> bool:
        """Say whether something holds on every worker; every worker must ask."""
        found = torch.tensor(float(holds), device=self.device)
        if rank_and_world()[1] > 1:
            dist.all_reduce(found, op=dist.ReduceOp.MIN)
        return bool(found.item())

    def sampling_weights(self, name: str) -> AbstractContextManager[None]:
        """Lend the module the weights that `sampling.weights` names: its own, or their average."""
        if name == "model":
            return nullcontext()
        assert self.ema is not None
        return self.ema.applied()

    def close(self) -> None:
        """Give back what the engine holds, so that the next trial of this process starts clean."""
        self._handle.remove()
        self.engine.destroy()


def mean(values: Sequence[float]) -> float:
    """Average, for reports."""
    return sum(values) / len(values) if values else float("nan")
