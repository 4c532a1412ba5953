"""Cosines of features, row by row."""

import numpy as np

from quantwatt.artifacts.errors import DataError
from quantwatt.score.metrics import Undefined


def cosines(samples: np.ndarray, compared: np.ndarray) -> np.ndarray:
    """Cosines [n] of row i of both arrays [n, d].

    Raises:
        DataError: the two arrays have different shapes.
        Undefined: a feature is zero.
    """
    samples, compared = np.asarray(samples, np.float64), np.asarray(compared, np.float64)
    if samples.shape != compared.shape:
        raise DataError(f"features that are compared have different shapes: {samples.shape} and {compared.shape}.")
    lengths = np.linalg.norm(samples, axis=1) * np.linalg.norm(compared, axis=1)
    if not lengths.all():
        raise Undefined(f"the embedding of image {int(lengths.argmin())}, or of its partner, is zero.")
    return (samples * compared).sum(axis=1) / lengths
