"""CLIP-IQA: how far an image looks like a good photo and not like a bad one, by the judge (arXiv 2207.12396).

The paper's network is CLIP's ResNet-50 without its position embedding; here it is the judge, with the same two texts.
"""

import numpy as np

from quantwatt.score.cosines import cosines
from quantwatt.score.metrics import Score, mean_over_images

UNIT = "1"
PACKAGE = "numpy"

SCALE = 100.0  # of cosines, as CLIP was trained


def score(samples: np.ndarray, compared: np.ndarray, resamples: int | None = None, seed: int = 0) -> Score:
    """Mean over images of the softmax's share of the good text.

    Args:
        samples: features [n, d] of images.
        compared: features [2, d] of the good and of the bad text.
        resamples: bootstrap resamples over images (10000).
    Raises:
        Undefined: a feature is zero.
    """
    return mean_over_images(_shares(samples, compared), resamples, seed)


def change(
    samples: np.ndarray, baseline: np.ndarray, compared: np.ndarray, resamples: int | None = None, seed: int = 0
) -> Score:
    """The share minus the baseline's on the same prompts and seeds, with a paired bootstrap; arguments as `score`."""
    return mean_over_images(_shares(samples, compared) - _shares(baseline, compared), resamples, seed)


def _shares(samples, compared):
    good, bad = (cosines(samples, np.broadcast_to(text, samples.shape)) for text in compared)
    return 1 / (1 + np.exp(SCALE * (bad - good)))
