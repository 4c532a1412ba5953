"""Recall: the share of real images inside of the manifold of images (Kynkaanniemi et al., arXiv 1904.06991)."""

import math

import numpy as np

from quantwatt.intervals import half_samples
from quantwatt.score.manifold import distances, radii
from quantwatt.score.metrics import Score

UNIT = "1"
PACKAGE = "numpy"

RESAMPLES = 200
MIN_IMAGES = 20  # for an interval


def score(samples: np.ndarray, compared: np.ndarray, resamples: int | None = None, seed: int = 0) -> Score:
    """The share, and its interval from halves of the generated images; the reference is fixed.

    A bootstrap would draw copies, which are at distance 0 from each other: their balls would vanish. Recall rises with
    the number of generated images: compare values at equal numbers.

    Args:
        samples, compared: features [n, d] and [m, d] of generated and of reference images.
        resamples: halves (200); 0: no interval.
    Raises:
        Undefined: there are too few images for neighbours, or too many.
    """
    found = _interval(_covered(samples, compared), len(samples), resamples, seed)
    return found._replace(low=max(found.low, 0.0), high=min(found.high, 1.0))  # NaN stays


def change(
    samples: np.ndarray, baseline: np.ndarray, compared: np.ndarray, resamples: int | None = None, seed: int = 0
) -> Score:
    """The share minus the baseline's, from the same halves of prompts and seeds; arguments as for `score`."""
    ours, theirs = _covered(samples, compared), _covered(baseline, compared)
    return _interval(lambda index: ours(index) - theirs(index), len(samples), resamples, seed)


def _covered(samples, compared):
    """Return a function of an index: the share of the reference inside of the indexed images' balls."""
    within, across = distances(samples, samples), distances(compared, samples)

    def of(index):
        return float((across[:, index] <= radii(within[np.ix_(index, index)])).any(axis=1).mean())

    return of


def _interval(statistic, n, resamples, seed):
    resamples = RESAMPLES if resamples is None else resamples
    if not resamples or n < MIN_IMAGES:
        reason = f"no interval: it needs halves and {MIN_IMAGES} images, not {resamples} and {n}."
        return Score(statistic(np.arange(n)), math.nan, math.nan, 0, reason)
    return Score(*half_samples(statistic, n, resamples, seed), resamples)
