"""Relative distances of the latents of two drawings from the same prompt and seed, step by step."""

from collections.abc import Iterable

import numpy as np

from quantwatt.score.metrics import Undefined


def distances(samples: Iterable[np.ndarray], compared: Iterable[np.ndarray], last: bool = False) -> np.ndarray:
    """||x_t - x'_t|| / ||x'_t|| of each image and step: [n, steps], or [n, 1] of the last step alone.

    Args:
        samples, compared: latents [steps, values] of each image, of a method and of the baseline.
        last: whether only the last step counts, so that the numbers of steps may differ.
    Raises:
        Undefined: the numbers of steps or values differ, or the baseline's latents are zero.
    """
    found = []
    for own, other in zip(samples, compared, strict=True):
        own, other = (side[-1:] if last else side for side in (own, other))
        if own.shape[0] != other.shape[0]:
            raise Undefined(f"trajectories of {own.shape[0]} and of {other.shape[0]} steps cannot be compared by step.")
        if own.shape[1] != other.shape[1]:
            raise Undefined(f"latents of {own.shape[1]} and of {other.shape[1]} values cannot be compared.")
        length = np.linalg.norm(other.astype(np.float64), axis=1)
        if not length.all():
            raise Undefined("the baseline's latents are zero behind a step.")
        found.append(np.linalg.norm(own.astype(np.float64) - other, axis=1) / length)
    return np.stack(found)
