"""Kernel distance of features, by clean-fid (Binkowski et al., arXiv 1801.01401)."""

import math

import numpy as np

from quantwatt.intervals import bootstrap_statistic
from quantwatt.metrics import Score, Undefined

COMPARED_WITH = "reference"
UNIT = "squared MMD"
HIGHER_IS_BETTER = False
PACKAGE = "clean-fid"

RESAMPLES = 1000
SUBSETS, SUBSET_SIZE = 100, 1000  # clean-fid's own
MAX_IMAGES = 10_000  # of an interval: it holds the kernel of all pairs of generated images


def score(samples, compared, resamples=None, seed=0):
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3.

    The value is clean-fid's: the mean over random subsets, whose expectation is the estimate on both whole
    samples. (It draws from numpy's global generator, which is seeded here and put back.) The spread over
    those subsets is not an interval: they overlap, and with fewer images than a subset holds they are all
    the same. The interval is therefore a bootstrap of the generated images, with the reference held fixed as
    in `fid`. Pairs of a drawn image with its own copy are left out, as the estimate leaves out an image with
    itself, so that each draw is unbiased too. Near zero the interval is too wide rather than too narrow, and
    the value may lie below zero.

    Args:
        samples: [n, d] features of generated images.
        compared: [m, d] features of reference images.
        resamples: bootstrap resamples (1000).
    Raises:
        Undefined: fewer than two images.
    """
    n, m = len(samples), len(compared)
    if min(n, m) < 2:
        raise Undefined(f"KID needs at least two images on both sides, not {n} and {m}.")
    value = _clean_fid(samples, compared, seed)
    samples, compared = np.asarray(samples, np.float64), np.asarray(compared, np.float64)
    resamples = RESAMPLES if resamples is None else resamples
    if n > MAX_IMAGES or not resamples:
        reason = (
            f"no interval: more than {MAX_IMAGES} images" if n > MAX_IMAGES else "no interval: 0 resamples"
        )
        return Score(value, math.nan, math.nan, 0, f"{reason}.")

    within = _kernel(samples, samples)  # [n, n]
    np.fill_diagonal(within, 0)
    across = (
        sum(_kernel(samples, part).sum(axis=1) for part in np.array_split(compared, -(-m // 1000))) / m
    )  # [n]

    def distance(index):  # without the reference's own term, which no draw changes
        counts = np.bincount(index, minlength=n).astype(np.float64)
        pairs = n * n - counts @ counts
        return counts @ within @ counts / pairs - 2 * (counts @ across) / n

    whole, low, high = bootstrap_statistic(distance, n, resamples, seed)
    return Score(value, value + low - whole, value + high - whole, resamples)


def _kernel(x, y):  # [n, d], [m, d] -> [n, m]
    base = x @ y.T / x.shape[1] + 1
    return base * base * base  # numpy's float64 power is 20 times slower


def _clean_fid(samples, compared, seed):
    import quantwatt.torchvision_ops  # noqa: F401, I001  before clean-fid imports torchvision
    from cleanfid.fid import kernel_distance

    state = np.random.get_state()
    np.random.seed(seed)
    try:
        return kernel_distance(compared, samples, num_subsets=SUBSETS, max_subset_size=SUBSET_SIZE)
    finally:
        np.random.set_state(state)
