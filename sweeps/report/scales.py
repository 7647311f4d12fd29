"""From figures to positions in a chart, and back to the few figures on its axes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from sweeps.leaderboard import figure

LOG_FROM = 20.0
"""Span from which on positive figures are drawn on a logarithmic axis."""


@dataclass(frozen=True)
class Scale:
    """Map `low`..`high` to `start`..`end`, linearly or by the logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Give a position, with two decimals: more than a screen can show."""
        low, high, value = map(math.log, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 2)

    def ticks(self, count: int = 5) -> list[tuple[float, str]]:
        """Give positions and labels of about `count` round figures."""
        values = _decades(self.low, self.high) if self.log else _round_steps(self.low, self.high, count)
        return [(self(value), figure(value, 3)) for value in values]


def scale_of(values: Iterable[float], start: float, end: float, *, log: bool = False, pad: float = 0.05) -> Scale:
    """Make a scale with a margin around some figures; logarithmic only if they are positive and span enough."""
    found = list(values)
    low, high = min(found, default=0.0), max(found, default=1.0)
    if log and low > 0 and high / low > LOG_FROM:
        margin = (high / low) ** pad
        return Scale(low / margin, high * margin, start, end, log=True)
    margin = pad * (high - low) or pad * abs(high) or 1.0
    return Scale(low - margin, high + margin, start, end)


def _round_steps(low: float, high: float, count: int) -> list[float]:
    raw = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step) + 1)]


def _decades(low: float, high: float) -> list[float]:
    factors = (1, 2, 5) if high / low < 1000 else (1,)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [v for e in exponents for f in factors if low <= (v := f * 10.0**e) <= high]
