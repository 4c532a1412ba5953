"""Frechet distance of features, to the last bit as clean-fid computes it (arXiv 1706.08500; arXiv 2104.11222).

Its function is repeated here: the module that holds it imports torch and torchvision, which takes longer than a score.
"""

import math

import numpy as np

from quantwatt.artifacts.moments import Moments, moments
from quantwatt.intervals import bootstrap_statistic
from quantwatt.score.metrics import Score, Undefined

UNIT = "Frechet distance"
PACKAGE = "clean-fid"  # whose distance it is

RESAMPLES = 200
# clean-fid's: what is added to covariances whose product has no root, and what of a root's diagonal may be imaginary.
SINGULAR, IMAGINARY = 1e-6, 1e-3
MAX_DIMS = 256  # a matrix square root takes 5 ms at 128 dimensions, 22 ms at 256 and 11 s at 2048 on one core


def score(samples: np.ndarray, compared: Moments, resamples: int | None = None, seed: int = 0) -> Score:
    """Frechet distance between two samples of features.

    The interval resamples only the generated images; the reference sample is fixed, because every method is compared
    with the same reference. The interval does not include FID's bias, which is upward and falls with the number of
    images: compare values only at equal numbers of images.

    The authors require more images than feature dimensions (github.com/bioinf-jku/TTUR): n images span n - 1
    dimensions, so the covariance of fewer images is singular, and the value reflects their number, not their content.

    Args:
        samples: [n, d] features of generated images.
        compared: Moments of the features of reference images.
        resamples: bootstrap resamples, each with a matrix square root of [d, d]; 200 by default up to 256
            dimensions and 0 (no interval) beyond.
    Raises:
        Undefined: a side has no more images than feature dimensions, or clean-fid cannot handle the covariances.
    """
    return _bootstrap(_distance(samples, compared), *samples.shape, resamples, seed)


def change(
    samples: np.ndarray, baseline: np.ndarray, compared: Moments, resamples: int | None = None, seed: int = 0
) -> Score:
    """The distance minus the baseline's, with a paired bootstrap over prompts and seeds; arguments as for `score`."""
    ours, theirs = _distance(samples, compared), _distance(baseline, compared)
    return _bootstrap(lambda index: ours(index) - theirs(index), *samples.shape, resamples, seed)


def _distance(samples, compared):
    """Return a function of an index (slice or array): the Frechet distance of the indexed samples."""
    n, dims = samples.shape
    if min(n, compared.n) <= dims:
        raise Undefined(
            f"the covariance of {dims} features needs more than {dims} images on both sides, not {n} and {compared.n}."
        )

    return lambda index: frechet_distance(moments(samples[index]), compared)


def frechet_distance(one: Moments, other: Moments) -> float:
    """|mean - mean'|^2 + trace(C + C' - 2 sqrt(C C')).

    Raises:
        ValueError: the root of the product of the covariances is not real.
    """
    from scipy import linalg

    root = linalg.sqrtm(one.covariance.dot(other.covariance))
    if not np.isfinite(root).all():
        offset = np.eye(len(one.mean)) * SINGULAR
        root = linalg.sqrtm((one.covariance + offset).dot(other.covariance + offset))
    if np.iscomplexobj(root):
        if not np.allclose(np.diagonal(root).imag, 0, atol=IMAGINARY):
            raise ValueError(f"Imaginary component {np.max(np.abs(root.imag))}")
        root = root.real
    difference = one.mean - other.mean
    return difference.dot(difference) + np.trace(one.covariance) + np.trace(other.covariance) - 2 * np.trace(root)


def _bootstrap(distance, n, dims, resamples, seed):
    if resamples is None:
        resamples = RESAMPLES if dims <= MAX_DIMS else 0
    reason = f"no interval: each resample takes a matrix square root in {dims} dimensions; set 'resamples'."
    if resamples:
        try:
            return Score(*bootstrap_statistic(distance, n, resamples, seed), resamples)
        except ValueError as error:  # "Imaginary component": a resample has only about 2/3 of the images, some repeated
            reason = f"no interval: {dims} features of a resample of {n} images have no matrix root ({error})."
    try:
        value = float(distance(slice(None)))  # a slice does not copy a memory-mapped array
    except ValueError as error:
        raise Undefined(f"the product of the covariances of {dims} features has no matrix root ({error}).") from error
    return Score(value, math.nan, math.nan, 0, reason)
