"""Relative distance of an image's latents, before they are decoded, from the baseline's of the same prompt and seed."""

from collections.abc import Iterable

import numpy as np

from quantwatt.score.metrics import Score, mean_over_images
from quantwatt.score.trajectories import distances

UNIT = "1"
PACKAGE = "numpy"


def score(
    samples: Iterable[np.ndarray], compared: Iterable[np.ndarray], resamples: int | None = None, seed: int = 0
) -> Score:
    """Mean over images of ||x - x'|| / ||x'|| behind the last step; arguments as of trajectory_distance.

    Raises:
        Undefined: the latents are of other sizes, or the baseline's are zero.
    """
    return mean_over_images(distances(samples, compared, last=True)[:, 0], resamples, seed)
