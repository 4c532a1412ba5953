"""Precision: the share of images inside of the manifold of real images (Kynkaanniemi et al., arXiv 1904.06991)."""

import numpy as np

from quantwatt.score.manifold import distances, radii
from quantwatt.score.metrics import Score, mean_over_images

UNIT = "1"
PACKAGE = "numpy"


def score(samples: np.ndarray, compared: np.ndarray, resamples: int | None = None, seed: int = 0) -> Score:
    """The share, and a bootstrap over generated images; the reference is fixed, as for the Frechet distance.

    It rises with the number of reference images: compare values at equal numbers.

    Args:
        samples, compared: features [n, d] and [m, d] of generated and of reference images.
        resamples: bootstrap resamples over images (10000).
    Raises:
        Undefined: there are too few images for neighbours, or too many.
    """
    return mean_over_images(_inside(samples, compared), resamples, seed)


def change(
    samples: np.ndarray, baseline: np.ndarray, compared: np.ndarray, resamples: int | None = None, seed: int = 0
) -> Score:
    """The share minus the baseline's, with a paired bootstrap over prompts and seeds; arguments as for `score`."""
    return mean_over_images(_inside(samples, compared) - _inside(baseline, compared), resamples, seed)


def _inside(samples, compared):
    """Whether each generated image is in the ball of a reference image: [n] of 0 and 1."""
    reach = radii(distances(compared, compared))
    return (distances(samples, compared) <= reach).any(axis=1).astype(np.float64)
