"""Holm's step-down test of many hypotheses (Scandinavian Journal of Statistics 6, 1979)."""

from collections.abc import Sequence

import numpy as np


def adjusted(chances: Sequence[float] | np.ndarray) -> np.ndarray:
    """The p-values [n] that many tests leave, however they depend on each other.

    Rejecting where one is at most alpha, the chance to reject any true hypothesis is at most alpha.

    Args:
        chances: [n] p-value of each test alone.
    """
    chances = np.asarray(chances, np.float64)
    order = np.argsort(chances, kind="stable")
    stepped = np.maximum.accumulate(chances[order] * np.arange(len(chances), 0, -1)) if len(chances) else chances
    found = np.empty_like(chances)
    found[order] = np.minimum(stepped, 1.0)
    return found
