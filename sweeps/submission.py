"""Hand planned trials to Ray Tune, a bounded number at a time.

Tune's own `max_concurrent_trials` counts paused trials: with 2 of 8 paused at a rung it would start no other,
and the rung would wait for ever. Here only trials that hold, or ask for, a worker count.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayActorError
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.search import SearchAlgorithm

from cluster.resources import TrialShape, resources

ATTEMPTS = 3
"""Worker processes that a trial may use up in one run, before it counts as failed."""
HANDED_OUT = 10
"""How often it may be handed out for that: a process that was dead before the trial began in it was not used up. One
stroke can take several, such as those that Tune keeps for the next trials."""
AGAIN = "+"
"""Stands between our id and the number of the attempt, in Tune's ids from the second one on."""


def ours(trial: Any) -> str:
    """Give our id of a trial of Tune's: each attempt has its own there, so that nothing of a dead one applies to it."""
    return str(trial.trial_id).partition(AGAIN)[0]


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


class Attempt(TuneTrial):
    """One attempt at a trial: it ends with its worker process, and Tune's own recovery has no part in the next.

    That one keeps what the dead worker was about to do, and may hear of one death twice, the second time for the
    trial that it has put back in its queue.
    """

    died, repeated = False, False
    """Whether its process died, without an exception of its own, and whether the trial is tried again."""
    began = False
    """Whether it ever had a process that answered."""
    last_words = ""
    """What Ray says of its end."""

    def handle_error(self, exc: Any = None) -> None:
        """Take note of what ended it."""
        self.last_words = " ".join(str(exc).split())
        self.died = isinstance(exc, RayActorError) and not exc.actor_init_failed
        super().handle_error(exc)

    def should_recover(self) -> bool:
        """Leave it to the queue, also where a machine was taken away."""
        return False


class TrialQueue(SearchAlgorithm):
    """A search algorithm that searches nothing: it gives trials in order, under our own ids.

    Args:
        more: Adds the next wave of trials, when every trial so far has ended; False when there is none.
    """

    def __init__(self, submissions: Sequence[Submission] = (), more: Callable[[], bool] = lambda: False) -> None:
        self.max_concurrent, self._gpus = 1, False
        self._waiting = deque(submissions)
        self._given: dict[Attempt, Submission] = {}
        self._attempts: Counter[str] = Counter()
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

    def again(self, trial: TuneTrial) -> bool:
        """Try a trial again, before any other, whose worker process died; False where that is over, or no remedy.

        A trial of several workers begins a segment again by itself; what ends that one's own process, ends it.
        """
        if not isinstance(trial, Attempt) or not trial.died or self._given[trial].workers > 1:
            return False
        used = sum(other.began for other in self._given if ours(other) == ours(trial))
        trial.repeated = used < ATTEMPTS and self._attempts[ours(trial)] < HANDED_OUT
        if trial.repeated:
            self._waiting.appendleft(self._given[trial])
        return trial.repeated

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
        self._attempts[item.trial_id] += 1
        attempt = self._attempts[item.trial_id]
        trial = Attempt(
            spec["run"],
            config=item.config | {"gpus": shape.gpus_per_worker},
            trial_id=item.trial_id if attempt == 1 else f"{item.trial_id}{AGAIN}{attempt}",
            experiment_tag=item.trial_id,
            storage=spec.get("storage"),
            placement_group_factory=resources(shape),
            stopping_criterion=spec.get("stop") or {},
            checkpoint_config=spec.get("checkpoint_config"),
            trial_name_creator=lambda trial: trial.trial_id,
            trial_dirname_creator=lambda trial: trial.trial_id,
            max_failures=0,
        )
        self._given[trial] = item
        return trial

    def is_finished(self) -> bool:
        """Say so only when every trial has ended: Tune drops idle workers as soon as it hears it."""
        return self._finished or (self._over and not self._waiting and self._ended())

    def _ended(self) -> bool:
        return all(trial.is_finished() for trial in self._given)
