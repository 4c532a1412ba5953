"""FLIP, the difference that one sees when an image and the baseline's alternate (doi 10.1145/3406183)."""

from collections.abc import Iterable

import numpy as np

from quantwatt.score.flip import flip
from quantwatt.score.metrics import Score, mean_over_images

UNIT = "1"
PACKAGE = "scipy"


def score(
    samples: Iterable[np.ndarray], compared: Iterable[np.ndarray], resamples: int | None = None, seed: int = 0
) -> Score:
    """Mean over images of the mean error of each, at 67 pixels per degree; arguments as for `psnr.score`."""
    values = [flip(image, baseline) for image, baseline in zip(samples, compared, strict=True)]
    return mean_over_images(values, resamples, seed)
