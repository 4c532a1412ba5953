"""Mean and covariance of many features: all that a Frechet distance reads of them."""

from typing import NamedTuple

import numpy as np

CHUNK = 4096  # features of which a copy in float64 is held


class Moments(NamedTuple):
    """Of `n` features of d dimensions: mean [d] and covariance [d, d] (divided by n - 1), both float64."""

    mean: np.ndarray
    covariance: np.ndarray
    n: int


def moments(features: np.ndarray) -> Moments:
    """Moments of features [n, d] of any float type, in two passes chunk by chunk: they may be mapped from a file.

    One feature alone has no covariance; it is zero here.
    """
    n, dims = features.shape
    mean, scatter = np.zeros(dims), np.zeros((dims, dims))
    for chunk in _chunks(features):
        mean += chunk.sum(axis=0) / n
    for chunk in _chunks(features):
        chunk -= mean
        scatter += chunk.T @ chunk
    return Moments(mean, scatter / max(n - 1, 1), n)


def _chunks(features):
    """Copies of the features in float64."""
    return (features[first : first + CHUNK].astype(np.float64) for first in range(0, len(features), CHUNK))
