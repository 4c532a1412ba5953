"""Frechet distance of features, by clean-fid (arXiv 1706.08500; arXiv 2104.11222)."""

import math

import numpy as np

from quantwatt.intervals import bootstrap_statistic
from quantwatt.metrics import Score, Undefined

COMPARED_WITH = "reference"
UNIT = "Frechet distance"
HIGHER_IS_BETTER = False
PACKAGE = "clean-fid"

RESAMPLES = 200
MAX_DIMS = 256  # a matrix square root takes 5 ms at 128 dimensions, 22 ms at 256 and 11 s at 2048 on one core


def score(samples, compared, resamples=None, seed=0):
    """Frechet distance between two samples of features.

    The interval is of the drawing of the generated images: the reference sample is held fixed, as every
    method is compared with the same one. It says nothing of FID's bias, which is upwards and falls with the
    number of images: compare figures only at equal numbers.

    Args:
        samples: [n, d] features of generated images.
        compared: [m, d] features of reference images.
        resamples: bootstrap resamples, each with a matrix square root of [d, d]; 200 by default up to 256
            dimensions and 0 (no interval) beyond.
    Raises:
        Undefined: fewer than two images, or a singular covariance that clean-fid cannot handle.
    """
    samples, compared = np.asarray(samples, np.float64), np.asarray(compared, np.float64)
    distance = _distance(samples, compared)
    return _bootstrap(distance, *samples.shape, resamples, seed)


def change(samples, baseline, compared, resamples=None, seed=0):
    """The distance minus the baseline's; the images of the same prompts and seeds are drawn in pairs. As `score`."""
    samples, baseline, compared = (np.asarray(x, np.float64) for x in (samples, baseline, compared))
    ours, theirs = _distance(samples, compared), _distance(baseline, compared)
    return _bootstrap(lambda index: ours(index) - theirs(index), *samples.shape, resamples, seed)


def _distance(samples, compared):
    """Function of an index array: the Frechet distance of those samples."""
    import quantwatt.torchvision_ops  # noqa: F401, I001  before clean-fid imports torchvision
    from cleanfid.fid import frechet_distance

    n, m = len(samples), len(compared)
    if min(n, m) < 2:
        raise Undefined(f"a covariance needs at least two images on both sides, not {n} and {m}.")
    mean, covariance = compared.mean(axis=0), np.cov(compared, rowvar=False)

    def distance(index):
        drawn = samples[index]
        return frechet_distance(drawn.mean(axis=0), np.cov(drawn, rowvar=False), mean, covariance)

    return distance


def _bootstrap(distance, n, dims, resamples, seed):
    if resamples is None:
        resamples = RESAMPLES if dims <= MAX_DIMS else 0
    try:
        if resamples:
            return Score(*bootstrap_statistic(distance, n, resamples, seed), resamples)
        value = float(distance(np.arange(n)))
    except ValueError as error:  # "Imaginary component"
        raise Undefined(f"the covariance of {n} images in {dims} dimensions is singular ({error}).") from error
    reason = f"no interval: each resample takes a matrix square root in {dims} dimensions; set 'resamples'."
    return Score(value, math.nan, math.nan, 0, reason)
