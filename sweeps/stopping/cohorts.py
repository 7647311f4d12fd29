"""Cohort halving on Tune: pause at rungs, decide whole cohorts, keep losers in reserve until nobody can fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune.experiment import Trial as TuneTrial

from sweeps.halving import Cohort, Decision, How, Unit
from sweeps.results import SweepInfo, TrialInfo
from sweeps.scheduler import RunAll, Terms
from sweeps.stopping.spec import SchedulerSpec
from sweeps.stopping.stoppers import End


@dataclass(frozen=True)
class Member:
    """A trial in its cohort."""

    trial_id: str
    unit: str
    seed: int
    cohort: Cohort


class CohortHalving(RunAll):
    """Compare the cells of a wave with each other, at rungs, all at once (see `sweeps.halving`)."""

    replays_all = True

    def __init__(self, terms: Terms) -> None:
        super().__init__(terms)
        self.factor = float(self.spec.reduction_factor)
        self.cohorts: list[Cohort] = []
        self._members: dict[str, Member] = {}
        self._at: dict[str, tuple[int, float]] = {}
        self._out: dict[int, int] = {}

    def join(self, trials: Sequence[TrialInfo], judged: bool = True) -> None:
        """Make a cohort of the trials of a new wave; one that is not judged has no rungs."""
        super().join(trials, judged)
        cohort = make_cohort(self.spec, self.info, trials, judged)
        self.cohorts.append(cohort)
        self._members |= {t.trial_id: Member(t.trial_id, t.name, t.seed, cohort) for t in trials}

    def observe(self, trial_id: str, step: int, result: Mapping[str, Any]) -> None:
        """Let the cohort see an evaluation, then the stoppers."""
        member = self._members[trial_id]
        position = self._position(member, step, result)
        self._at[trial_id] = (step, position)
        value, se = float(result[self.column]), result.get(f"{self.column}_se")
        self._announce(member.cohort, member.cohort.record(member.unit, member.seed, step, value, se, position))
        before = set(self.ends)
        super().observe(trial_id, step, result)
        for ended in self.ends.keys() - before:
            self._leave(ended, "finished" if self.ends[ended].state == "complete" else "withdrawn")
        self._collect(member.cohort)

    def gone(self, trial_id: str, *, failed: bool) -> None:
        """Let the cohort go on without a trial; one that is left undone, for want of budget, stands for nothing."""
        super().gone(trial_id, failed=failed)
        whole = self._at.get(trial_id, (0, 0.0))[0] == self.info.steps
        self._leave(trial_id, "failed" if failed else "finished" if whole else "withdrawn")
        self._collect(self._members[trial_id].cohort)

    def holds(self, trial_id: str) -> str | None:
        """Say whether a trial waits at an open rung or in reserve, or for the baseline."""
        member = self._members[trial_id]
        step, position = self._at.get(trial_id, (0, 0.0))
        return member.cohort.waits(member.unit, step, position) or super().holds(trial_id)

    def awaited(self) -> str:
        """Name the trials that the open rungs wait for."""
        for cohort in self.cohorts:
            if cohort.rung is not None and cohort.missing:
                names = ", ".join(f"{unit} seed {seed}" for unit, seed in sorted(cohort.missing))
                return f"rung {cohort.rung:g} waits for {names}, which no trial will report"
        return super().awaited()

    def open_rungs(self) -> tuple[int, ...]:
        """Give the steps of the rungs that are not decided; none where only measuring tells them."""
        found: set[int] = set()
        for cohort in self.cohorts:
            for unit in cohort.units.values():
                steps = (unit.step_at(rung) for rung in cohort.open_rungs)
                found |= {step for step in steps if step is not None and step < self.info.steps}
        return tuple(sorted(found))

    def _leave(self, trial_id: str, how: How) -> None:
        member = self._members[trial_id]
        self._announce(member.cohort, member.cohort.leave(member.unit, member.seed, how))

    def _announce(self, cohort: Cohort, decisions: Sequence[Decision]) -> None:
        """Say of losers that waited for a decision that they are in reserve now."""
        losers = {unit for decision in decisions for unit in decision.losers}
        for member in self._members.values() if losers else ():
            trial = self._trials.get(member.trial_id)
            if member.cohort is cohort and member.unit in losers and trial is not None:
                why = cohort.waits(member.unit, *self._at.get(member.trial_id, (0, 0.0)))
                if trial.status == TuneTrial.PAUSED and why is not None:
                    self.verdicts.paused(member.trial_id, why)

    def _collect(self, cohort: Cohort) -> None:
        """Take over whom the cohort has taken out since the last look."""
        if cohort.num_out == self._out.get(id(cohort), 0):
            return
        self._out[id(cohort)] = cohort.num_out
        for member in self._members.values():
            reason = cohort.reason(member.unit) if member.cohort is cohort else None
            if reason is not None:
                self.end(member.trial_id, End("pruned", reason))

    def _position(self, member: Member, step: int, result: Mapping[str, Any]) -> float:
        pace = member.cohort.units[member.unit].pace
        return float(result["device_seconds"]) if pace is None else step * pace


def make_cohort(spec: SchedulerSpec, info: SweepInfo, trials: Sequence[TrialInfo], judged: bool) -> Cohort:
    """Make the cohort of some trials: rungs before the end of the shortest run in the rungs' unit.

    Raises:
        ValueError: Rungs count images and a trial does not say how many it sees a step.
    """
    units: dict[str, list[TrialInfo]] = {}
    for trial in trials:
        units.setdefault(trial.name, []).append(trial)
    made = {name: _unit(spec, info, found) for name, found in units.items()}
    paces = [unit.pace for unit in made.values() if unit.pace is not None]
    end = info.steps * min(paces) if paces else None
    return Cohort(
        made,
        spec.rungs(info.eval_every, end) if judged else (),
        factor=spec.reduction_factor,
        rechecks=spec.rechecks(info.eval_every, end),
        metric=info.metric,
        mode=info.mode,
        noise_errors=spec.noise_errors if spec.noise_aware else 0.0,
        clock=spec.unit,
    )


def _unit(spec: SchedulerSpec, info: SweepInfo, trials: Sequence[TrialInfo]) -> Unit:
    first = trials[0]
    if spec.unit == "images" and not first.batch_size:
        raise ValueError(f"trial {first.trial_id} does not say its batch size, which rungs in images need")
    pace = {"steps": 1.0, "images": float(first.batch_size), "device_seconds": None}[spec.unit]
    judged_from = 0 if spec.rungs_within_schedules else first.scheduled_until
    is_baseline = any(trial.is_baseline for trial in trials)
    return Unit(tuple(trial.seed for trial in trials), is_baseline, judged_from, pace, info.eval_every)
