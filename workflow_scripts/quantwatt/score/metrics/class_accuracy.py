"""Share of images in which a classifier sees the class that was asked for."""

import numpy as np

from quantwatt.artifacts.errors import DataError
from quantwatt.intervals import RESAMPLES, bootstrap_mean
from quantwatt.score.metrics import Score

UNIT = "1"
PACKAGE = "numpy"


def score(samples, compared, resamples=None, seed=0):
    """Images read as asked over all images; the interval is a bootstrap of images.

    Args:
        samples: classes seen, int [n].
        compared: classes asked for, int [n].
        resamples: bootstrap resamples over images (10000).
    Raises:
        DataError: the two do not pair up.
    """
    return _mean(_right(samples, compared), resamples, seed)


def change(samples, baseline, compared, resamples=None, seed=0):
    """The share minus the baseline's on the same classes and seeds, which are drawn in pairs; as `score`."""
    return _mean(_right(samples, compared) - _right(baseline, compared), resamples, seed)


def _mean(values, resamples, seed):
    resamples = RESAMPLES if resamples is None else resamples
    return Score(*bootstrap_mean(values, resamples, seed), resamples)


def _right(seen, asked):
    seen, asked = np.asarray(seen), np.asarray(asked)
    if seen.shape != asked.shape:
        raise DataError(f"classes seen and asked for do not pair up: {seen.shape} and {asked.shape}.")
    return (seen == asked).astype(np.float64)
