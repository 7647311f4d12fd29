"""Power against simulation and against the table of the literature review; measured noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from sweeps.power import ASSUMED, Noise, backwards, detectable, measured, power, seeds_for

TABLE = {  # percent of wrong orders at 1.3 % CoV, by gap in percent, for 1, 2, 3 and 5 seeds
    0.5: (39, 35, 32, 27),
    1.0: (29, 22, 17, 11),
    2.0: (14, 6, 3, 1),
    3.0: (5, 1, 0.3, 0),
}


@pytest.mark.parametrize("gap", TABLE)
def test_wrong_orders_are_those_of_the_simulated_table(gap):
    found = [100 * backwards(gap / 100, 0.013, seeds) for seeds in (1, 2, 3, 5)]
    assert found == pytest.approx(TABLE[gap], abs=0.7)


def simulated(gap, cov, seeds, level, number=40_000):
    """Train two cells of means 1 and 1 + gap under the same seeds, and test the paired differences."""
    rng = np.random.default_rng(11)
    first = 1 + cov * rng.standard_normal((number, seeds))
    second = 1 + gap + cov * rng.standard_normal((number, seeds))
    differences = second - first
    t = differences.mean(1) / (differences.std(1, ddof=1) / np.sqrt(seeds))
    return (np.abs(t) > stats.t.ppf(1 - level / 2, seeds - 1)).mean(), (t < 0).mean()


@pytest.mark.parametrize(
    ("gap", "seeds", "level"), [(0.03, 3, 0.05), (0.02, 5, 0.05), (0.05, 2, 0.05), (0.04, 5, 0.003)]
)
def test_power_against_simulation(gap, seeds, level):
    found, wrong = simulated(gap, 0.013, seeds, level)
    assert power(gap, 0.013, seeds, level) == pytest.approx(found, abs=0.008)
    assert backwards(gap, 0.013, seeds) == pytest.approx(wrong, abs=0.006)


@pytest.mark.parametrize("seeds", [2, 3, 5, 20])
def test_without_a_gap_the_power_is_the_level(seeds):
    assert power(0.0, 0.013, seeds) == pytest.approx(0.05, abs=1e-3)


@pytest.mark.parametrize(("shift", "freedom"), [(2.0, 4), (3.5, 10), (1.0, 30)])
def test_power_against_the_noncentral_t_distribution(shift, freedom):
    seeds, critical = freedom + 1, stats.t.ppf(0.975, freedom)
    expected = stats.nct.sf(critical, freedom, shift) + stats.nct.cdf(-critical, freedom, shift)
    assert power(shift * 0.013 * np.sqrt(2 / seeds), 0.013, seeds) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("comparisons", [1, 17, 9999])
def test_the_detectable_gap_has_the_wanted_power(seeds, comparisons):
    gap = detectable(0.013, seeds, comparisons)
    assert power(gap, 0.013, seeds, 0.05 / comparisons) == pytest.approx(0.8, abs=1e-3)


def test_one_seed_has_no_interval_and_more_seeds_tell_more():
    assert detectable(0.013, 1) is None
    gaps = [detectable(0.013, seeds) for seeds in range(2, 12)]
    assert gaps == sorted(gaps, reverse=True)
    needed = seeds_for(0.02, 0.013)
    assert power(0.02, 0.013, needed) >= 0.8 > power(0.02, 0.013, needed - 1)
    assert seeds_for(0.25, 0.013) == 2
    assert seeds_for(1e-6, 0.013) is None


def test_noise_is_measured_where_cells_have_several_seeds():
    assert measured({}) == measured({"a": [1.0]}) == ASSUMED
    rng = np.random.default_rng(3)
    values = {f"c{i}": 5 * (i + 1) * (1 + 0.02 * rng.standard_normal(3)) for i in range(400)}
    found = measured({**values, "single": [3.0]})
    assert (found.cells, found.freedom) == (400, 800)
    assert found.cov == pytest.approx(0.02, rel=0.06)
    assert measured({"a": [1.0, 1.0]}) == ASSUMED  # equal to the last digit is no measurement of noise
    assert measured({"a": [0.9, 1.1]}) == Noise(pytest.approx(np.sqrt(0.02)), 1, 1)
