"""CLIP score: how well an image fits its prompt (arXiv 2104.08718)."""

import numpy as np

from quantwatt.artifacts.errors import DataError
from quantwatt.intervals import RESAMPLES, bootstrap_mean
from quantwatt.score.metrics import OfItems, Score, Undefined

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
    return _mean(_cosines(samples, compared), resamples, seed)


def change(
    samples: np.ndarray, baseline: np.ndarray, compared: np.ndarray, resamples: int | None = None, seed: int = 0
) -> Score:
    """CLIP score minus the baseline's on the same prompts and seeds, with a paired bootstrap; arguments as `score`."""
    return _mean(_cosines(samples, compared) - _cosines(baseline, compared), resamples, seed)


def _mean(cosines, resamples, seed):
    resamples = RESAMPLES if resamples is None else resamples
    values = 100 * cosines
    return Score(*bootstrap_mean(values, resamples, seed), resamples, of_items=OfItems(values))


def _cosines(samples, compared):
    samples, compared = np.asarray(samples, np.float64), np.asarray(compared, np.float64)
    if samples.shape != compared.shape:
        raise DataError(f"image and text features have different shapes: {samples.shape} and {compared.shape}.")
    lengths = np.linalg.norm(samples, axis=1) * np.linalg.norm(compared, axis=1)
    if not lengths.all():
        raise Undefined(f"the embedding of image or prompt {int(lengths.argmin())} is zero.")
    return (samples * compared).sum(axis=1) / lengths
