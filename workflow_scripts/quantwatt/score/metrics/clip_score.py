"""CLIP score: how well an image fits its prompt (arXiv 2104.08718)."""

import numpy as np

from quantwatt.score.cosines import cosines
from quantwatt.score.metrics import Score, mean_over_images

UNIT = "100 x cosine"
PACKAGE = "numpy"


def score(samples: np.ndarray, compared: np.ndarray, resamples: int | None = None, seed: int = 0) -> Score:
    """Mean of 100 cos(image, text) over the images.

    The paper writes 2.5 max(cos, 0). Here the factor is 100, as is now usual, and an image that contradicts
    its prompt (cos < 0) keeps its sign, so that damage is not clipped.

    Args:
        samples: [n, d] image features.
        compared: [n, d] features of the prompts; row i of both arrays belongs to image i.
        resamples: bootstrap resamples over images (10000).
    Raises:
        DataError: the two arrays have different shapes.
        Undefined: an embedding is zero.
    """
    return mean_over_images(100 * cosines(samples, compared), resamples, seed)


def change(
    samples: np.ndarray, baseline: np.ndarray, compared: np.ndarray, resamples: int | None = None, seed: int = 0
) -> Score:
    """CLIP score minus the baseline's on the same prompts and seeds, with a paired bootstrap; arguments as `score`."""
    difference = cosines(samples, compared) - cosines(baseline, compared)
    return mean_over_images(100 * difference, resamples, seed)
