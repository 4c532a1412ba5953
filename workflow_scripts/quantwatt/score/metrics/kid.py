"""Kernel distance of features, to the last bit as clean-fid computes it (Binkowski et al., arXiv 1801.01401)."""

import math

import numpy as np

from quantwatt.score.metrics import Score, Undefined
from quantwatt.score.mmd import Discrepancy

UNIT = "squared MMD"
PACKAGE = "clean-fid"  # whose distance it is; fid.py says why its function is repeated

RESAMPLES = 1000
SUBSETS, SUBSET_SIZE = 100, 1000  # clean-fid's defaults
MIN_IMAGES, MAX_IMAGES = 20, 10_000  # on each side, for an interval: it needs the kernel matrix of all pairs


def score(samples: np.ndarray, compared: np.ndarray, resamples: int | None = None, seed: int = 0) -> Score:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3.

    The value is clean-fid's: the mean over random subsets, whose expectation is the estimate on both complete samples.
    (clean-fid uses numpy's global generator, which is seeded here and restored.) The spread over the subsets is not an
    interval: subsets overlap, and with fewer images than the subset size all subsets are equal. The interval is
    therefore a bootstrap over both the generated and the reference images. Pairs of a drawn image with its copy are
    excluded, because the estimate excludes pairs of an image with itself. Near zero the interval is too wide rather
    than too narrow, and the value may be negative.

    Args:
        samples: [n, d] features of generated images.
        compared: [m, d] features of reference images.
        resamples: bootstrap resamples (1000).
    Raises:
        Undefined: fewer than two images.
    """
    value, reason = _clean_fid(samples, compared, seed), _no_interval(samples, compared, resamples)
    if reason:
        return Score(value, math.nan, math.nan, 0, reason)
    return _shifted(value, KERNEL_DISTANCE.bootstrap, (samples, compared), resamples, seed)


def change(
    samples: np.ndarray, baseline: np.ndarray, compared: np.ndarray, resamples: int | None = None, seed: int = 0
) -> Score:
    """The distance minus the baseline's, with a paired bootstrap over prompts and seeds; arguments as for `score`."""
    value = _clean_fid(samples, compared, seed) - _clean_fid(baseline, compared, seed)
    if reason := _no_interval(samples, compared, resamples):
        return Score(value, math.nan, math.nan, 0, reason)
    return _shifted(value, KERNEL_DISTANCE.change, (samples, baseline, compared), resamples, seed)


def _shifted(value, bootstrap, sides, resamples, seed):
    """The interval, shifted from the estimate on both complete samples to clean-fid's value."""
    resamples = RESAMPLES if resamples is None else resamples
    whole, low, high = bootstrap(*sides, resamples, seed)
    return Score(value, value + low - whole, value + high - whole, resamples)


def _no_interval(samples, compared, resamples):
    n, m = len(samples), len(compared)
    if min(n, m) >= MIN_IMAGES and max(n, m) <= MAX_IMAGES and resamples != 0:
        return None
    resamples = RESAMPLES if resamples is None else resamples
    needed = f"resamples and {MIN_IMAGES} to {MAX_IMAGES} images on each side"
    return f"no interval: it needs {needed}, not {resamples}, {n} and {m}."


def _kernel(x, y):  # [n, d], [m, d] -> [n, m]
    base = x @ y.T / x.shape[1] + 1
    return base * base * base  # numpy's ** 3 of float64 is much slower


KERNEL_DISTANCE = Discrepancy(_kernel, distinct=True)


def _clean_fid(samples, compared, seed):
    n, m = len(samples), len(compared)
    if min(n, m) < 2:
        raise Undefined(f"KID needs at least two images on both sides, not {n} and {m}.")
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        return kernel_distance(compared, samples)
    finally:
        np.random.set_state(state)


def kernel_distance(reference: np.ndarray, samples: np.ndarray) -> float:
    """Mean over SUBSETS of the unbiased estimate on a random subset of both sides; [m, d] and [n, d], of one type."""
    dims, size = reference.shape[1], min(len(reference), len(samples), SUBSET_SIZE)
    total = 0
    for _ in range(SUBSETS):
        x = samples[np.random.choice(len(samples), size, replace=False)]
        y = reference[np.random.choice(len(reference), size, replace=False)]
        within = (x @ x.T / dims + 1) ** 3 + (y @ y.T / dims + 1) ** 3
        across = (x @ y.T / dims + 1) ** 3
        total += (within.sum() - np.diag(within).sum()) / (size - 1) - across.sum() * 2 / size
    return float(total / SUBSETS / size)
