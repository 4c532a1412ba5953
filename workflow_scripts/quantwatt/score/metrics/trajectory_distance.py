"""Relative distance of the latents behind each step from the baseline's of the same prompt and seed."""

from collections.abc import Iterable

import numpy as np

from quantwatt.intervals import RESAMPLES, bootstrap_mean
from quantwatt.score.metrics import Score, mean_over_images
from quantwatt.score.trajectories import distances

UNIT = "1"
PACKAGE = "numpy"


def score(
    samples: Iterable[np.ndarray], compared: Iterable[np.ndarray], resamples: int | None = None, seed: int = 0
) -> Score:
    """Mean over images of the mean over steps of ||x_t - x'_t|| / ||x'_t||, and the mean of every step.

    Args:
        samples, compared: latents [steps, values] of each image, as `quantwatt.models.trajectory` keeps them.
        resamples: bootstrap resamples over images (10000).
    Raises:
        Undefined: the two drawings have other steps or latents.
    """
    found = distances(samples, compared)
    by_step = [bootstrap_mean(step, RESAMPLES if resamples is None else resamples, seed) for step in found.T]
    return mean_over_images(found.mean(axis=1), resamples, seed)._replace(by_step=tuple(by_step))
