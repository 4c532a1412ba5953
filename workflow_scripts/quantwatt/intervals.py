"""Confidence intervals: the only place that draws one.

Many observations (images) are resampled. A handful (blocks, processes) are not: the percentile bootstrap of eight
values covers 90 % where it promises 95, of three 75; there, Student's t is used.
"""

import math

import numpy as np
from scipy.special import stdtrit

RESAMPLES = 10_000
LEVEL = 0.95


def bootstrap_mean(values, resamples=RESAMPLES, seed=0):
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


def bootstrap_median(values, resamples=RESAMPLES, seed=0):
    """Percentile bootstrap of a median, as `bootstrap_mean`."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return float(np.median(values)), float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    medians = np.median(values[rng.integers(len(values), size=(resamples, len(values)))], axis=1)
    low, high = _bounds(medians)
    return float(np.median(values)), low, high


def student_mean(values):
    """Mean of a few observations with its interval by Student's t.

    Args:
        values: [n] independent observations (blocks, fresh processes).
    Returns:
        (mean, low, high); the bounds are NaN for fewer than two values.
    """
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = _student(len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def student_ratio(values, baseline):
    """Ratio of two means of a few observations each, on the logarithmic scale.

    The variance of the logarithm of a mean is that of the mean over its square (delta method); the degrees of freedom
    are Welch's.

    Args:
        values, baseline: [n] and [m] positive observations of the two configurations.
    Returns:
        (ratio, low, high); the bounds are NaN where a side has fewer than two values.
    """
    values, baseline = np.asarray(values, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    ratio = float(values.mean() / baseline.mean())
    if len(values) < 2 or len(baseline) < 2:
        return ratio, math.nan, math.nan
    variances = [side.var(ddof=1) / len(side) / side.mean() ** 2 for side in (values, baseline)]
    if sum(variances) == 0:
        return ratio, ratio, ratio
    weights = [v**2 / (len(side) - 1) for v, side in zip(variances, (values, baseline), strict=True)]
    half = _student(sum(variances) ** 2 / sum(weights)) * math.sqrt(sum(variances))
    return ratio, ratio * math.exp(-half), ratio * math.exp(half)


def bootstrap_ratios(numerators, denominators, value_of, resamples=RESAMPLES, seed=0):
    """Percentile bootstrap of a function of ratios of sums, such as nats per token of windows that differ in tokens.

    Args:
        numerators: [n, k] of independent observations (sentences, windows); denominators: [n].
        value_of: function of ratios [..., k] that returns values [...].
    Returns:
        (value, low, high), as `bootstrap_mean`.
    """
    values = np.column_stack([numerators, denominators]).astype(np.float64)  # [n, k + 1]

    def value(sums):
        return value_of(sums[..., :-1] / sums[..., -1:])

    if len(values) < 2:
        return float(value(values.sum(0))), math.nan, math.nan
    return float(value(values.sum(0))), *_bounds(value(_resampled_means(values, resamples, seed)))


def bootstrap_statistic(statistic, n, resamples, seed=0):
    """Interval of a statistic of a whole sample, such as a Frechet distance.

    A resample repeats images, which shifts a distance between distributions upwards; the interval is therefore
    the spread of the resamples about their own mean, laid about the estimate.

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
    counts = rng.multinomial(n, np.full(n, 1 / n), size=resamples)  # [resamples, n]
    return counts @ values / n


def _bounds(draws):
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def _student(degrees):
    """Two-sided quantile of Student's t at LEVEL."""
    return float(stdtrit(degrees, (1 + LEVEL) / 2))
