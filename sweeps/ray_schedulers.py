"""Ray's own rules, on training steps and on evaluations only; for comparison, and for those who want them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from sweeps.results import SweepInfo, TrialInfo
from sweeps.scheduler import RunAll, Terms
from sweeps.stopping.spec import SchedulerSpec
from sweeps.stopping.stoppers import End
from sweeps.submission import ours

CLOCK = "training_rounds"
"""What the rules count: training steps in units of the first rung, so that it is their smallest budget."""


class _Member:
    """A planned trial as a rule sees it, from the moment it is planned; Tune's own may come later, or never."""

    def __init__(self, trial_id: str, scheduler: RayRule) -> None:
        self.trial_id, self._scheduler = trial_id, scheduler

    @property
    def status(self) -> str:
        """Where it stands for Tune."""
        trial = self._scheduler.trial_of(self.trial_id)
        return TuneTrial.PENDING if trial is None else str(trial.status)

    @property
    def is_saving(self) -> bool:
        """Whether it is being paused."""
        trial = self._scheduler.trial_of(self.trial_id)
        return trial is not None and bool(trial.is_saving)


class _Controller:
    """Tune's controller as a rule sees it: whom the rule stops, we want to hear of."""

    def __init__(self, controller: Any, scheduler: RayRule) -> None:
        self._controller, self._scheduler = controller, scheduler

    def get_live_trials(self) -> Sequence[TuneTrial]:
        """Name nobody: the median rule asks in order to pause a trial for others, and ours need no such favour."""
        return ()

    def stop_trial(self, member: _Member) -> None:
        """Stop another trial, with a reason."""
        self._scheduler.prune(member.trial_id)
        self._scheduler.carry_out(self._controller, current=None)


class RayRule(RunAll):
    """One of Ray's rules behind our interface. To all of them a seed, and a baseline, is a trial like any other."""

    name, why = "", "behind those that came before"

    def __init__(self, terms: Terms) -> None:
        super().__init__(terms)
        self.factor, self.grace = float(self.spec.reduction_factor), self.spec.first_rung(self.info.eval_every)
        self.rule = self.make(self.spec, self.info)
        self._members: dict[str, _Member] = {}
        self._past: dict[str, list[tuple[int, float]]] = {}
        self._last: dict[str, tuple[int, float]] = {}

    def make(self, spec: SchedulerSpec, info: SweepInfo) -> TrialScheduler:
        """Build Ray's object."""
        raise TypeError(f"{type(self).__name__} names no rule of Ray's")

    def join(self, trials: Sequence[TrialInfo], judged: bool = True) -> None:
        """Leave alone what is not to be judged."""
        super().join(trials, judged)
        for trial in trials if judged else ():
            self._members[trial.trial_id] = _Member(trial.trial_id, self)
            self.rule.on_trial_add(None, self._members[trial.trial_id])

    def trial_of(self, trial_id: str) -> TuneTrial | None:
        """Give Tune's trial, None before it was handed out."""
        return self._trials.get(trial_id)

    def replay(self, trial_id: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Keep what a trial reported earlier: the rule hears of it only if the trial does not report again."""
        super().replay(trial_id, step, metrics)
        if self.column in metrics:
            self._past.setdefault(trial_id, []).append((step, float(metrics[self.column])))

    def settled(self, trial_id: str) -> None:
        """Tell the rule what a finished trial reported."""
        curve = self._past.pop(trial_id, [])
        if trial_id in self._members:
            self.remember(self._members[trial_id], curve)
        super().settled(trial_id)

    def remember(self, member: _Member, curve: Sequence[tuple[int, float]]) -> None:
        """Fill the rule with the curve of a trial that is not started again."""
        for step, value in curve:
            self.rule.on_trial_result(_Controller(None, self), member, self._seen(step, value))

    def judge(self, tune_controller: Any, trial: TuneTrial, result: Mapping[str, Any]) -> str:
        """Ask the rule about an evaluation."""
        member = self._members.get(ours(trial))
        if member is None:
            return TrialScheduler.CONTINUE
        step, value = int(result["step"]), float(result[self.column])
        if step <= self._last.get(ours(trial), (0, 0.0))[0]:  # tried again: the rule has judged this
            return TrialScheduler.CONTINUE
        self._last[ours(trial)] = (step, value)
        action = self.rule.on_trial_result(_Controller(tune_controller, self), member, self._seen(step, value))
        if action == TrialScheduler.STOP:
            self.prune(ours(trial))
            self.tell(ours(trial))
        elif action == TrialScheduler.PAUSE:
            self.verdicts.paused(ours(trial), f"{self.name} waits at step {step}")
        return str(action)

    def prune(self, trial_id: str) -> None:
        """Note that the rule stopped a trial."""
        step, value = self._last[trial_id]
        reason = f"{self.name} at step {step}: {self.column} {value:.4g} {self.why}"
        self.end(trial_id, End("pruned", reason))

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: Mapping[str, Any]) -> None:
        """Tell the rule a trial's last evaluation."""
        judged = ours(trial) in self._members and ours(trial) not in self.ends
        super().on_trial_complete(tune_controller, trial, result)
        if judged and self.column in result and "failed" not in result:
            self.ended(self._members[ours(trial)], self._seen(int(result["step"]), float(result[self.column])))

    def ended(self, member: _Member, seen: Mapping[str, Any]) -> None:
        """Pass a last evaluation on."""
        self.rule.on_trial_complete(_Controller(None, self), member, dict(seen))

    def _seen(self, step: int, value: float) -> dict[str, Any]:
        return {CLOCK: step / self.grace, self.column: value}


class RayAsha(RayRule):
    """Ray's ASHA (Li et al. 2018, arXiv:1810.05934).

    It compares a trial with whoever reached the rung earlier. So the first to arrive always passes, fast
    techniques have an advantage, and over shuffles of the same nine trials 1 to 9 survive the first rung.
    """

    name = "asha"

    def make(self, spec: SchedulerSpec, info: SweepInfo) -> TrialScheduler:
        """Build it with one bracket."""
        return AsyncHyperBandScheduler(
            time_attr=CLOCK, metric=info.metric, mode=info.mode, grace_period=1,
            max_t=info.steps / self.grace, reduction_factor=spec.reduction_factor,
        )  # fmt: skip


class RayMedian(RayRule):
    """Ray's median stopping rule (Golovin et al. 2017, Google Vizier).

    A trial stops when its best value is worse than the median of the others' running means. Means of falling curves
    lag behind what is measured now, so that only who is far behind is stopped; and nothing happens before three
    others are as far, so that the first to arrive always pass.
    """

    name, why = "median", "worse than the median of the others' means"

    def make(self, spec: SchedulerSpec, info: SweepInfo) -> TrialScheduler:
        """Build it so that it never pauses anybody to let others catch up."""
        return MedianStoppingRule(
            time_attr=CLOCK, metric=info.metric, mode=info.mode, grace_period=1, min_samples_required=3,
        )  # fmt: skip


class RayHyperBand(RayRule):
    """Ray's synchronous HyperBand (Li et al. 2017, arXiv:1603.06560).

    Trials fill brackets in planned order: those of the first bracket are compared with nobody, the others only
    within theirs, so that the plan's order decides who is up against whom; the seeds of a cell land in different
    brackets. What Ray's does wrong, and the wrapper undoes: a bracket counts only trials that live and have been
    handed out, so that with few workers all of them land in the first one (here all are known from the start);
    after its first halving a bracket stops listening to trials that end elsewhere, and waits for ever for one that
    failed. A resumed run does not compare with who finished earlier: a bracket cannot hold a trial that Tune does
    not run. For the same reason a trial that loses its worker fails.
    """

    name, why = "hyperband", "behind the others of its bracket"
    retries = False

    def __init__(self, terms: Terms) -> None:
        super().__init__(terms)
        self._paused: set[str] = set()
        self._controller: Any = None
        self._deciding = False

    def make(self, spec: SchedulerSpec, info: SweepInfo) -> TrialScheduler:
        """Build it so that survivors of the last halving run to their end."""
        rounds = max(1, round(info.steps / self.grace))
        return HyperBandScheduler(
            time_attr=CLOCK, metric=info.metric, mode=info.mode, max_t=rounds,
            reduction_factor=spec.reduction_factor, stop_last_trials=False,
        )  # fmt: skip

    def remember(self, member: _Member, curve: Sequence[tuple[int, float]]) -> None:
        """Leave out who finished earlier."""

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Learn of the controller, too."""
        self._controller = tune_controller
        super().on_trial_add(tune_controller, trial)

    def judge(self, tune_controller: Any, trial: TuneTrial, result: Mapping[str, Any]) -> str:
        """Ask the rule; remember whom it paused."""
        with self._decision():
            action = super().judge(tune_controller, trial, result)
        if action == TrialScheduler.PAUSE:
            self._paused.add(ours(trial))
        return action

    def ended(self, member: _Member, seen: Mapping[str, Any]) -> None:
        """Leave it to `gone`."""

    def gone(self, trial_id: str, *, failed: bool) -> None:
        """Let the bracket go on without a trial, also after its first halving."""
        super().gone(trial_id, failed=failed)
        member = self._members.get(trial_id)
        if member is None:
            return
        bracket = self._bracket(member)
        if self._deciding:
            bracket.cleanup_trial(member)
            return
        bracket.is_being_processed = False
        with self._decision():
            self.rule.on_trial_remove(_Controller(self._controller, self), member)

    def may_resume(self, trial: TuneTrial) -> bool:
        """Say whether the bracket lets a trial go on that it paused."""
        if ours(trial) in self._paused:
            member = self._members[ours(trial)]
            if member not in self._bracket(member).trials_to_unpause:
                return False
            self._paused.discard(ours(trial))
        return super().may_resume(trial)

    def _bracket(self, member: _Member) -> Any:
        return self.rule._trial_info[member][0]

    @contextmanager
    def _decision(self) -> Iterator[None]:
        self._deciding = True
        try:
            yield
        finally:
            self._deciding = False


RAY: dict[str, type[RayRule]] = {"asha": RayAsha, "median": RayMedian, "hyperband": RayHyperBand}
