"""Ray Tune reduced to what a scheduler touches: a queue of trials, workers, pauses; time is a number."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import TrialScheduler

from sweeps.simulation.curves import Curve, CurveSet


@dataclass(eq=False)
class SimulatedTrial:
    """A trial as Tune knows it; `step` is how far it is trained."""

    curve: Curve
    status: str = TuneTrial.PENDING
    step: int = 0
    is_saving: bool = False
    placement_group_factory: str = "a worker"

    @property
    def trial_id(self) -> str:
        """Its name."""
        return self.curve.info.trial_id

    def is_finished(self) -> bool:
        """Say whether it has ended."""
        return self.status in (TuneTrial.TERMINATED, TuneTrial.ERROR)


@dataclass
class Verdicts:
    """What a scheduler decided: state and reason of every trial that it ended, and why trials waited."""

    ended: dict[str, tuple[str, str]] = field(default_factory=dict)
    pauses: list[tuple[str, str]] = field(default_factory=list)

    def paused(self, trial_id: str, reason: str) -> None:
        """A trial waits."""
        self.pauses.append((trial_id, reason))

    def waits(self, trial_id: str, step: int) -> None:
        """A trial waits for another one, but curves share no segments."""
        raise RuntimeError(f"trial {trial_id} waits for a segment at step {step}, and there are none")

    def pruned(self, trial_id: str, reason: str) -> None:
        """A trial is out."""
        self._end(trial_id, "pruned", reason)

    def completed(self, trial_id: str, reason: str) -> None:
        """A trial has what it was trained for."""
        self._end(trial_id, "complete", reason)

    def _end(self, trial_id: str, state: str, reason: str) -> None:
        if trial_id in self.ended:
            raise RuntimeError(f"trial {trial_id} was ended twice: {self.ended[trial_id][1]}; {reason}")
        self.ended[trial_id] = (state, reason)


class SimulatedTune:
    """Controller and trial queue in one.

    Args:
        order: Indices of the curves, in the order in which they are handed out.
        speed: Seconds that a training step of a trial takes.
        rng: Decides who comes first where two reports fall together, and where progress is reported.
    """

    def __init__(
        self, curves: CurveSet, workers: int, order: Sequence[int], speed: Callable[[Curve], float], rng: random.Random
    ) -> None:
        self.info, self.max_concurrent = curves.info, workers
        self.waiting: list[SimulatedTrial] = [SimulatedTrial(curves.curves[index]) for index in order]
        self.trials: list[SimulatedTrial] = []
        self.dropped: list[SimulatedTrial] = []
        self.verdicts, self.seconds, self.scheduler = Verdicts(), 0.0, TrialScheduler()
        self._speed, self._rng, self._busy = speed, rng, 0
        self._due: list[tuple[float, float, SimulatedTrial]] = []

    def full(self) -> bool:
        """Say whether every worker is taken."""
        return self._busy >= self.max_concurrent

    def drop(self, trial_id: str) -> None:
        """Take out a trial that was not handed out yet."""
        self.dropped += [trial for trial in self.waiting if trial.trial_id == trial_id]
        self.waiting = [trial for trial in self.waiting if trial.trial_id != trial_id]

    def again(self, trial: SimulatedTrial) -> bool:
        """Say no: what fails here fails for good."""
        return False

    def get_trials(self) -> list[SimulatedTrial]:
        """Give the trials that were handed out."""
        return self.trials

    @property
    def all_trials(self) -> list[SimulatedTrial]:
        """Give every trial, also those that were dropped before they started."""
        return [*self.trials, *self.waiting, *self.dropped]

    def stop_trial(self, trial: SimulatedTrial) -> None:
        """End a trial as Tune does: a waiting one is removed, a running one completes."""
        if trial.is_finished():
            return
        if trial.status == TuneTrial.RUNNING:
            self.scheduler.on_trial_complete(self, trial, self._result(trial))
        else:
            self.scheduler.on_trial_remove(self, trial)
        self._set(trial, TuneTrial.TERMINATED)

    def run(self, scheduler: TrialScheduler) -> SimulatedTune:
        """Run until every trial has ended.

        Raises:
            RuntimeError: No trial runs, none may start, and some have not ended.
        """
        self.scheduler = scheduler
        while True:
            self._start()
            if not self._due:
                break
            self.seconds, _, trial = heapq.heappop(self._due)
            if not trial.is_finished():
                self._report(trial)
        left = [trial.trial_id for trial in [*self.trials, *self.waiting] if not trial.is_finished()]
        if left:
            raise RuntimeError(f"no trial runs, and these have not ended: {', '.join(left)}")
        return self

    def _set(self, trial: SimulatedTrial, status: str) -> None:
        holds = (TuneTrial.PENDING, TuneTrial.RUNNING)
        self._busy += (status in holds) - (trial.status in holds and trial in self.trials)
        trial.status = status

    def _start(self) -> None:
        """Fill the workers: first with new trials, then with whom the scheduler lets go on."""
        while True:
            if self.waiting and not self.full():
                self.trials.append(self.waiting.pop(0))
                self._busy += 1
                self.scheduler.on_trial_add(self, self.trials[-1])
            chosen = self.scheduler.choose_trial_to_run(self)
            if chosen is None:
                return
            self._set(chosen, TuneTrial.RUNNING)
            self._train(chosen)

    def _following(self, trial: SimulatedTrial) -> int:
        every = self.info.eval_every
        return min(self.info.steps, (trial.step // every + 1) * every)

    def _train(self, trial: SimulatedTrial) -> None:
        taken = (self._following(trial) - trial.step) * self._speed(trial.curve)
        heapq.heappush(self._due, (self.seconds + taken, self._rng.random(), trial))

    def _report(self, trial: SimulatedTrial) -> None:
        following = self._following(trial)
        if self._rng.random() < 0.3:  # between boundaries trials say how far they are
            progress = {"step": following - 1, "done": False}
            if self.scheduler.on_trial_result(self, trial, progress) == TrialScheduler.STOP:
                self.stop_trial(trial)
                return
        if trial.curve.fails_at is not None and following >= trial.curve.fails_at:
            self._set(trial, TuneTrial.ERROR)
            self.scheduler.on_trial_error(self, trial)
            return
        trial.step = following
        if following == self.info.steps:
            self.stop_trial(trial)
            return
        self._act(trial, self.scheduler.on_trial_result(self, trial, self._result(trial)))

    def _act(self, trial: SimulatedTrial, action: str) -> None:
        if action == TrialScheduler.STOP:
            self.stop_trial(trial)
        elif action == TrialScheduler.PAUSE:
            self._set(trial, TuneTrial.PAUSED)
        else:
            self._train(trial)

    def _result(self, trial: SimulatedTrial) -> Mapping[str, Any]:
        """Give what a trial reports where it stands; nothing was measured before the first boundary."""
        if trial.step not in trial.curve.values:
            return {}
        value, se = trial.curve.values[trial.step]
        metric, seconds = self.info.metric, trial.step * trial.curve.step_seconds
        return {"step": trial.step, metric: value, f"{metric}_se": se, "device_seconds": seconds}
