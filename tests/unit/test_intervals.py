"""Intervals cover what they promise."""

import numpy as np
import pytest

from quantwatt import intervals


@pytest.mark.parametrize("n", [2, 3, 8])
def test_students_interval_of_a_few_values_covers_95_percent(n):
    rng = np.random.default_rng(n)
    found = [intervals.student_mean(rng.normal(10, 1, n)) for _ in range(4000)]
    assert np.mean([low <= 10 <= high for _, low, high in found]) == pytest.approx(0.95, abs=0.012)


def test_ratio_of_equal_configurations_is_told_apart_in_5_percent():
    rng = np.random.default_rng(0)
    ratios = [intervals.student_ratio(*rng.normal(10, 0.5, (2, 8))) for _ in range(4000)]
    assert np.mean([low <= 1 <= high for _, low, high in ratios]) == pytest.approx(0.95, abs=0.012)
    value, low, high = intervals.student_ratio([5.0, 5.1, 4.9], [10.0, 10.1, 9.9])
    assert value == pytest.approx(0.5) and low < value < high


def test_ratio_uses_the_degrees_of_freedom_of_both_sides():
    noisy, calm = [10.0, 12.0, 8.0], [10.0, 10.0, 10.0, 10.01, 9.99, 10.0]
    _, low, high = intervals.student_ratio(noisy, calm)
    _, alone_low, alone_high = intervals.student_mean(noisy)
    assert high - low == pytest.approx((alone_high - alone_low) / 10, rel=0.25)  # the calm side adds almost nothing


def test_one_value_has_no_interval_and_equal_values_have_one_of_no_width():
    assert np.isnan(intervals.student_mean([3.0])[1:]).all()
    assert np.isnan(intervals.student_ratio([3.0], [1.0, 2.0])[1:]).all()
    assert intervals.student_ratio([2.0, 2.0], [1.0, 1.0]) == (2.0, 2.0, 2.0)


def test_bootstrap_of_many_values_agrees_with_the_normal_interval():
    values = np.random.default_rng(1).normal(5, 2, 500)
    mean, low, high = intervals.bootstrap_mean(values)
    assert mean == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * values.std(ddof=1) / 500**0.5, rel=0.05)
    median, low, high = intervals.bootstrap_median(values)
    assert low < median == np.median(values) < high


def test_a_biased_statistic_keeps_its_value_inside():
    sample = np.random.default_rng(2).normal(size=200)
    value, low, high = intervals.bootstrap_statistic(lambda index: np.ptp(sample[index]), 200, 500)
    assert value == np.ptp(sample) and low <= value <= high  # resamples can only shrink a range
