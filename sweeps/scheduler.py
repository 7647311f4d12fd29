"""Early stopping on Ray Tune's scheduler interface: what every scheduler of ours has in common.

A trial that has to wait is paused, which frees its worker, and goes on from its checkpoint. What counts is
training steps: Tune's own iteration restarts after a retry. Reports without the metric (progress) never reach a
decision. Journals are the truth: replaying them rebuilds every decision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import TrialScheduler

from sweeps.results import SweepInfo, TrialInfo
from sweeps.stopping.spec import SchedulerSpec
from sweeps.stopping.stoppers import End, Stoppers
from sweeps.submission import ours


class Queue(Protocol):
    """What hands trials to Tune; `sweeps.submission.TrialQueue` does."""

    max_concurrent: int

    @property
    def waiting(self) -> Sequence[Any]:
        """The trials not handed out yet."""

    def full(self) -> bool:
        """Say whether as many trials hold or await a worker as may."""

    def drop(self, trial_id: str) -> None:
        """Take out a trial that was not handed out yet."""

    def again(self, trial: Any) -> bool:
        """Say whether a trial that ended with an error is tried again, from its last checkpoint."""


class Verdicts(Protocol):
    """Who is told what the scheduler decides."""

    def paused(self, trial_id: str, reason: str) -> None:
        """A trial waits, at a rung, in reserve or for the baseline."""

    def waits(self, trial_id: str, step: int) -> None:
        """A trial waits for another one that trains the same segment."""

    def pruned(self, trial_id: str, reason: str) -> None:
        """A trial is out."""

    def completed(self, trial_id: str, reason: str) -> None:
        """A trial has what it was trained for, before its last step."""


class Segments(Protocol):
    """Who is told apart: segments that somebody trains, and those that are free."""

    def free(self, trial_id: str, step: int) -> bool:
        """Say whether a trial may train, or take over, the segment that ends at `step`."""


@dataclass(frozen=True)
class Terms:
    """What every scheduler is built from: what was asked for, and whom it deals with."""

    spec: SchedulerSpec
    info: SweepInfo
    queue: Queue
    verdicts: Verdicts
    segments: Segments | None = None


class RunAll(TrialScheduler):
    """Compare nobody; only the stoppers end trials. The base of the schedulers that compare."""

    factor = 1.0
    """About one trial in so many passes a rung."""
    retries = True
    """Whether a trial may be tried again: it reports once more what it reported before its worker died."""

    def __init__(self, terms: Terms) -> None:
        super().__init__()
        self.spec, self.info, self.column = terms.spec, terms.info, terms.info.metric
        self.queue, self.verdicts, self._segments = terms.queue, terms.verdicts, terms.segments
        self.stoppers = Stoppers(self.spec.stop, self.info.metric, self.info.mode)
        self.ends: dict[str, End] = {}
        self._settled = set[str]()
        self._due: dict[str, None] = {}  # of `ends`, those that nobody was told of
        self._trials: dict[str, TuneTrial] = {}
        self._waiting_for: dict[str, int] = {}
        self._warmed: set[Any] = set()

    @property
    def replays_all(self) -> bool:
        """Say whether trials that go on are replayed too, before they report again; else only finished ones."""
        return bool(self.stoppers.spec)

    def join(self, trials: Sequence[TrialInfo], judged: bool = True) -> None:
        """Learn of the trials of a new wave, before any of them is replayed; unjudged ones run to their end."""
        if judged:
            self.stoppers.join(trials)

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Leave `metric` unset: Tune would demand it in every report, progress reports included."""
        return True

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Keep idle workers: a rung empties them all at once, and a new one costs seconds of imports."""
        self._trials[ours(trial)] = trial
        request = trial.placement_group_factory
        if request not in self._warmed and hasattr(tune_controller, "_actor_cache"):
            self._warmed.add(request)
            tune_controller._actor_cache.increase_max(request, by=self.queue.max_concurrent)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: Mapping[str, Any]) -> str:
        """Go on, end, or give the worker back until what the trial waits for is there."""
        if "waits" in result:
            self._waiting_for[ours(trial)] = int(result["waits"])
            self.verdicts.waits(ours(trial), int(result["waits"]))
            return TrialScheduler.PAUSE
        if self.column in result:
            self.observe(ours(trial), int(result["step"]), result)
            self.carry_out(tune_controller, current=trial)
        if ours(trial) in self.ends:
            self.tell(ours(trial))
            return TrialScheduler.STOP
        if self.column not in result:
            return TrialScheduler.CONTINUE
        why = self.holds(ours(trial))
        if why is not None:
            self.verdicts.paused(ours(trial), why)
            return TrialScheduler.PAUSE
        return self.judge(tune_controller, trial, result)

    def observe(self, trial_id: str, step: int, result: Mapping[str, Any]) -> None:
        """Take an evaluation, reported or replayed; whom it ends is put into `ends`."""
        value, se = float(result[self.column]), result.get(f"{self.column}_se")
        found = self.stoppers.record(trial_id, step, value, se)
        for ended, end in found.items():
            self.end(ended, end)
            self.stoppers.leave(ended)

    def end(self, trial_id: str, end: End) -> None:
        """Note that a trial ends; `carry_out` stops it."""
        if trial_id not in self.ends and trial_id not in self._settled:
            self.ends[trial_id] = end
            self._due[trial_id] = None

    def gone(self, trial_id: str, *, failed: bool) -> None:
        """Expect no more of a trial."""
        self.stoppers.leave(trial_id)

    def holds(self, trial_id: str) -> str | None:
        """Say why a trial has to wait where it stands, None when it may go on."""
        return self.stoppers.waits(trial_id)

    def judge(self, tune_controller: Any, trial: TuneTrial, result: Mapping[str, Any]) -> str:
        """Go on."""
        return TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Let the others go on without a trial that failed; they wait for one that only lost its worker."""
        if self.retries and self.queue.again(trial):
            self._trials.pop(ours(trial), None)
            self._waiting_for.pop(ours(trial), None)
        else:
            self.gone(ours(trial), failed=True)
        self.carry_out(tune_controller, current=trial)

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: Mapping[str, Any]) -> None:
        """Let the others go on without a trial that ended, with its last evaluation."""
        failed = "failed" in result
        if self.column in result and not failed and ours(trial) not in self.ends:
            self.observe(ours(trial), int(result["step"]), result)
        self.gone(ours(trial), failed=failed)
        self.carry_out(tune_controller, current=trial)

    def on_trial_remove(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Let the others go on without a trial that was taken out while it waited."""
        self.gone(ours(trial), failed=False)
        self.carry_out(tune_controller, current=trial)

    def replay(self, trial_id: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Take a boundary that an earlier run reached, before anything is started: it decides the same again."""
        if self.column in metrics:
            self.observe(trial_id, step, metrics)
            self.carry_out(None, current=None)

    def settled(self, trial_id: str) -> None:
        """Expect no more of a trial that an earlier run finished."""
        self._settled.add(trial_id)
        self.gone(trial_id, failed=False)
        self.carry_out(None, current=None)

    def open_rungs(self) -> tuple[int, ...]:
        """Give the steps at which trials may still be stopped."""
        return ()

    def may_resume(self, trial: TuneTrial) -> bool:
        """Say whether a paused trial may go on."""
        if self.holds(ours(trial)) is not None:
            return False
        step = self._waiting_for.get(ours(trial))
        if step is None or self._segments is None:
            return True
        if not self._segments.free(ours(trial), step):
            return False
        del self._waiting_for[ours(trial)]
        return True

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        """Prefer trials that were never started, then paused ones that may go on, in planned order.

        Raises:
            RuntimeError: Every trial waits for something that will never come: an error instead of a hang.
        """
        trials = tune_controller.get_trials()
        for trial in trials:
            if trial.status == TuneTrial.PENDING:
                return trial
        if self.queue.full():
            return None
        chosen = next((t for t in trials if t.status == TuneTrial.PAUSED and self.may_resume(t)), None)
        if chosen is None and not self.queue.waiting and self._deadlocked(trials):
            raise RuntimeError(self.awaited())
        return chosen

    def awaited(self) -> str:
        """Say what all trials wait for."""
        names = sorted(trial_id for trial_id, trial in self._trials.items() if not trial.is_finished())
        return f"trials {', '.join(names)} wait for what no trial will report"

    def _deadlocked(self, trials: Sequence[TuneTrial]) -> bool:
        living = [trial for trial in trials if not trial.is_finished()]
        waiting = any(ours(trial) in self._waiting_for for trial in living)
        return bool(living) and not waiting and all(trial.status == TuneTrial.PAUSED for trial in living)

    def carry_out(self, tune_controller: Any, current: TuneTrial | None) -> None:
        """Stop those that `ends` names and that are not running.

        One that runs (it is replaying an earlier run) is stopped at its next report instead: to stop it from
        here would drop what its worker is about to say.
        """
        for trial_id in list(self._due):
            if trial_id not in self._due:  # to stop one trial may end others, and lead back here
                continue
            trial = self._trials.get(trial_id)
            if trial is None:
                self.queue.drop(trial_id)
                self.tell(trial_id)
            elif trial.is_finished():
                self._due.pop(trial_id, None)
            elif trial is not current and (trial.status == TuneTrial.PAUSED or trial.is_saving):
                self.tell(trial_id)
                tune_controller.stop_trial(trial)

    def tell(self, trial_id: str) -> None:
        """Give the verdict on a trial, once."""
        if trial_id in self._due:
            del self._due[trial_id]
            end = self.ends[trial_id]
            give = self.verdicts.completed if end.state == "complete" else self.verdicts.pruned
            give(trial_id, end.reason)

    def debug_string(self) -> str:
        """Say nothing: the display is ours."""
        return type(self).__name__

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: the journals are the truth, and replaying them rebuilds every rung."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing; see `save`."""
