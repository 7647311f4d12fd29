"""Hand planned trials to Ray Tune, a bounded number at a time.

Tune's own `max_concurrent_trials` counts paused trials: with 2 of 8 paused at a rung it would start no other,
and the rung would wait for ever. Here only trials that hold, or ask for, a worker count.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.search import SearchAlgorithm

from cluster.resources import TrialShape, resources


@dataclass(frozen=True)
class Submission:
    """One trial for Tune: our id, plain data, and what it needs to run."""

    trial_id: str
    config: dict[str, Any]
    cpus: int = 1
    device: str = "auto"
    workers: int = 1

    def shape(self, gpus: bool) -> TrialShape:
        """Say what the trial occupies; `auto` takes a GPU where there are any."""
        wants_gpu = self.device == "cuda" or (self.device == "auto" and gpus)
        return TrialShape(self.workers, self.cpus, int(wants_gpu))


class TrialQueue(SearchAlgorithm):
    """A search algorithm that searches nothing: it gives trials in order, under our own ids.

    Args:
        more: Adds the next wave of trials, when every trial so far has ended; False when there is none.
    """

    def __init__(self, submissions: Sequence[Submission] = (), more: Callable[[], bool] = lambda: False) -> None:
        self.max_concurrent, self._gpus = 1, False
        self._waiting = deque(submissions)
        self._given: list[TuneTrial] = []
        self._more, self._over = more, False
        self._experiment: Any = None

    def add(self, submissions: Sequence[Submission]) -> None:
        """Append trials."""
        self._waiting.extend(submissions)

    def open(self, max_concurrent: int, gpus: bool) -> None:
        """Say how many trials may hold a worker at once, and whether the cluster has GPUs."""
        self.max_concurrent, self._gpus = max_concurrent, gpus

    @property
    def waiting(self) -> tuple[Submission, ...]:
        """The trials not handed out yet."""
        return tuple(self._waiting)

    @property
    def total_samples(self) -> int:
        """Count all trials."""
        return len(self._waiting) + len(self._given)

    def full(self) -> bool:
        """Say whether as many trials hold or await a worker as may."""
        busy = sum(trial.status in (TuneTrial.PENDING, TuneTrial.RUNNING) for trial in self._given)
        return busy >= self.max_concurrent

    def drop(self, trial_id: str) -> None:
        """Take out a trial that was not handed out yet."""
        self._waiting = deque(item for item in self._waiting if item.trial_id != trial_id)

    def add_configurations(self, experiments: Any) -> None:
        """Learn what Tune calls the trainable and where it keeps its own files."""
        self._experiment = experiments[0]

    def next_trial(self) -> TuneTrial | None:
        """Give the next trial while there is room; when all have ended, the first of the next wave."""
        if not self._waiting and not self._over and self._ended():
            self._over = not self._more()
        if not self._waiting or self.full():
            return None
        item, spec = self._waiting.popleft(), self._experiment.spec
        shape = item.shape(self._gpus)
        trial = TuneTrial(
            spec["run"],
            config=item.config | {"gpus": shape.gpus_per_worker},
            trial_id=item.trial_id,
            experiment_tag=item.trial_id,
            storage=spec.get("storage"),
            placement_group_factory=resources(shape),
            stopping_criterion=spec.get("stop") or {},
            checkpoint_config=spec.get("checkpoint_config"),
            trial_name_creator=lambda trial: trial.trial_id,
            trial_dirname_creator=lambda trial: trial.trial_id,
            max_failures=0,
        )
        self._given.append(trial)
        return trial

    def is_finished(self) -> bool:
        """Say so only when every trial has ended: Tune drops idle workers as soon as it hears it."""
        return self._finished or (self._over and not self._waiting and self._ended())

    def _ended(self) -> bool:
        return all(trial.is_finished() for trial in self._given)
