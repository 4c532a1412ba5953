"""Confidence intervals have their nominal coverage."""

import numpy as np
import pytest

from quantwatt import intervals


@pytest.mark.parametrize("n", [2, 3, 8])
def test_students_interval_of_a_few_values_covers_95_percent(n):
    rng = np.random.default_rng(n)
    found = [intervals.student_mean(rng.normal(10, 1, n)) for _ in range(4000)]
    assert np.mean([low <= 10 <= high for _, low, high in found]) == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize(("processes", "spread", "noise"), [(4, 0.0, 0.02), (4, 0.02, 0.005), (3, 0.02, 0.02)])
def test_equal_configurations_are_told_apart_in_5_percent(processes, spread, noise):
    """Blocks that are nested in processes, which take turns under one drift."""
    rng, covered = np.random.default_rng(0), []
    for _ in range(4000):
        drift = rng.normal(0, 0.1, processes)
        sides = [
            [np.exp(drift[i] + rng.normal(0, spread) + rng.normal(0, noise, 2)) for i in range(processes)]
            for _ in range(2)
        ]
        _, low, high = intervals.ratio_of_turns(*sides)
        covered.append(low <= 1 <= high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.012)  # nor in fewer, which would hide what is there


def test_processes_are_pairs_and_drift_between_them_cancels():
    drift = [1.0, 1.3, 0.8, 1.1]
    mine, other = ([[level * d * (1 + e) for e in (-0.001, 0.001)] for d in drift] for level in (5.0, 10.0))
    value, low, high = intervals.ratio_of_turns(mine, other)
    assert value == pytest.approx(0.5) == low == high
    _, low, high = intervals.ratio_of_turns(mine, other[::-1])  # not the neighbours
    assert high - low > 0.1


def test_more_observations_cannot_stand_for_more_processes():
    """A wide spread between two processes stays wide, however many blocks each has."""
    _, low, high = intervals.mean_of_processes([np.full(100, 10.0), np.full(100, 11.0)])
    assert high - low > 5 and low * high == pytest.approx(10.5**2) and low > 0


def test_with_one_process_its_observations_are_the_units():
    values = np.random.default_rng(3).normal(10, 1, 8)
    mean, low, high = intervals.mean_of_processes([values])
    assert (mean, low, high) == pytest.approx(intervals.student_mean(values), rel=0.02)
    assert np.isnan(intervals.mean_of_processes([[3.0]])[1:]).all()


def test_the_mean_of_medians():
    value, low, high = intervals.mean_of_processes([[1.0, 2.0, 90.0], [1.1, 2.1, 80.0]], np.median)
    assert value == pytest.approx(2.05) and low < value < high


def test_one_value_has_no_interval_and_equal_values_have_one_of_no_width():
    assert np.isnan(intervals.student_mean([3.0])[1:]).all()
    assert np.isnan(intervals.ratio_of_pairs([[3.0]])[1:]).all()
    assert intervals.ratio_of_pairs([[np.log(2), np.log(2)]]) == pytest.approx((2.0, 2.0, 2.0))


def test_the_location_of_hodges_and_lehmann():
    assert intervals.hodges_lehmann([1.0, 2.0, 3.0]) == 2 and intervals.hodges_lehmann([5.0]) == 5
    assert intervals.hodges_lehmann([1.0, 2.0, 10.0]) == pytest.approx(3.75)  # of 1, 1.5, 2, 5.5, 6, 10
    values = np.random.default_rng(0).normal(0, 1, 30)
    burst = np.where(np.arange(30) < 4, values + 50, values)
    assert abs(intervals.hodges_lehmann(burst) - values.mean()) < 0.5 < burst.mean()


def test_bootstrap_of_many_values_agrees_with_the_normal_interval():
    values = np.random.default_rng(1).normal(5, 2, 500)
    mean, low, high = intervals.bootstrap_mean(values)
    assert mean == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * values.std(ddof=1) / 500**0.5, rel=0.05)


def test_a_biased_statistic_keeps_its_value_inside():
    sample = np.random.default_rng(2).normal(size=200)
    value, low, high = intervals.bootstrap_statistic(lambda index: np.ptp(sample[index]), 200, 500)
    assert value == np.ptp(sample) and low <= value <= high  # resamples can only shrink a range
