"""Differences and ratios of two figures that were found independently, from the interval of each.

The variances add up. The degrees of freedom of the sum are those of Welch and Satterthwaite: with few processes on both
sides, a normal distribution's interval would be too narrow, and that of the smaller number alone too wide.

An interval of `intervals.ratio_of_pairs` that may end at a width has a level above 95 %, so that 95 % of such intervals
hold the true value. It is read as one of 95 %: the standard error is then larger by what looking early costs. In
simulation the intervals of two such ratios cover the truth in 94 to 98 % (tests/unit/test_method_pairs.py).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from quantwatt.intervals import LEVEL

MANY = 1e9  # degrees of freedom of an interval over images: a normal distribution

Floats = Any  # a number, or an array of them [n]


def standard_error(low: Floats, high: Floats, degrees: Floats) -> Floats:
    """The standard errors behind 95 % intervals by Student's t.

    Args:
        low, high: [n] bounds, of ratios their logarithms; degrees: [n] of freedom.
    """
    return (np.asarray(high) - np.asarray(low)) / 2 / quantile((1 + LEVEL) / 2, degrees)


def degrees_of(processes: float | None, pairs: float | None = None, disturbed: float | None = None) -> int:
    """Degrees of freedom of a measured ratio's interval: over processes, or over the pairs of a single one.

    Where some processes count for nothing, because others disturbed all of their pairs, it is fewer than this. Then the
    interval of a ratio of two ratios gets wider than it has to be, never narrower.

    Args:
        processes, pairs, disturbed: numbers of them; None or NaN where unknown.
    """
    processes, pairs, disturbed = (0 if number is None or number != number else int(number)
                                   for number in (processes, pairs, disturbed))  # fmt: skip
    if processes > 1:
        return processes - 1
    return max(1, (pairs - disturbed if pairs > disturbed else pairs) - 1)


def added(error: Floats, degrees: Floats, other_error: Floats, other_degrees: Floats) -> tuple[Floats, Floats]:
    """(standard errors, degrees of freedom) of differences of independent figures; exact ones have the error 0."""
    one, two = np.square(error), np.square(other_error)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.square(one + two) / (np.square(one) / degrees + np.square(two) / other_degrees)
    return np.sqrt(one + two), np.where(one + two > 0, found, MANY)


def difference(
    first: Sequence[Floats],
    second: Sequence[Floats],
    degrees: Floats = MANY,
    other_degrees: Floats = MANY,
) -> tuple[Floats, Floats, Floats]:
    """(first minus second, low, high), with 95 % intervals.

    Args:
        first, second: (value, low, high), each [n]; a value without an interval (NaN) gives none.
        degrees, other_degrees: of freedom of the two intervals; MANY for those over images.
    """
    errors = standard_error(*first[1:], degrees), standard_error(*second[1:], other_degrees)
    error, freedom = added(errors[0], degrees, errors[1], other_degrees)
    value, reach = np.asarray(first[0]) - np.asarray(second[0]), quantile((1 + LEVEL) / 2, freedom) * error
    return value, value - reach, value + reach


def ratio(
    first: Sequence[Floats],
    second: Sequence[Floats],
    degrees: Floats = MANY,
    other_degrees: Floats = MANY,
) -> tuple[Floats, Floats, Floats]:
    """(first over second, low, high): the `difference` of their logarithms; arguments as there."""
    one, two = (tuple(np.log(bound) for bound in side) for side in (first, second))
    value, low, high = difference(one, two, degrees, other_degrees)
    return np.exp(value), np.exp(low), np.exp(high)


def quantile(share: float, degrees: Floats) -> Floats:
    """Of Student's t; of the normal distribution from MANY degrees of freedom on."""
    from scipy.special import ndtri, stdtrit

    return np.where(np.asarray(degrees) >= MANY, ndtri(share), stdtrit(np.minimum(degrees, MANY), share))


def p_above(value: Floats, bound: Floats, error: Floats, degrees: Floats) -> Floats:
    """The chance of a figure at least so large where the truth is the bound; 0 or 1 where the error is 0."""
    from scipy.special import stdtr

    distance = np.asarray(value, np.float64) - bound
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.asarray(error) > 0, stdtr(degrees, -distance / error), np.where(distance > 0, 0.0, 1.0))
