"""Early stopping on Ray Tune's scheduler interface.

A trial that reaches a rung is paused, which frees its worker, until its whole cohort is decided; then losers
are stopped and survivors go on from their checkpoints. Rungs count training steps: Tune's own iteration
restarts after a retry. Reports without the metric (progress) never reach a decision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import TrialScheduler

from sweeps.halving import Cohort, Decision
from sweeps.results import TrialInfo
from sweeps.submission import TrialQueue


class Verdicts(Protocol):
    """Who is told what the scheduler decides."""

    def paused(self, trial_id: str, step: int) -> None:
        """A trial waits at a rung."""

    def waits(self, trial_id: str, step: int) -> None:
        """A trial waits for another one that trains the same segment."""

    def pruned(self, trial_id: str, reason: str) -> None:
        """A trial is out."""


class Segments(Protocol):
    """Who is told apart: segments that somebody trains, and those that are free."""

    def free(self, trial_id: str, step: int) -> bool:
        """Say whether a trial may train, or take over, the segment that ends at `step`."""


@dataclass(frozen=True)
class Member:
    """A planned trial, as early stopping sees it."""

    trial_id: str
    unit: str
    seed: int


class RunAll(TrialScheduler):
    """Train every trial to its end; the base of the schedulers that do not."""

    factor = 1.0
    """About one trial in so many passes a rung."""
    replays_all = False
    """Whether trials that go on are replayed too, before they report again; else only finished ones."""

    def __init__(self, queue: TrialQueue, verdicts: Verdicts, segments: Segments | None = None) -> None:
        super().__init__()
        self.queue, self.verdicts = queue, verdicts
        self._segments = segments
        self._waiting_for: dict[str, int] = {}
        self._warmed: set[Any] = set()

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Leave `metric` unset: Tune would demand it in every report, progress reports included."""
        return True

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Keep idle workers: a rung empties them all at once, and a new one costs seconds of imports."""
        request = trial.placement_group_factory
        if request not in self._warmed and hasattr(tune_controller, "_actor_cache"):
            self._warmed.add(request)
            tune_controller._actor_cache.increase_max(request, by=self.queue.max_concurrent)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: Mapping[str, Any]) -> str:
        """Go on, or give the worker back while another trial trains the same segment."""
        if "waits" not in result:
            return self.judge(tune_controller, trial, result)
        self._waiting_for[trial.trial_id] = int(result["waits"])
        self.verdicts.waits(trial.trial_id, int(result["waits"]))
        return TrialScheduler.PAUSE

    def judge(self, tune_controller: Any, trial: TuneTrial, result: Mapping[str, Any]) -> str:
        """Go on."""
        return TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Nothing waits for this trial."""

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: Mapping[str, Any]) -> None:
        """Nothing waits for this trial."""

    def on_trial_remove(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Nothing waits for this trial."""

    def join(self, trials: Sequence[TrialInfo], judged: bool = True) -> None:
        """Learn of the trials of a new wave, before any of them is replayed; unjudged ones run to their end."""

    def replay(self, trial_id: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Take a boundary that an earlier run reached, before anything is started."""

    def settled(self, trial_id: str) -> None:
        """Expect no more of a trial that an earlier run finished."""

    def open_rungs(self) -> tuple[int, ...]:
        """Give the rungs at which trials may still be stopped."""
        return ()

    def may_resume(self, trial: TuneTrial) -> bool:
        """Say whether a paused trial may go on."""
        step = self._waiting_for.get(trial.trial_id)
        if step is None or self._segments is None:
            return True
        if not self._segments.free(trial.trial_id, step):
            return False
        del self._waiting_for[trial.trial_id]
        return True

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        """Prefer trials that were never started, then paused ones that may go on, in planned order."""
        trials = tune_controller.get_trials()
        for trial in trials:
            if trial.status == TuneTrial.PENDING:
                return trial
        if self.queue.full():
            return None
        return next((t for t in trials if t.status == TuneTrial.PAUSED and self.may_resume(t)), None)

    def debug_string(self) -> str:
        """Say nothing: the display is ours."""
        return type(self).__name__

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: the journals are the truth, and replaying them rebuilds every rung."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing; see `save`."""


MakeCohort = Callable[[Sequence[TrialInfo], bool], Cohort]
"""Makes the cohort of a wave; one that is not judged has no rungs."""


class CohortHalving(RunAll):
    """Pause at rungs, decide whole cohorts. A wave is a cohort of its own."""

    replays_all = True

    def __init__(
        self,
        queue: TrialQueue,
        make_cohort: MakeCohort,
        verdicts: Verdicts,
        metric: str,
        segments: Segments | None = None,
    ) -> None:
        super().__init__(queue, verdicts, segments)
        self._make_cohort, self.column = make_cohort, metric
        self._members: dict[str, Member] = {}
        self.join(())
        self._trials: dict[str, TuneTrial] = {}
        self._stopped: set[str] = set()
        self._at: dict[str, int] = {}

    def join(self, trials: Sequence[TrialInfo], judged: bool = True) -> None:
        """Begin the cohort of a new wave; every trial of the waves before has ended."""
        self.cohort = self._make_cohort(trials, judged)
        self.factor = self.cohort.factor
        self._members |= {trial.trial_id: Member(trial.trial_id, trial.name, trial.seed) for trial in trials}

    def replay(self, trial_id: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Take a boundary of an earlier run: rungs it completes are decided again, the same way."""
        if self._take(trial_id, step, metrics):
            self._drop_losers()

    def settled(self, trial_id: str) -> None:
        """Expect no more of a trial that an earlier run finished."""
        member = self._members[trial_id]
        if self.cohort.leave(member.unit, member.seed):
            self._drop_losers()

    def open_rungs(self) -> tuple[int, ...]:
        """Give the rungs that are not decided."""
        return self.cohort.open_rungs

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Learn which of Tune's trials is which."""
        super().on_trial_add(tune_controller, trial)
        self._trials[trial.trial_id] = trial

    def judge(self, tune_controller: Any, trial: TuneTrial, result: Mapping[str, Any]) -> str:
        """Take a report; pause at an open rung, stop a loser."""
        member = self._members[trial.trial_id]
        if self.column in result and self._take(trial.trial_id, int(result["step"]), result):
            self._stop_losers(tune_controller, current=trial)
        if self.cohort.reason(member.unit) is not None:
            self._prune(member)
            return TrialScheduler.STOP
        if self.column in result and self.cohort.waits_at(int(result["step"])):
            self._at[trial.trial_id] = int(result["step"])
            self.verdicts.paused(trial.trial_id, int(result["step"]))
            return TrialScheduler.PAUSE
        return TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Let the cohort go on without a trial that failed."""
        self._leave(tune_controller, trial)

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: Mapping[str, Any]) -> None:
        """Let the cohort go on without a trial that ended."""
        self._leave(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Let the cohort go on without a trial that was taken out."""
        self._leave(tune_controller, trial)

    def may_resume(self, trial: TuneTrial) -> bool:
        """Say whether the rung a trial waits at is decided."""
        return not self.cohort.waits_at(self._at.get(trial.trial_id, 0)) and super().may_resume(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        """As the base; nothing running and nobody allowed to would be a hang, so it is an error.

        Raises:
            RuntimeError: Every trial waits for a member that will never report.
        """
        chosen = super().choose_trial_to_run(tune_controller)
        if chosen is None and not self.queue.waiting and self._deadlocked(tune_controller.get_trials()):
            names = ", ".join(f"{unit} seed {seed}" for unit, seed in sorted(self.cohort.missing))
            raise RuntimeError(f"rung {self.cohort.rung} waits for {names}, which no trial will report")
        return chosen

    def _deadlocked(self, trials: Sequence[TuneTrial]) -> bool:
        states = {trial.status for trial in trials if not trial.is_finished()}
        living = [trial for trial in trials if not trial.is_finished()]
        waiting = any(trial.trial_id in self._waiting_for for trial in living)
        return states == {TuneTrial.PAUSED} and not waiting and not any(self.may_resume(t) for t in living)

    def _take(self, trial_id: str, step: int, metrics: Mapping[str, Any]) -> list[Decision]:
        member = self._members[trial_id]
        return self.cohort.record(
            member.unit, member.seed, step, float(metrics[self.column]), metrics.get(f"{self.column}_se")
        )

    def _leave(self, tune_controller: Any, trial: TuneTrial) -> None:
        member = self._members[trial.trial_id]
        if self.cohort.leave(member.unit, member.seed):
            self._stop_losers(tune_controller, current=trial)

    def _losers(self) -> list[Member]:
        found = (m for trial_id, m in self._members.items() if trial_id not in self._stopped)
        return [member for member in found if self.cohort.reason(member.unit) is not None]

    def _stop_losers(self, tune_controller: Any, current: TuneTrial) -> None:
        self._drop_losers()
        for member in self._losers():
            trial = self._trials.get(member.trial_id)
            # A loser that runs (it is replaying an earlier run) is stopped at its next report instead: to
            # stop it from here would drop what its worker is about to say.
            if (
                trial is not None
                and trial is not current
                and (trial.status == TuneTrial.PAUSED or trial.is_saving)
            ):
                self._prune(member)
                tune_controller.stop_trial(trial)

    def _drop_losers(self) -> None:
        for member in self._losers():
            if member.trial_id not in self._trials:
                self.queue.drop(member.trial_id)
                self._prune(member)

    def _prune(self, member: Member) -> None:
        if member.trial_id not in self._stopped:
            self._stopped.add(member.trial_id)
            self.verdicts.pruned(member.trial_id, self.cohort.reason(member.unit) or "")
