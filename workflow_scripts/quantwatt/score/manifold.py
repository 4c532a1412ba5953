"""The manifold of a set of features: balls that reach from each to its third nearest neighbour (arXiv 1904.06991)."""

import numpy as np

from quantwatt.score.metrics import Undefined

NEIGHBOURS = 3  # of the paper, and of guided-diffusion's evaluator
MAX_IMAGES = 10_000  # on each side: distances of all pairs are in memory


def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Euclidean distances [n, m] of features [n, d] and [m, d].

    Raises:
        Undefined: a side has too few features for neighbours, or more than MAX_IMAGES.
    """
    sizes = [len(x), len(y)]
    if min(sizes) <= NEIGHBOURS or max(sizes) > MAX_IMAGES:
        least = NEIGHBOURS + 1
        raise Undefined(f"it takes {least} to {MAX_IMAGES} images on each side, not {min(sizes)} and {max(sizes)}.")
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    squares = (x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * (x @ y.T)
    return np.sqrt(np.maximum(squares, 0, out=squares), out=squares)


def radii(within: np.ndarray) -> np.ndarray:
    """Radii [n] of the balls, from the distances [n, n] of a set's features to one another."""
    return np.partition(within, NEIGHBOURS, axis=1)[:, NEIGHBOURS]  # the nearest is the feature itself
