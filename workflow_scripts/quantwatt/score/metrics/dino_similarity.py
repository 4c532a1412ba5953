"""Cosine of DINOv2's features of an image and of the baseline's of the same prompt and seed."""

import numpy as np

from quantwatt.score.cosines import cosines
from quantwatt.score.metrics import Score, mean_over_images

UNIT = "cosine"
PACKAGE = "numpy"


def score(samples: np.ndarray, compared: np.ndarray, resamples: int | None = None, seed: int = 0) -> Score:
    """Mean cosine over images.

    Args:
        samples, compared: features [n, d], row i of both from the same prompt and seed.
        resamples: bootstrap resamples over images (10000).
    Raises:
        Undefined: a feature is zero.
    """
    return mean_over_images(cosines(samples, compared), resamples, seed)
