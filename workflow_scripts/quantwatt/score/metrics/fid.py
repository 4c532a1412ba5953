"""Frechet distance of features, by clean-fid (arXiv 1706.08500; arXiv 2104.11222)."""

import math

from quantwatt.artifacts.moments import moments
from quantwatt.intervals import bootstrap_statistic
from quantwatt.score.metrics import Score, Undefined

UNIT = "Frechet distance"
PACKAGE = "clean-fid"

RESAMPLES = 200
MAX_DIMS = 256  # a matrix square root takes 5 ms at 128 dimensions, 22 ms at 256 and 11 s at 2048 on one core


def score(samples, compared, resamples=None, seed=0):
    """Frechet distance between two samples of features.

    The interval is of the drawing of the generated images: the reference sample is held fixed, as every
    method is compared with the same one. It says nothing of FID's bias, which is upwards and falls with the
    number of images: compare figures only at equal numbers.

    The authors ask for more images than dimensions (github.com/bioinf-jku/TTUR): n images span n - 1 of them, so that
    the covariance of fewer is singular, and the figure says how few they are rather than what they show.

    Args:
        samples: [n, d] features of generated images.
        compared: Moments of the features of reference images.
        resamples: bootstrap resamples, each with a matrix square root of [d, d]; 200 by default up to 256
            dimensions and 0 (no interval) beyond.
    Raises:
        Undefined: no more images than dimensions on a side, or covariances that clean-fid cannot handle.
    """
    return _bootstrap(_distance(samples, compared), *samples.shape, resamples, seed)


def change(samples, baseline, compared, resamples=None, seed=0):
    """The distance minus the baseline's; the images of the same prompts and seeds are drawn in pairs. As `score`."""
    ours, theirs = _distance(samples, compared), _distance(baseline, compared)
    return _bootstrap(lambda index: ours(index) - theirs(index), *samples.shape, resamples, seed)


def _distance(samples, compared):
    """Function of an index, a slice or an array: the Frechet distance of those samples."""
    import quantwatt.jobs.torchvision_ops  # noqa: F401, I001  before clean-fid imports torchvision
    from cleanfid.fid import frechet_distance

    n, dims = samples.shape
    if min(n, compared.n) <= dims:
        raise Undefined(
            f"the covariance of {dims} features takes more than {dims} images on both sides, not {n} and {compared.n}."
        )

    def distance(index):
        drawn = moments(samples[index])
        return frechet_distance(drawn.mean, drawn.covariance, compared.mean, compared.covariance)

    return distance


def _bootstrap(distance, n, dims, resamples, seed):
    if resamples is None:
        resamples = RESAMPLES if dims <= MAX_DIMS else 0
    reason = f"no interval: each resample takes a matrix square root in {dims} dimensions; set 'resamples'."
    if resamples:
        try:
            return Score(*bootstrap_statistic(distance, n, resamples, seed), resamples)
        except ValueError as error:  # "Imaginary component": a resample of two thirds of the images, the others twice
            reason = f"no interval: of a resample of {n} images, {dims} features have no root ({error})."
    try:
        value = float(distance(slice(None)))  # no copy of what may be mapped from a file
    except ValueError as error:
        raise Undefined(f"the product of the covariances of {dims} features has no root ({error}).") from error
    return Score(value, math.nan, math.nan, 0, reason)
