"""The training loop: one run, from any step to any later one."""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from prx import conflict, recipe
from prx import images as pictures
from prx.batches import Batches, Prompts, seed_normalisation
from prx.config import AlignmentConfig, ConflictStop, RunConfig, SamplingConfig
from prx.engine import Engine, mean, rank_and_world
from prx.errors import NonFiniteError, UserError
from prx.sampling import draw
from prx.train_step import StepBatch

_NAME = re.compile(r"step-(\d+)$")


@dataclass(frozen=True)
class Progress:
    """What one call of `advance` did. `losses` and `step_seconds` (training only) have a value a step.

    `terms` averages each over the steps at which it acted; `conflict/NAME` is the agreement of a term's
    gradient with the objective's, where it was measured.
    """

    step: int
    loss: float
    terms: dict[str, float]
    step_seconds: list[float]
    losses: list[float]


class Trainer:
    """A run in progress. The trial's folder holds its checkpoints, `cache` the shared encodings."""

    def __init__(self, config: RunConfig, *, folder: Path, cache: Path) -> None:
        if config.infrastructure.threads:
            torch.set_num_threads(config.infrastructure.threads)
        self.config, self.folder = config, folder
        built = recipe.build(config)
        seed_normalisation(built, config, cache)
        self.engine = Engine(config, built)
        self.batches = Batches(config, cache, self.engine.module, rank_and_world()[0])
        self.tokenizer = self.batches.tokenizer
        module = self.engine.module
        if any(term.corrects for term in module.losses.values()):
            module.mean_clean = self.batches.mean_clean().to(self.engine.device)
        self.prompts = Prompts(config, cache, self.batches, self.tokenizer)
        self.step = 0

    def advance(self, until: int, *, seconds: float = float("inf")) -> Progress:
        """Train to step `until`, or until about `seconds` have passed.

        Raises:
            NonFiniteError: Names the step and the term; the weights are still good.
        """
        started, durations, history = time.perf_counter(), [], []
        while self.step < until and time.perf_counter() - started < seconds:
            measured = self._end_terms()
            before = time.perf_counter()
            history.append(self.engine.train(self.batches.batch(self.step), self.step) | measured)
            self.step += 1
            durations.append(time.perf_counter() - before)
        names = dict.fromkeys(name for row in history for name in row)
        means = {name: mean([row[name] for row in history if name in row]) for name in names}
        losses = [row["loss"] for row in history]
        return Progress(self.step, means.pop("loss", float("nan")), means, durations, losses)

    def _end_terms(self) -> dict[str, float]:
        """Measure the terms for which it is time, and end those that fight the objective."""
        found = {}
        for name in self.batches.weights(self.step):
            part = self.config.losses[name]
            stop = part.stop_when if isinstance(part, AlignmentConfig) else None
            if stop is None or not stop.due_at(self.step):
                continue
            value = conflict.agreement(self.engine.module, name, stop, partial(self._probes, name, stop))
            if value is not None:
                found[f"conflict/{name}"] = value
                if value < stop.below:
                    self.batches.stopped[name] = self.step
        return found

    def _probes(self, name: str, stop: ConflictStop, t: float) -> Iterator[StepBatch]:
        """Give this worker's micro-batches of the images that a conflict is measured on."""
        for number in range(math.ceil(stop.num_samples / self.config.batch_size)):
            batch = self.batches.probe(number, name, t, self.step).map(lambda tensor: tensor.to(self.engine.device))
            yield from batch.split(self.config.micro_batch)

    def save(self) -> None:
        """Keep a checkpoint of this step and drop older ones."""
        target = self.folder / "checkpoints" / f"step-{self.step:08d}"
        if not target.is_dir():
            self.engine.save(target, {"stopped": self.batches.stopped})
        if rank_and_world()[0] == 0:
            for step, path in checkpoints(self.folder).items():
                if step != self.step:
                    shutil.rmtree(path)

    def resume(self, step: int | None = None) -> int:
        """Continue from a checkpoint, the newest one unless told; 0 when there is none.

        Raises:
            UserError: There is no checkpoint of that step.
        """
        found = checkpoints(self.folder)
        step = max(found, default=0) if step is None else step
        if step and step not in found:
            raise UserError(f"{self.folder} has no checkpoint of step {step}; there are {sorted(found)}")
        if step:
            self.batches.stopped = dict(self.engine.load(found[step])["stopped"])
        self.step = step
        return step

    @torch.no_grad()
    def sample(self, sampling: SamplingConfig | None = None, num: int | None = None) -> Tensor:
        """Draw `evaluation.num_samples` images, uint8 [N, 3, S, S], for fixed prompts and fixed noise.

        Other sampling settings than the run's own draw from the same prompts and noise; `num` draws the first ones.
        Several workers draw a batch each in turn, the same batches as one would; the first gets all images, the
        others none.

        Raises:
            NonFiniteError: A picture holds what is no number; as uint8 it would be black, and measured as such.
        """
        chosen = sampling or self.config.sampling
        total, size = num or self.config.evaluation.num_samples, self.config.evaluation.batch_size
        self.engine.module.eval()
        self.engine.module.acting = self.batches.weights(max(self.step - 1, 0))
        starts, (rank, world) = range(0, total, size), rank_and_world()
        parts, finite = [], True
        with self.engine.sampling_weights(chosen.weights):
            for turn in range(0, len(starts), world):
                # Whoever has nothing left draws the last batch once more: at ZeRO 3 nobody can draw alone.
                start = starts[min(turn + rank, len(starts) - 1)]
                drawn = self._draw(start, min(start + size, total), chosen)
                finite = finite and bool(drawn.isfinite().all())
                parts += self.engine.gathered(pictures.to_uint8(drawn).cpu(), size)[: len(starts) - turn]
        self.engine.module.train()
        if not self.engine.everywhere(finite):
            raise NonFiniteError(f"step {self.step}: a sampled picture is not finite")
        nothing = torch.empty(0, 3, *[self.config.data.image_size] * 2, dtype=torch.uint8)
        return torch.cat([nothing, *parts])

    def _draw(self, start: int, stop: int, sampling: SamplingConfig) -> Tensor:
        """Draw the images of prompts `start`..`stop`, in [-1, 1]."""
        prompts = self.prompts.chunk(start, stop)
        latents = draw(self.engine.module, prompts.map(self.engine.device), sampling)
        return self.tokenizer.decode(latents)

    def close(self) -> None:
        """Release the engine; the trainer cannot be used afterwards."""
        self.engine.close()


def checkpoints(folder: Path) -> dict[int, Path]:
    """Find complete checkpoints by step; half-written ones carry another name."""
    found = {}
    for path in sorted((folder / "checkpoints").glob("step-*")):
        match = _NAME.match(path.name)
        if match:
            found[int(match.group(1))] = path
    return found


def train(
    config: RunConfig,
    *,
    folder: Path,
    cache: Path,
    report: Callable[[Trainer, Progress], None],
    should_stop: Callable[[], bool] = lambda: False,
    chunk_seconds: float = 1.0,
) -> int:
    """Train a run to its end, from its newest checkpoint; returns the step reached.

    A checkpoint is kept at every multiple of `evaluation.every` and at the end; `report` is called after
    every chunk, with `step` on such a boundary or between.
    """
    trainer = Trainer(config, folder=folder, cache=cache)
    try:
        trainer.resume()
        while trainer.step < config.steps and not should_stop():
            boundary = next_boundary(config, trainer.step)
            progress = trainer.advance(boundary, seconds=chunk_seconds)
            if progress.step == boundary:
                trainer.save()
            report(trainer, progress)
        return trainer.step
    finally:
        trainer.close()


def next_boundary(config: RunConfig, step: int) -> int:
    """Give the next step at which a run is evaluated and checkpointed."""
    every = config.evaluation.every
    return min(config.steps, (step // every + 1) * every)
