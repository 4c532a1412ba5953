"""Confidence intervals; no other module computes any.

For many observations (images) a percentile bootstrap is used. For a few observations (processes) percentile intervals
are too narrow, with a coverage of 90 % for eight values and 75 % for three: there, Student's t is used.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Values = Sequence[float] | np.ndarray  # [n] observations

RESAMPLES = 10_000
LEVEL = 0.95
COUNTS = 2**22  # bootstrap counts (how often each value is drawn) that are in memory at once


def bootstrap_mean(values: Values, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float, float]:
    """Percentile bootstrap of a mean.

    Args:
        values: [n] independent observations, one per image.
    Returns:
        (mean, low, high): the mean and its 95 % interval; the bounds are NaN for fewer than two values.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return float(values.mean()), float("nan"), float("nan")
    low, high = _bounds(_resampled_means(values[:, None], resamples, seed)[:, 0])
    return float(values.mean()), low, high


def student_mean(values: Values, level: float = LEVEL) -> tuple[float, float, float]:
    """Mean of a few observations with its interval by Student's t.

    Args:
        values: [n] independent observations (fresh processes).
    Returns:
        (mean, low, high); the bounds are NaN for fewer than two values.
    """
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = _student(len(values) - 1, level) * values.std(ddof=1) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def hodges_lehmann(values: Values) -> float:
    """The median of the means of all pairs of values, each with itself too (Hodges and Lehmann, 1963).

    It is nearly as precise as the mean of normal values, and hardly moved by a burst that doubles a few of them.

    Args:
        values: [n] observations; memory grows with n².
    """
    values = np.asarray(values, dtype=np.float64)
    first, second = np.triu_indices(len(values))
    return float(np.median((values[first] + values[second]) / 2))


def mean_of_processes(
    processes: Sequence[Values], statistic: Callable[..., Any] = np.mean
) -> tuple[float, float, float]:
    """Mean over processes of a statistic of each, with its interval by Student's t on the logarithmic scale.

    The processes are the independent units: the variance between them includes that of the observations within.

    Args:
        processes: [n] positive observations of each fresh process; n may differ.
        statistic: np.mean or np.median, applied to one process's observations.
    Returns:
        (mean, low, high). For a single process the interval is that of the mean of its observations, and does not hold
        what differs between processes; the bounds are NaN for a single observation.
    """
    values = np.array([statistic(process) for process in processes])
    logs, low, high = student_mean(np.log(values if len(values) > 1 else processes[0]))
    mean = float(values.mean())
    return mean, mean * math.exp(low - logs), mean * math.exp(high - logs)


def ratio_of_pairs(processes: Sequence[Values], level: float = LEVEL) -> tuple[float, float, float]:
    """Ratio of two configurations that took turns in each of several processes.

    The estimate of a process is the Hodges-Lehmann estimate of its pairs; the interval is Student's t over the
    processes' estimates. `make bench-intervals` compares it with others under drift and bursts of other programs. Where
    eight processes differ by 5 %, t, signed ranks and a bootstrap of all pairs, which take them for independent, cover
    78 to 92 %, and this one 94 to 97.5 %. So do t over processes' means and a mixed model, but where there are bursts
    their intervals are up to twice as wide.

    Args:
        processes: [n] logarithms of the pairs' ratios, of each process; n may differ. For a single process the interval
            is Student's t over its pairs: it does not hold what differs between processes.
        level: 0.95 where the number of processes was fixed, else `looks_level`.
    Returns:
        (ratio, low, high); the bounds are NaN for a single process with a single pair.
    """
    if len(processes) == 1:
        ratio, low, high = student_mean(processes[0], level)
    else:
        ratio, low, high = student_mean([hodges_lehmann(pairs) for pairs in processes], level)
    return math.exp(ratio), math.exp(low), math.exp(high)


def ratio_of_turns(
    turns: Sequence[Values], baseline: Sequence[Values], statistic: Callable[..., Any] = np.mean
) -> tuple[float, float, float]:
    """Ratio of two configurations of which each turn was measured next to the same turn of the other.

    Args:
        turns, baseline: lists of equal length of [n] positive observations; statistic: of one turn's observations.
    Returns:
        (ratio, low, high), as `ratio_of_pairs` of one process whose pairs are the turns.
    """
    logs = [math.log(statistic(mine) / statistic(other)) for mine, other in zip(turns, baseline, strict=True)]
    return ratio_of_pairs([logs])


FIRST_LOOK = 4  # processes: fewer have an interval that is wide whatever was measured
LOOKS_LEVEL = 0.965


def looks_level(processes: int) -> float:
    """Level of each interval of `ratio_of_pairs`, if measuring stops as soon as one of them is narrow enough.

    Who looks after each process from FIRST_LOOK on, and stops at a width, stops more often where the variance happens
    to be underestimated: intervals of 95 % would cover 92 to 95 %. Intervals of LOOKS_LEVEL cover 94 to 97 %,
    for up to 16 processes (tests/unit/test_coverage.py).

    Args:
        processes: the largest number of processes.
    """
    return LOOKS_LEVEL if processes > FIRST_LOOK else LEVEL


def bootstrap_ratios(
    numerators: np.ndarray,
    denominators: Values,
    value_of: Callable[[np.ndarray], Any],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Percentile bootstrap of a function of ratios of sums, such as nats per token over windows of different lengths.

    Args:
        numerators: [n, k] of independent observations (sentences, windows); denominators: [n].
        value_of: function of ratios [..., k] that returns values [...].
    Returns:
        (value, low, high), as `bootstrap_mean` returns.
    """
    values = np.column_stack([numerators, denominators]).astype(np.float64)  # [n, k + 1]

    def value(sums):
        return value_of(sums[..., :-1] / sums[..., -1:])

    if len(values) < 2:
        return float(value(values.sum(0))), math.nan, math.nan
    return float(value(values.sum(0))), *_bounds(value(_resampled_means(values, resamples, seed)))


def bootstrap_statistic(
    statistic: Callable[[np.ndarray], float], n: int, resamples: int, seed: int = 0
) -> tuple[float, float, float]:
    """Interval of a statistic of a whole sample, such as a Frechet distance.

    A resample repeats images, which biases a distance between distributions upwards. The percentiles of the resamples
    are therefore centred: their deviations from the resamples' mean are added to the estimate.

    Args:
        statistic: function of an index array [n] into the sample, returning a float.
        n: sample size.
        resamples: number of resamples; the statistic is evaluated once for each and once for the sample.
    Returns:
        (value, low, high).
    """
    rng = np.random.default_rng(seed)
    value = float(statistic(np.arange(n)))
    draws = np.array([statistic(rng.integers(n, size=n)) for _ in range(resamples)], dtype=np.float64)
    low, high = _bounds(draws - draws.mean())
    return value, value + low, value + high


def half_samples(
    statistic: Callable[[np.ndarray], float], n: int, resamples: int, seed: int = 0
) -> tuple[float, float, float]:
    """Interval of a statistic of a whole sample that copies would distort, such as distances to neighbours.

    It is the delete-d jackknife (Shao and Wu, Annals of Statistics 17, 1989) with d half of the sample, where the
    deviations of halves from their mean spread as those of whole samples do.

    Args:
        statistic: function of an index array into the sample, returning a float.
        n: sample size.
        resamples: number of halves, drawn without replacement.
    Returns:
        (value, low, high).
    """
    rng = np.random.default_rng(seed)
    value = float(statistic(np.arange(n)))
    draws = np.array([statistic(np.sort(rng.permutation(n)[: n // 2])) for _ in range(resamples)], dtype=np.float64)
    low, high = _bounds(draws - draws.mean())
    return value, value + low, value + high


def _resampled_means(values, resamples, seed):  # [n, k] -> [resamples, k]
    rng = np.random.default_rng(seed)
    n = len(values)
    shares, at_once = np.full(n, 1 / n), max(1, COUNTS // n)  # the counts of all resamples of 50,000 images are 4 GB
    sizes = [min(at_once, resamples - first) for first in range(0, resamples, at_once)]
    return np.concatenate([rng.multinomial(n, shares, size=size) @ values for size in sizes]) / n


def _bounds(draws):
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def _student(degrees, level):
    """Two-sided quantile of Student's t."""
    from scipy.special import stdtrit  # imported late: scores of many images, which do without it, take less than that

    return float(stdtrit(degrees, (1 + level) / 2))
