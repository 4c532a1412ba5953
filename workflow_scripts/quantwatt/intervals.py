"""Confidence intervals: the only place that draws one.

Many observations (images) are resampled and the percentiles taken. Of a handful (blocks, processes) the percentiles
promise too much, 90 % for eight values and 75 % for three: there, Student's t is used, over the spread of the draws
where observations are nested.
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


def nested_mean(groups, statistic=np.mean, resamples=RESAMPLES, seed=0):
    """Mean over processes of a statistic of each, by the hierarchical bootstrap: processes, then what each observed.

    Args:
        groups: list of [n] positive observations, one array per fresh process; n may differ.
        statistic: np.mean or np.median, of one process's observations.
    Returns:
        (mean, low, high), as `nested_ratio`.
    """
    (means,), (value,) = _nested([groups], statistic, resamples, seed)
    low, high = _halves(np.log(means), len(groups), min(map(len, groups)))
    return value, value * math.exp(low), value * math.exp(high)


def nested_ratio(groups, baseline, statistic=np.mean, resamples=RESAMPLES, seed=0):
    """Ratio of two configurations that took turns, on the logarithmic scale, by the hierarchical bootstrap.

    Process i of one ran beside process i of the other, so both are drawn together and what drifts between the pairs
    cancels; observations inside a process are drawn for each side by itself. With n pairs the draws spread too little
    by sqrt(1 - 1/n) and have n - 1 degrees of freedom: the interval is that of Student's t over the corrected spread,
    which tests hold to its promise where the plain percentiles of four pairs cover 80 %.

    Args:
        groups, baseline: lists of equal length of [n] positive observations, one array per fresh process.
        statistic: np.mean or np.median, of one process's observations.
    Returns:
        (ratio, low, high); the bounds are NaN where one process has nothing to be drawn from.
    """
    (mine, other), (value, reference) = _nested([groups, baseline], statistic, resamples, seed)
    ratio = value / reference
    low, high = _halves(np.log(mine / other), len(groups), min(map(len, [*groups, *baseline])))
    return ratio, ratio * math.exp(low), ratio * math.exp(high)


def _nested(sides, statistic, resamples, seed):
    """Draws of each side's mean over processes, [sides][resamples], and the means themselves."""
    rng, n = np.random.default_rng(seed), len(sides[0])
    chosen = rng.integers(n, size=(resamples, n))  # the same processes for all sides
    draws, values = [], []
    for groups in sides:
        groups = [np.asarray(group, dtype=np.float64) for group in groups]
        picked = np.empty((resamples, n))
        for index, group in enumerate(groups):
            here = chosen == index
            drawn = rng.integers(len(group), size=(here.sum(), len(group)))
            picked[here] = statistic(group[drawn], axis=1)
        draws.append(picked.mean(axis=1))
        values.append(float(np.mean([statistic(group) for group in groups])))
    return draws, values


def _halves(draws, processes, observations):
    """(low, high) about the estimate; with one process, its observations are the units."""
    units = processes if processes > 1 else observations
    if units < 2:
        return math.nan, math.nan
    half = _student(units - 1) * float(draws.std()) * math.sqrt(units / (units - 1))
    return -half, half


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
