"""LPIPS, a perceptual distance to the baseline's image of the same prompt and seed (arXiv 1801.03924), by AlexNet."""

import numpy as np

from quantwatt.score.metrics import Score, mean_over_images

UNIT = "1"
PACKAGE = "torchvision"


def score(samples: np.ndarray, compared: None = None, resamples: int | None = None, seed: int = 0) -> Score:
    """Mean distance over images.

    Args:
        samples: distances [n] of a network that reads pairs of images.
        resamples: bootstrap resamples over images (10000).
    """
    return mean_over_images(samples, resamples, seed)
