"""Mean and covariance of many features: a Frechet distance needs only these."""

from typing import NamedTuple

import numpy as np

CHUNK = 4096  # number of features that are converted to float64 at once


class Moments(NamedTuple):
    """Moments of `n` features of d dimensions: mean [d] and covariance [d, d] (divided by n - 1), both float64."""

    mean: np.ndarray
    covariance: np.ndarray
    n: int


def moments(features: np.ndarray) -> Moments:
    """Moments of features [n, d] of any float dtype, in two passes over chunks: features may be memory-mapped.

    The covariance of a single feature is undefined; zero is returned.
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
    """Float64 copies of the features, chunk by chunk."""
    return (features[first : first + CHUNK].astype(np.float64) for first in range(0, len(features), CHUNK))
