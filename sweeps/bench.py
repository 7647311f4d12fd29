"""The models of one trial in this process, and the plain data that say what a trial is."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from prx.config import RunConfig, parse_run_config
from sweeps.history.recall import LEASE_SECONDS, Waypoint

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Parts:
    """Import strings (`module:name`) of what a trial is made of; tests put fakes here.

    `trainer(config, folder=, cache=)` has the interface of `prx.trainer.Trainer`, `evaluate(config, cache)`
    gives a function from images to metrics, `prepare(configs, cache, report)` runs once before all trials, and
    `lineage(config, cache)` names a run's states as `sweeps.history.keys.Lineage` does.
    """

    trainer: str = "prx.trainer:Trainer"
    evaluate: str = "sweeps.measure:evaluate"
    prepare: str = "sweeps.measure:prepare"
    lineage: str = "sweeps.measure:lineage"


@dataclass(frozen=True)
class Settings:
    """Plain data that a trial is started with; paths are absolute, `config` is JSON.

    `history` is the store of everything trained, `waypoints` this trial's boundaries in it; `gpus` are those of
    each worker.
    """

    trial_id: str
    config: dict[str, Any]
    root: str
    folder: str
    cache: str
    metric: str
    trainer: str
    evaluate: str
    chunk_seconds: float = 2.0
    history: str = ""
    waypoints: tuple[Waypoint, ...] = ()
    lease_seconds: float = LEASE_SECONDS
    gpus: float = 0.0


class Progress(Protocol):
    """What one call of `advance` did; see `prx.trainer.Progress`."""

    @property
    def step(self) -> int:
        """Where the run stands."""

    @property
    def losses(self) -> list[float]:
        """The loss, a value a step."""

    @property
    def step_seconds(self) -> list[float]:
        """Training only, a value a step."""


class Models(Protocol):
    """The models of a trial, wherever they are."""

    @property
    def step(self) -> int:
        """Where the run stands."""

    def resume(self) -> int:
        """Go on from the newest checkpoint in the trial's folder; gives its step."""

    def advance(self, until: int, *, seconds: float) -> Progress:
        """Train to a step, or for about so long."""

    def measure(self) -> dict[str, float]:
        """Sample, keep a grid of the samples, and evaluate."""

    def save(self) -> None:
        """Keep a checkpoint."""

    def close(self) -> None:
        """Release everything."""


def load(target: str) -> Any:
    """Import `module:name`."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


class Bench:
    """The models of a trial in this process, which may be one of several workers."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.folder = settings, Path(settings.folder)
        self.config = parse_run_config(settings.config)
        set_threads(self.config.infrastructure.threads or 1)
        trainer = load(settings.trainer)
        self._trainer = trainer(self.config, folder=self.folder, cache=Path(settings.cache))
        self.resume()

    @property
    def step(self) -> int:
        """Where the run stands."""
        return int(self._trainer.step)

    def resume(self) -> int:
        """Go on from the newest checkpoint in the trial's folder; gives its step."""
        return int(self._trainer.resume())

    def advance(self, until: int, *, seconds: float = float("inf")) -> Progress:
        """Train to a step, or for about so long."""
        return self._trainer.advance(until, seconds=seconds)  # type: ignore[no-any-return]

    def measure(self) -> dict[str, float]:
        """Sample, keep a grid of the samples, and evaluate."""
        return measured(self.config, self.step, self.measure_once, self.measure_also)

    def measure_once(self) -> dict[str, float]:
        """Measure as the run is drawn; with several workers the first alone evaluates."""
        from prx.images import save_grid

        images = self._trainer.sample()
        metrics = self._evaluated(images)
        if metrics:
            save_grid(images[: self.config.evaluation.grid], self.folder / "samples" / f"step-{self.step:08d}.png")
        return metrics

    def measure_also(self, number: int) -> dict[str, float]:
        """Measure under other sampling settings that are asked for, from the same prompts and noise."""
        also = self.config.evaluation.also[number]
        metrics = self._evaluated(self._trainer.sample(also.applied(self.config.sampling)))
        return {f"{key}@{also.label}": value for key, value in metrics.items() if key != "num_samples"}

    def _evaluated(self, images: Tensor) -> dict[str, float]:
        if not len(images):
            return {}
        evaluate = load(self.settings.evaluate)(self.config, Path(self.settings.cache))
        return {key: float(value) for key, value in evaluate(images).items()}

    def save(self) -> None:
        """Keep a checkpoint."""
        self._trainer.save()

    def close(self) -> None:
        """Release the models."""
        self._trainer.close()


def measured(
    config: RunConfig, step: int, once: Callable[[], dict[str, float]], also: Callable[[int], dict[str, float]]
) -> dict[str, float]:
    """Collect all that is measured at a step: other sampling settings at the run's end alone."""
    found = once()
    for number in range(len(config.evaluation.also) if step == config.steps else 0):
        found |= also(number)
    return found


def set_threads(count: int) -> None:
    """Bound the CPU threads of this process: trials side by side must not take each other's cores."""
    import torch

    torch.set_num_threads(count)
