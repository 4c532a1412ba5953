"""Confidence intervals; no other module computes any.

For many observations (images) a percentile bootstrap is used. For a few observations (energy blocks, processes)
percentile intervals are too narrow, with a coverage of 90 % for eight values and 75 % for three: there, Student's t is
used.
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


def student_mean(values: Values) -> tuple[float, float, float]:
    """Mean of a few observations with its interval by Student's t.

    Args:
        values: [n] independent observations (energy blocks, fresh processes).
    Returns:
        (mean, low, high); the bounds are NaN for fewer than two values.
    """
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = _student(len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def nested_mean(groups: Sequence[Values], statistic: Callable[..., Any] = np.mean) -> tuple[float, float, float]:
    """Mean over processes of a statistic per process, with its interval on the logarithmic scale.

    The processes are the independent units. The variance between processes already includes the variance of the blocks
    within a process; resampling blocks within resampled processes would count it twice (a hierarchical bootstrap of
    four equal processes covers 100 %).

    Args:
        groups: list of [n] positive observations, one array per fresh process; n may differ.
        statistic: np.mean or np.median, applied to one process's observations.
    Returns:
        (mean, low, high); for the bounds see `nested_ratio`.
    """
    values = np.array([statistic(group) for group in groups])
    half = _half(np.log(values), [(groups[0], statistic)])
    mean = float(values.mean())
    return mean, mean * math.exp(-half), mean * math.exp(half)


def nested_ratio(
    groups: Sequence[Values], baseline: Sequence[Values], statistic: Callable[..., Any] = np.mean
) -> tuple[float, float, float]:
    """Ratio of two configurations that were measured alternately, on the logarithmic scale.

    Process i of one configuration ran next to process i of the other. The interval is Student's t over the logarithms
    of the pairs' ratios, in which drift from pair to pair cancels. For a single pair the variance is estimated by a
    bootstrap of its observations.

    Args:
        groups, baseline: lists of equal length of [n] positive observations, one array per fresh process.
        statistic: np.mean or np.median, applied to one process's observations.
    Returns:
        (ratio, low, high); the bounds are NaN for a single process with fewer than two observations.
    """
    logs = np.array([math.log(statistic(m) / statistic(o)) for m, o in zip(groups, baseline, strict=True)])
    half = _half(logs, [(groups[0], statistic), (baseline[0], statistic)])
    ratio = math.exp(logs.mean())
    return ratio, ratio * math.exp(-half), ratio * math.exp(half)


def _half(logs, alone):
    """Half the width of the interval of the mean of `logs`, one per process.

    Args:
        alone: [(observations, statistic)] of the first process, used where there is only one process.
    """
    if len(logs) > 1:
        mean, _, high = student_mean(logs)
        return high - mean
    n = min(len(observations) for observations, _ in alone)
    if n < 2:
        return math.nan
    rng, variance = np.random.default_rng(0), 0.0
    for observations, statistic in alone:
        observations = np.asarray(observations, dtype=np.float64)
        draws = rng.integers(len(observations), size=(RESAMPLES, len(observations)))
        variance += np.log(statistic(observations[draws], axis=1)).var() * n / (n - 1)  # corrects its bias
    return _student(n - 1) * math.sqrt(variance)


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


def _student(degrees):
    """Two-sided quantile of Student's t at LEVEL."""
    from scipy.special import stdtrit  # imported late: scores of many images, which do without it, take less than that

    return float(stdtrit(degrees, (1 + LEVEL) / 2))
