"""LAION's aesthetic predictor: how people would rate an image's looks, whatever its prompt."""

import numpy as np

from quantwatt.score.metrics import Score, mean_over_images

UNIT = "points of 10"
PACKAGE = "torch"


def score(samples: np.ndarray, compared: None = None, resamples: int | None = None, seed: int = 0) -> Score:
    """Mean rating over images.

    Args:
        samples: ratings [n] of a network.
        resamples: bootstrap resamples over images (10000).
    """
    return mean_over_images(samples, resamples, seed)


def change(
    samples: np.ndarray, baseline: np.ndarray, compared: None = None, resamples: int | None = None, seed: int = 0
) -> Score:
    """The rating minus the baseline's on the same prompts and seeds, with a paired bootstrap; arguments as `score`."""
    return mean_over_images(np.asarray(samples, np.float64) - baseline, resamples, seed)
