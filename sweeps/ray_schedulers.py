"""Ray's own early stopping, on training steps; selectable, for comparison with ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from sweeps.halving import Mode
from sweeps.results import TrialInfo
from sweeps.scheduler import RunAll, Segments, Verdicts
from sweeps.submission import TrialQueue


class RayAsha(RunAll):
    """Ray's ASHA, on training steps. It compares a trial with whoever arrived earlier."""

    def __init__(
        self,
        queue: TrialQueue,
        verdicts: Verdicts,
        metric: str,
        mode: Mode,
        segments: Segments | None = None,
        **options: Any,
    ) -> None:
        super().__init__(queue, verdicts, segments)
        self.column, self.factor = metric, float(options["reduction_factor"])
        self._unjudged: set[str] = set()
        self.asha = AsyncHyperBandScheduler(time_attr="step", metric=metric, mode=mode, **options)

    def join(self, trials: Sequence[TrialInfo], judged: bool = True) -> None:
        """Leave alone what is not to be judged."""
        if not judged:
            self._unjudged |= {trial.trial_id for trial in trials}

    def replay(self, trial_id: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Fill the rungs with a boundary of a trial that is not started again."""
        past = _Past(trial_id)
        if trial_id not in self.asha._trial_info:
            self.asha.on_trial_add(None, past)
        self.asha.on_trial_result(None, past, {"step": step, self.column: float(metrics[self.column])})

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Pass on."""
        super().on_trial_add(tune_controller, trial)
        self.asha.on_trial_add(tune_controller, trial)

    def judge(self, tune_controller: Any, trial: TuneTrial, result: Mapping[str, Any]) -> str:
        """Ask ASHA about evaluations; progress reports go on."""
        if self.column not in result or trial.trial_id in self._unjudged:
            return TrialScheduler.CONTINUE
        action = self.asha.on_trial_result(tune_controller, trial, dict(result))
        if action == TrialScheduler.STOP:
            shown = f"{self.column} {float(result[self.column]):.4g}"
            reason = f"asha at step {result['step']}: {shown} behind those that came before"
            self.verdicts.pruned(trial.trial_id, reason)
        return action

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: Mapping[str, Any]) -> None:
        """Pass on what has the metric."""
        if self.column in result:
            self.asha.on_trial_complete(tune_controller, trial, dict(result))


@dataclass(frozen=True)
class _Past:
    """A trial of an earlier run: all that ASHA asks of a trial is its id."""

    trial_id: str
