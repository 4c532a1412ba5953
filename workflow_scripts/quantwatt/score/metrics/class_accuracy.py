"""Share of images in which a classifier predicts the requested class."""

import numpy as np

from quantwatt.artifacts.errors import DataError
from quantwatt.score.metrics import Score, mean_over_images

UNIT = "1"
PACKAGE = "numpy"


def score(samples: np.ndarray, compared: np.ndarray, resamples: int | None = None, seed: int = 0) -> Score:
    """Images with the requested class over all images; the interval is a bootstrap of images.

    Args:
        samples: predicted classes, int [n].
        compared: requested classes, int [n].
        resamples: bootstrap resamples over images (10000).
    Raises:
        DataError: the two arrays have different shapes.
    """
    return mean_over_images(_right(samples, compared), resamples, seed)


def change(
    samples: np.ndarray, baseline: np.ndarray, compared: np.ndarray, resamples: int | None = None, seed: int = 0
) -> Score:
    """The share minus the baseline's on the same classes and seeds, with a paired bootstrap; arguments as `score`."""
    return mean_over_images(_right(samples, compared) - _right(baseline, compared), resamples, seed)


def _right(seen, asked):
    seen, asked = np.asarray(seen), np.asarray(asked)
    if seen.shape != asked.shape:
        raise DataError(f"predicted and requested classes have different shapes: {seen.shape} and {asked.shape}.")
    return (seen == asked).astype(np.float64)
