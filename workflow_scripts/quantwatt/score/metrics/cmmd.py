"""CMMD (Jayasumana et al., arXiv 2401.09603): maximum mean discrepancy of CLIP's features, scaled by 1000.

Published values use the judge ViT-L-14-336 with OpenAI's weights. The mean is over all pairs, of an image with itself,
too, as the authors' code takes it, which adds up to 20 / n for n images of a side: compare at equal numbers.
"""

import math

import numpy as np

from quantwatt.score.metrics import Score, Undefined
from quantwatt.score.mmd import Discrepancy

UNIT = "1000 x squared MMD"
PACKAGE = "numpy"

RESAMPLES = 1000
DEVIATION, SCALE = 10.0, 1000.0  # of the Gaussian kernel, and of the value
MAX_IMAGES = 10_000  # on each side: it needs the kernel of all pairs


def score(samples: np.ndarray, compared: np.ndarray, resamples: int | None = None, seed: int = 0) -> Score:
    """The distance, and a bootstrap over generated and reference images.

    Args:
        samples, compared: features [n, d] and [m, d] of generated and of reference images; their lengths do not matter.
        resamples: bootstrap resamples (1000); 0: no interval.
    Raises:
        Undefined: there are fewer than two images, or more than MAX_IMAGES, on a side.
    """
    return _scored(_DISCREPANCY.bootstrap, [samples, compared], resamples, seed)


def change(
    samples: np.ndarray, baseline: np.ndarray, compared: np.ndarray, resamples: int | None = None, seed: int = 0
) -> Score:
    """The distance minus the baseline's, with a paired bootstrap over prompts and seeds; arguments as for `score`."""
    return _scored(_DISCREPANCY.change, [samples, baseline, compared], resamples, seed)


def _scored(bootstrap, sides, resamples, seed):
    resamples = RESAMPLES if resamples is None else resamples
    sizes = [len(side) for side in sides]
    if min(sizes) < 2 or max(sizes) > MAX_IMAGES:
        raise Undefined(f"CMMD takes 2 to {MAX_IMAGES} images on each side, not {min(sizes)} and {max(sizes)}.")
    bounds = bootstrap(*(_normalized(side) for side in sides), max(resamples, 1), seed)
    value, low, high = (SCALE * bound for bound in bounds)
    if not resamples:
        return Score(value, math.nan, math.nan, 0, "no interval: 'resamples' is 0.")
    return Score(value, low, high, resamples)


def _normalized(features):
    features = np.asarray(features, np.float64)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    if not lengths.all():
        raise Undefined(f"the embedding of image {int(lengths.argmin())} is zero.")
    return features / lengths


def _kernel(x, y):  # of vectors of length 1: [n, d], [m, d] -> [n, m]
    return np.exp((x @ y.T - 1) / DEVIATION**2)


_DISCREPANCY = Discrepancy(_kernel, distinct=False)
