"""Turn step durations into batches and samples per second."""

from __future__ import annotations

from array import array

import numpy as np


class Throughput:
    """Accumulate durations of training steps, leaving out the first ones.

    Feed only training steps: evaluation and checkpoint time never enters. The median makes a single pause
    harmless.

    Units: durations in seconds.
    Raises: ValueError for a batch size below 1, a negative warm-up, or a duration that is not positive and
        finite.
    """

    def __init__(self, batch_size: int, *, warmup_steps: int = 5) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps must not be negative, got {warmup_steps}")
        self.batch_size = batch_size
        self.warmup_steps = warmup_steps
        self._seen = 0
        self._durations = array("d")

    def add(self, seconds: float) -> None:
        """Record the duration of one step; warm-up steps are counted and dropped."""
        if not (np.isfinite(seconds) and seconds > 0):
            raise ValueError(f"step duration must be positive and finite, got {seconds}")
        self._seen += 1
        if self._seen > self.warmup_steps:
            self._durations.append(seconds)

    @property
    def num_steps(self) -> int:
        """Count the measured steps, without warm-up."""
        return len(self._durations)

    @property
    def batches_per_second(self) -> float:
        """Return the inverse of the median step duration."""
        return float(1.0 / np.median(self._measured()))

    @property
    def samples_per_second(self) -> float:
        """Return batches per second times the global batch size."""
        return self.batches_per_second * self.batch_size

    @property
    def batches_per_second_iqr(self) -> float:
        """Return the interquartile range of the per-step rates."""
        low, high = np.quantile(1.0 / self._measured(), [0.25, 0.75])
        return float(high - low)

    def summary(self) -> dict[str, float]:
        """Return every figure by name; the spreads are interquartile ranges."""
        return {
            "batches_per_second": self.batches_per_second,
            "batches_per_second_iqr": self.batches_per_second_iqr,
            "samples_per_second": self.samples_per_second,
            "samples_per_second_iqr": self.batches_per_second_iqr * self.batch_size,
            "measured_steps": float(self.num_steps),
        }

    def _measured(self) -> np.ndarray:
        if not self._durations:
            raise ValueError(
                f"throughput needs more steps than the {self.warmup_steps} of its warm-up, got {self._seen}"
            )
        return np.asarray(self._durations)
