"""Cohort successive halving: whole rungs are compared, so the order of arrival decides nothing.

A unit is a cell: its seeds are judged together. A rung lies at an amount of training (steps, images or
device-seconds) and is reached at the first evaluation at or beyond it. No Ray here, no clock, no randomness: what
is decided is a function of what the trials reported and of which of them failed. Steps and images are functions of
the configuration; device-seconds are measured, so another run may reach a rung at another evaluation, while the
same run read again from its journals decides the same.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sweeps.stopping.paired import Difference, Score, difference, standings

Mode = Literal["min", "max"]
How = Literal["failed", "finished", "withdrawn"]
Key = tuple[str, int]


@dataclass(frozen=True)
class Unit:
    """A cell in a cohort.

    Args:
        seeds: One trial each.
        protected: No rung takes it out (the baseline).
        judged_from: Step of its last scheduled change; before it the unit is not compared.
        pace: What one training step adds to the clock of the rungs; None when only measuring tells.
        every: Steps between evaluations.
    """

    seeds: tuple[int, ...]
    protected: bool = False
    judged_from: int = 0
    pace: float | None = 1.0
    every: int = 1

    def step_at(self, rung: float) -> int | None:
        """Give the step at which the unit reaches a rung, None when only measuring tells."""
        return None if self.pace is None else math.ceil(rung / self.pace / self.every) * self.every


@dataclass(frozen=True)
class Report:
    """One evaluation of one trial: training step, the clock of the rungs, score."""

    step: int
    position: float
    score: Score


@dataclass(frozen=True)
class Decision:
    """What became of one rung's cohort; `losers` gives each the reason in words, best first.

    `uncompared` units pass without having been judged, and without taking a survivor's place.
    """

    rung: float
    survivors: tuple[str, ...]
    losers: Mapping[str, str]
    uncompared: tuple[str, ...] = ()


class Cohort:
    """Compare units at rungs, each rung only when every living member has reported or left.

    Losers of the latest rung stay in reserve: while fewer units stand than the rung had places, because
    survivors failed, the best of the reserve goes on. With the next rung's decision, or when nobody is left who
    could fail, the reserve is out. Who is promoted depends on who failed and on the ranking, not on when.

    Args:
        rungs: Amounts of training, ascending.
        rechecks: Amounts at which units that a rung kept for a tie are compared again, for the same places; the
            cohort waits there only while there are ties.
        noise_errors: A unit stays whose difference to the worst survivor is within so many standard errors; 0
            turns that off.
        clock: What the rungs count, for the reasons given.
    """

    def __init__(
        self,
        units: Mapping[str, Unit],
        rungs: Sequence[float],
        *,
        factor: float,
        rechecks: Sequence[float] = (),
        metric: str = "cmmd",
        mode: Mode = "min",
        noise_errors: float = 1.0,
        clock: str = "steps",
    ) -> None:
        self.units, self.factor, self.metric = dict(units), factor, metric
        later = (amount for amount in rechecks if rungs and amount > rungs[0])
        self.rungs, self._main = tuple(sorted({*rungs, *later})), frozenset(rungs)
        self._sign, self._noise, self._clock = 1.0 if mode == "min" else -1.0, noise_errors, clock
        self._alive = set(units)
        self._reports: dict[Key, list[Report]] = {}
        self._gone: dict[Key, How] = {}
        self._reasons: dict[str, str] = {}
        self._reserve: dict[str, str] = {}
        self._places, self._standing, self._compared, self._tied = 0, list[str](), set[str](), False
        # Members of the open rung that it waits for; kept up to date so that a report costs O(1).
        self._missing: set[Key] = set()
        self._living, self._vacancy, self._index = 0, False, 0
        self._count()
        self._open()

    def record(
        self, unit: str, seed: int, step: int, value: float, se: float | None = None, position: float | None = None
    ) -> list[Decision]:
        """Take a report; returns the decisions it completes. A value that is no number is a failure."""
        if not math.isfinite(value):
            return self.leave(unit, seed, "failed")
        noise = se if se is not None and math.isfinite(se) else 0.0
        where = step * (self.units[unit].pace or 0.0) if position is None else position
        reports = self._reports.setdefault((unit, seed), [])
        if all(report.step != step for report in reports):
            bisect.insort(reports, Report(step, where, Score(self._sign * value, noise)), key=lambda r: r.step)
        if self.rung is not None and where >= self.rung:
            self._missing.discard((unit, seed))
        return self._advance()

    def leave(self, unit: str, seed: int, how: How = "failed") -> list[Decision]:
        """Take out a trial that will report no more; returns the decisions that waited for it.

        Args:
            how: `finished` trials stand with their last value from then on; of a unit whose trials all `failed`
                the place is free; `withdrawn` ones are out for a reason of their own.
        """
        if (unit, seed) not in self._gone:
            self._gone[unit, seed] = how
            self._living -= unit in self._alive
            self._vacancy |= how == "failed"
        self._missing.discard((unit, seed))
        return self._advance()

    @property
    def rung(self) -> float | None:
        """The rung that is open, None when all are decided."""
        return self.rungs[self._index] if self._index < len(self.rungs) else None

    @property
    def open_rungs(self) -> tuple[float, ...]:
        """The rungs not decided yet, without those that are for ties only."""
        return tuple(rung for rung in self.rungs[self._index :] if rung in self._main)

    @property
    def missing(self) -> frozenset[Key]:
        """The members (unit, seed) that the open rung waits for."""
        return frozenset(self._missing)

    def waits(self, unit: str, step: int, position: float) -> str | None:
        """Say why a trial that stands at `position` has to wait, None when it may go on."""
        if unit in self._reserve:
            return f"in reserve after {self._reserve[unit]}"
        if self.rung is None or position < self.rung or step < self.units[unit].judged_from:
            return None
        return f"waits at {self._name(self.rung)}"

    @property
    def num_out(self) -> int:
        """Count the units that were taken out."""
        return len(self._reasons)

    def reason(self, unit: str) -> str | None:
        """Say why a unit was taken out, None while it lives or is in reserve."""
        return self._reasons.get(unit)

    def _open(self) -> None:
        if self.rung is not None:
            self._missing = {
                (unit, seed)
                for unit in self._alive
                if not self._skips(unit, self.rung)
                for seed in self.units[unit].seeds
                if (unit, seed) not in self._gone and self._at((unit, seed), self.rung) is None
            }

    def _skips(self, unit: str, rung: float) -> bool:
        """Say whether a unit passes a rung uncompared, because a technique of its is not through its schedule."""
        if rung not in self._main:
            return unit not in self._compared
        one = self.units[unit]
        known = one.step_at(rung)
        if known is not None:
            return known < one.judged_from
        found = [self._at((unit, seed), rung) for seed in one.seeds]
        return any(report is not None and report.step < one.judged_from for report in found)

    def _at(self, key: Key, rung: float) -> Report | None:
        """Give a trial's first evaluation at or beyond a rung; one that finished stands with its last."""
        reports = self._reports.get(key, [])
        index = bisect.bisect_left(reports, rung, key=lambda report: report.position)
        if index < len(reports):
            return reports[index]
        return reports[-1] if reports and self._gone.get(key) == "finished" else None

    def _advance(self) -> list[Decision]:
        made: list[Decision] = []
        while True:
            self._promote()
            if not self._living:
                self._dismiss()
                self._index = len(self.rungs)
                return made
            if self.rung is None or self._missing:
                return made
            if self.rung in self._main:
                self._dismiss()
            made.append(self._decide(self.rung))
            self._index += 1
            while self.rung is not None and self.rung not in self._main and not self._tied:
                self._index += 1
            self._open()

    def _count(self) -> None:
        members = ((unit, seed) for unit in self._alive for seed in self.units[unit].seeds)
        self._living = sum(member not in self._gone for member in members)

    def _dismiss(self) -> None:
        self._reasons.update(self._reserve)
        self._reserve = {}

    def _promote(self) -> None:
        """Let the best of the reserve take the places of survivors that failed."""
        if not self._vacancy:
            return
        self._vacancy, before = False, len(self._reserve)
        while self._reserve and sum(map(self._holds_place, self._standing)) < self._places:
            unit = next(iter(self._reserve))
            del self._reserve[unit]
            self._alive.add(unit)
            self._compared.add(unit)
            self._standing.append(unit)
        if len(self._reserve) < before:
            self._count()
            self._open()

    def _holds_place(self, unit: str) -> bool:
        return any(self._gone.get((unit, seed)) != "failed" for seed in self.units[unit].seeds)

    def _decide(self, rung: float) -> Decision:
        skipped = sorted(unit for unit in self._alive if self._skips(unit, rung))
        scores = {unit: found for unit in self._alive.difference(skipped) if (found := self._scores(unit, rung))}
        ranked = [unit for _, unit in sorted((value, unit) for unit, value in standings(scores).items())]
        keep = math.ceil(len(ranked) / self.factor) if rung in self._main else self._places
        best, rest = ranked[:keep], ranked[keep:]
        ties = [unit for unit in rest if self._tie(difference(scores[unit], scores[best[-1]]))]
        spared = [unit for unit in rest if unit not in ties and self.units[unit].protected]
        survivors = [unit for unit in ranked if unit in {*best, *ties, *spared}]
        losers = [unit for unit in rest if unit not in survivors]
        named = {unit: self._text(rung, scores[unit], scores[best[-1]], keep, len(ranked)) for unit in losers}
        self._alive, self._compared = {*survivors, *skipped}, set(survivors)
        self._reserve = named | self._reserve
        self._places, self._standing, self._tied, self._vacancy = keep, [*best, *ties], bool(ties), True
        self._count()
        return Decision(rung, tuple(survivors), named, tuple(skipped))

    def _scores(self, unit: str, rung: float) -> dict[int, Score]:
        """Give the scores of the seeds that reached a rung."""
        found = {seed: self._at((unit, seed), rung) for seed in self.units[unit].seeds}
        return {seed: report.score for seed, report in found.items() if report is not None}

    def _tie(self, gap: Difference | None) -> bool:
        """Say whether a gap is too small to prune for; without a common seed there is none to go by."""
        if gap is None:
            return True
        return gap.mean <= (gap.noise(self._noise) if self._noise else 0.0)

    def _text(
        self, rung: float, mine: Mapping[int, Score], theirs: Mapping[int, Score], keep: int, count: int
    ) -> str:
        common = mine.keys() & theirs.keys()
        here, there = (self._sign * math.fsum(of[s].value for s in common) / len(common) for of in (mine, theirs))
        return f"{self._name(rung)}: {self.metric} {here:.4g} behind {there:.4g} (kept best {keep} of {count})"

    def _name(self, rung: float) -> str:
        return f"rung {rung:g}" + ("" if self._clock == "steps" else f" {self._clock.replace('_', '-')}")
