"""Fakes for trials of several workers: a trainer that keeps in step with the others, and dies where its name says.

Names, beside those of `fakes`: `lose-3` has its second worker killed once, at step 15; `doom-3` every time;
`odd-3` has it raise there; `broken-3` has every worker's numbers break.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from prx.errors import NonFiniteError
from sweeps.trial import Parts
from tests.sweeps import fakes

PARTS = Parts(
    "tests.sweeps.crews:CrewTrainer", "tests.sweeps.fakes:evaluate", "tests.sweeps.fakes:prepare",
    "tests.sweeps.fakes:Lineage",
)  # fmt: skip
STEP = 15


class CrewTrainer(fakes.FakeTrainer):
    """A fake trainer of one worker; all of them wait for each other at every step, as a collective does."""

    def __init__(self, config: Any, *, folder: Path, cache: Path) -> None:
        super().__init__(config, folder=folder, cache=cache)
        self.rank, self.workers = dist.get_rank(), dist.get_world_size()
        assert self.workers == config.infrastructure.workers
        assert os.environ["LOCAL_RANK"] == str(self.rank)

    def advance(self, until: int, *, seconds: float = float("inf")) -> fakes.FakeProgress:
        start = self.step
        while self.step < until:
            self.step += 1
            if self.step == STEP:
                self._strike(self.config.name.split("-")[0])
            dist.barrier()
            if self.rank == 0:
                with (self.folder / "trained").open("a") as log:
                    log.write(f"{self.step}\n")
        losses = [1.0 / step for step in range(start + 1, until + 1)]
        return fakes.FakeProgress(self.step, 1.0 / self.step, {}, [0.01] * (until - start), losses)

    def _strike(self, kind: str) -> None:
        if kind == "broken":
            raise NonFiniteError(f"step {self.step}: the fake broke")
        if self.rank == 0:
            return
        if kind == "odd":
            raise ValueError("the second worker broke at step 15")
        if kind == "doom" or (kind == "lose" and not (self.folder / "lost").exists()):
            (self.folder / "lost").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def save(self) -> None:
        dist.barrier()
        if self.rank == 0:
            super().save()
        dist.barrier()

    def sample(self) -> torch.Tensor:
        return super().sample()[: 4 if self.rank == 0 else 0]
