"""What ends a trial whatever the others' ranks: target reached, plateau, worse than the baseline.

Each looks at one trial's own curve, and the last also at the baseline's of the same seed, step by step; a trial
that is ahead of its baseline waits for it. So arrival decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sweeps.halving import Mode
from sweeps.results import TrialInfo
from sweeps.stopping.paired import Score, measurement_error
from sweeps.stopping.spec import PlateauSpec, StopSpec, TargetSpec, WorseThanBaselineSpec


@dataclass(frozen=True)
class End:
    """A trial's early end: complete where it has what it was trained for, pruned where it lost."""

    state: Literal["complete", "pruned"]
    reason: str


def reached(spec: TargetSpec, curve: Sequence[tuple[int, Score]], sign: float, metric: str) -> End | None:
    """End a trial whose last value is at the target or better."""
    step, score = curve[-1]
    if score.value > sign * spec.value:
        return None
    return End("complete", f"target: {metric} {sign * score.value:.4g} at step {step} (asked for {spec.value:g})")


def flat(spec: PlateauSpec, curve: Sequence[tuple[int, Score]], sign: float, metric: str) -> End | None:
    """End a trial that did not get better, beyond noise, in its last evaluations."""
    if len(curve) <= spec.evaluations:
        return None
    before = min((score for _, score in curve[: -spec.evaluations]), key=lambda score: score.value)
    latest = min((score for _, score in curve[-spec.evaluations :]), key=lambda score: score.value)
    if before.value - latest.value > spec.errors * measurement_error(before, latest):
        return None
    best, count = sign * min(before.value, latest.value), spec.evaluations
    return End("complete", f"plateau: {metric} no better than {best:.4g} in {count} evaluations to step {curve[-1][0]}")


def behind(
    spec: WorseThanBaselineSpec, step: int, mine: Score, baseline: Score, sign: float, metric: str
) -> End | None:
    """Take out a trial that is behind the baseline by more than the difference's error explains."""
    error = measurement_error(mine, baseline)
    if mine.value - baseline.value <= spec.errors * error:
        return None
    shown = f"{metric} {sign * mine.value:.4g} behind the baseline's {sign * baseline.value:.4g} ± {error:.2g}"
    return End("pruned", f"step {step}: {shown}")


class Stoppers:
    """All that a sweep asks for, fed with every evaluation of every trial."""

    def __init__(self, spec: StopSpec, metric: str, mode: Mode) -> None:
        self.spec, self.metric, self._sign = spec, metric, 1.0 if mode == "min" else -1.0
        self._curves: dict[str, list[tuple[int, Score]]] = {}
        self._trials: dict[str, TrialInfo] = {}
        self._baselines: dict[int, str] = {}
        self._gone: set[str] = set()

    def join(self, trials: Sequence[TrialInfo]) -> None:
        """Learn of more trials."""
        for trial in trials:
            self._trials[trial.trial_id] = trial
            if trial.is_baseline:
                self._baselines[trial.seed] = trial.trial_id

    def record(self, trial_id: str, step: int, value: float, se: float | None) -> dict[str, End]:
        """Take an evaluation; gives whom it ends: the trial itself, or those that waited for the baseline."""
        curve = self._curves.setdefault(trial_id, [])
        if not self.spec or trial_id not in self._trials or (curve and curve[-1][0] >= step):
            return {}
        curve.append((step, Score(self._sign * value, se or 0.0)))
        end = self._alone(curve) or self._compared(trial_id)
        found = {} if end is None else {trial_id: end}
        if self._trials[trial_id].is_baseline:
            found |= {other: end for other in self._followers(trial_id) if (end := self._compared(other))}
        return found

    def leave(self, trial_id: str) -> None:
        """Expect no more of a trial."""
        self._gone.add(trial_id)

    def waits(self, trial_id: str) -> str | None:
        """Say why a trial has to wait: the baseline of its seed is expected, and not as far."""
        baseline = self._baseline_of(trial_id)
        if baseline is None or baseline in self._gone or not self._curves.get(trial_id):
            return None
        step = self._curves[trial_id][-1][0]
        if step < self._start or self._last_step(baseline) >= step:
            return None
        return f"waits for the baseline at step {step}"

    @property
    def _start(self) -> int:
        asked = self.spec.worse_than_baseline
        return asked.from_step or 0 if asked else 0

    def _last_step(self, trial_id: str) -> int:
        curve = self._curves.get(trial_id)
        return curve[-1][0] if curve else 0

    def _baseline_of(self, trial_id: str) -> str | None:
        if self.spec.worse_than_baseline is None:
            return None
        if trial_id not in self._trials:
            return None
        found = self._baselines.get(self._trials[trial_id].seed)
        return None if found == trial_id else found

    def _followers(self, baseline: str) -> list[str]:
        return [trial_id for trial_id in self._curves if self._baseline_of(trial_id) == baseline]

    def _alone(self, curve: Sequence[tuple[int, Score]]) -> End | None:
        found = None
        if self.spec.target is not None:
            found = reached(self.spec.target, curve, self._sign, self.metric)
        if found is None and self.spec.plateau is not None:
            found = flat(self.spec.plateau, curve, self._sign, self.metric)
        return found

    def _compared(self, trial_id: str) -> End | None:
        """Compare a trial with its baseline at the first common step where it is behind."""
        asked, baseline = self.spec.worse_than_baseline, self._baseline_of(trial_id)
        if asked is None or baseline is None:
            return None
        known = dict(self._curves.get(baseline, []))
        for step, score in self._curves[trial_id]:
            if step >= self._start and step in known:
                end = behind(asked, step, score, known[step], self._sign, self.metric)
                if end is not None:
                    return end
        return None
