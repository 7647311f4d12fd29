"""Training loop against a bare PyTorch loop, interleaved."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from prx import prepare, recipe
from prx.compose import load_base
from prx.config import RunConfig, parse_run_config
from prx.quiet import hush
from prx.train_step import StepBatch, TrainStep
from prx.trainer import Trainer

WARM_UP = 5


class BareLoop:
    """What anybody would write: forward, backward, clip, step, on one batch held in memory."""

    def __init__(self, config: RunConfig, module: TrainStep, batch: StepBatch) -> None:
        self.module, self.batch, self.clip = module, batch, config.grad_clip
        self.optimizer = recipe.optimizer(config).build(module.named_parameters())

    def step(self) -> None:
        """Take one optimizer step."""
        loss, _ = self.module(self.batch)
        loss.backward()
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def _seconds(step: Callable[[], object]) -> float:
    started = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(base: str, rounds: int, cache: Path) -> None:
    """Print the times of both sides and the median of the ratios, one optimizer step a round and side."""
    hush()
    source = load_base(base)
    config = parse_run_config(source.data | {"steps": 10**9}, source)
    prepare.prepare([config], cache, lambda what, done, total: None)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, folder=Path(folder), cache=cache)
        device = trainer.engine.device
        batch = trainer.batches.batch(0).map(lambda tensor: tensor.to(device))
        bare = BareLoop(config, copy.deepcopy(recipe.build(config)).to(device), batch)
        rows = []
        for number in range(rounds + WARM_UP):
            # Step by step in turn, each side first every other time: a machine's speed drifts within seconds.
            sides = [lambda: trainer.advance(trainer.step + 1), bare.step]
            order = (0, 1) if number % 2 else (1, 0)
            seconds = {side: _seconds(sides[side]) for side in order}
            if number >= WARM_UP:
                rows.append((seconds[0], seconds[1]))
        trainer.close()
    _print(rows, base)


def _print(rows: list[tuple[float, float]], base: str) -> None:
    ratios = [theirs / ours for ours, theirs in rows]
    table = Table(title=f"Training loop against a bare PyTorch loop ({base}, {torch.get_num_threads()} threads)")
    for column in ("", "ms a step, median", "fastest", "slowest"):
        table.add_column(column, justify="right")
    for name, values in (("prx.trainer", [r[0] for r in rows]), ("bare loop", [r[1] for r in rows])):
        shown = (statistics.median(values), min(values), max(values))
        table.add_row(name, *(f"{1000 * value:.1f}" for value in shown))
    console = Console()
    console.print(table)
    console.print(
        f"throughput ratio, trainer / bare: median {statistics.median(ratios):.3f} over {len(ratios)} "
        f"interleaved rounds ({min(ratios):.3f} to {max(ratios):.3f})"
    )
