"""Throughput from given durations; no clock."""

from __future__ import annotations

import math

import pytest

from evaluation.throughput import Throughput


def fed(durations: list[float], *, warmup_steps: int = 0) -> Throughput:
    found = Throughput(8, warmup_steps=warmup_steps)
    for seconds in durations:
        found.add(seconds)
    return found


def test_median_rates() -> None:
    found = fed([0.5, 0.25, 0.2])
    assert found.batches_per_second == pytest.approx(4)
    assert found.samples_per_second == pytest.approx(32)
    assert found.num_steps == 3


def test_warm_up_is_left_out() -> None:
    found = fed([100.0, 100.0, 0.5, 0.5], warmup_steps=2)
    assert found.batches_per_second == pytest.approx(2)
    assert found.num_steps == 2


def test_one_pause_moves_nothing() -> None:
    found = fed([0.1] * 9 + [60.0])
    assert found.batches_per_second == pytest.approx(10)
    assert found.batches_per_second_iqr == pytest.approx(0)


def test_spread_is_the_interquartile_range_of_rates() -> None:
    found = fed([1 / rate for rate in (1, 2, 3, 4, 5)]).summary()
    assert found["batches_per_second_iqr"] == pytest.approx(2)
    assert found["samples_per_second_iqr"] == pytest.approx(16)
    assert found["measured_steps"] == 5


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_refuses_impossible_durations(seconds: float) -> None:
    with pytest.raises(ValueError, match="step duration must be positive and finite"):
        Throughput(1).add(seconds)


def test_refuses_to_guess_without_measurements() -> None:
    with pytest.raises(ValueError, match="more steps than the 3 of its warm-up, got 2"):
        _ = fed([0.1, 0.1], warmup_steps=3).batches_per_second


def test_refuses_bad_settings() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Throughput(0)
    with pytest.raises(ValueError, match="warmup_steps must not be negative, got -1"):
        Throughput(1, warmup_steps=-1)
