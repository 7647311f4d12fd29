"""Cohort successive halving: whole rungs are compared, so the order of arrival decides nothing.

A unit is a cell: its seeds are judged together, by their mean. No Ray here, no clock, no randomness.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

NOISE_FACTOR = 1.0
"""How many standard errors of a difference still count as a tie with the worst survivor.

The errors are added as if independent. Trials share prompts, noise and reference, so the true error of a
difference is smaller, and the rule errs towards keeping a unit.
"""

Mode = Literal["min", "max"]


@dataclass(frozen=True)
class Score:
    """A unit's standing at a rung, the metric turned so that less is better."""

    value: float
    se: float


@dataclass(frozen=True)
class Decision:
    """What became of one rung's cohort; `losers` gives each the reason in words."""

    step: int
    survivors: tuple[str, ...]
    losers: Mapping[str, str]


class Cohort:
    """Compare units at rungs, each rung only when every living member has reported or left.

    Args:
        units: Unit -> its seeds.
        protected: Units that no rung takes out (the baseline).
        noise_aware: A unit whose gap to the worst survivor is below the noise stays.
    """

    def __init__(
        self,
        units: Mapping[str, Sequence[int]],
        rungs: Sequence[int],
        *,
        factor: float,
        metric: str = "cmmd",
        mode: Mode = "min",
        protected: Collection[str] = (),
        noise_aware: bool = True,
    ) -> None:
        self.rungs, self.factor, self.metric = tuple(rungs), factor, metric
        self._sign = 1.0 if mode == "min" else -1.0
        self._seeds = {unit: tuple(seeds) for unit, seeds in units.items()}
        self._protected, self._noise_aware = frozenset(protected), noise_aware
        self._alive = set(units)
        self._values: dict[tuple[str, int], dict[int, Score]] = {}
        self._gone: set[tuple[str, int]] = set()
        self._reasons: dict[str, str] = {}
        # Members of the open rung that it waits for; kept up to date so that a report costs O(1).
        self._missing: set[tuple[str, int]] = set()
        self._index = 0
        self._open()

    def record(
        self, unit: str, seed: int, step: int, value: float, se: float | None = None
    ) -> list[Decision]:
        """Take a report; returns the decisions it completes. A value that is no number is a failure."""
        if not math.isfinite(value):
            return self.leave(unit, seed)
        noise = se if se is not None and math.isfinite(se) else 0.0
        self._values.setdefault((unit, seed), {})[step] = Score(self._sign * value, noise)
        if step == self.rung:
            self._missing.discard((unit, seed))
        return self._advance()

    def leave(self, unit: str, seed: int) -> list[Decision]:
        """Take out a trial that will report no more; returns the decisions that waited for it."""
        self._gone.add((unit, seed))
        self._missing.discard((unit, seed))
        return self._advance()

    @property
    def rung(self) -> int | None:
        """The step of the rung that is open, None when all are decided."""
        return self.rungs[self._index] if self._index < len(self.rungs) else None

    @property
    def open_rungs(self) -> tuple[int, ...]:
        """The rungs not decided yet."""
        return self.rungs[self._index :]

    @property
    def missing(self) -> frozenset[tuple[str, int]]:
        """The members (unit, seed) that the open rung waits for."""
        return frozenset(self._missing)

    def waits_at(self, step: int) -> bool:
        """Say whether a trial that stands at `step` has to wait for a decision."""
        return self.rung is not None and step >= self.rung

    def reason(self, unit: str) -> str | None:
        """Say why a unit was taken out, None while it lives."""
        return self._reasons.get(unit)

    def _open(self) -> None:
        step = self.rung
        if step is not None:
            self._missing = {
                (unit, seed)
                for unit in self._alive
                for seed in self._seeds[unit]
                if (unit, seed) not in self._gone and step not in self._values.get((unit, seed), {})
            }

    def _advance(self) -> list[Decision]:
        made = []
        while self.rung is not None and not self._missing:
            decision = self._decide(self.rung)
            self._alive = set(decision.survivors)
            self._reasons.update(decision.losers)
            made.append(decision)
            self._index += 1
            self._open()
        return made

    def _decide(self, step: int) -> Decision:
        scores = {unit: score for unit in self._alive if (score := self._score(unit, step)) is not None}
        ranked = sorted(scores, key=lambda unit: (scores[unit].value, unit))
        keep = math.ceil(len(ranked) / self.factor)
        if keep >= len(ranked):
            return Decision(step, tuple(ranked), {})
        worst = scores[ranked[keep - 1]]
        survivors = ranked[:keep] + [
            unit for unit in ranked[keep:] if self._spared(unit, scores[unit], worst)
        ]
        losers = {
            unit: self._text(step, scores[unit], worst, keep, len(ranked))
            for unit in ranked
            if unit not in survivors
        }
        return Decision(step, tuple(survivors), losers)

    def _score(self, unit: str, step: int) -> Score | None:
        """Average the seeds that reported; their errors are independent draws of the same metric."""
        rows = [self._values.get((unit, seed), {}).get(step) for seed in self._seeds[unit]]
        found = [row for row in rows if row is not None]
        if not found:
            return None
        se = math.sqrt(math.fsum(row.se**2 for row in found)) / len(found)
        return Score(math.fsum(row.value for row in found) / len(found), se)

    def _spared(self, unit: str, score: Score, worst: Score) -> bool:
        noise = NOISE_FACTOR * math.hypot(score.se, worst.se) if self._noise_aware else 0.0
        return unit in self._protected or score.value - worst.value <= noise

    def _text(self, step: int, score: Score, worst: Score, keep: int, count: int) -> str:
        mine, theirs = self._sign * score.value, self._sign * worst.value
        return f"rung {step}: {self.metric} {mine:.4g} behind {theirs:.4g} (kept best {keep} of {count})"
