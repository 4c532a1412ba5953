"""Bootstrap of a squared maximum mean discrepancy over generated and reference images.

A Discrepancy names the kernel, and over which pairs of images of one side its mean is taken.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from quantwatt.intervals import bootstrap_statistic

Bounds = tuple[float, float, float]  # a value and its interval


@dataclass(frozen=True)
class Discrepancy:
    """The mean of a kernel over pairs of each side, minus twice the mean across both.

    kernel: function of [n, d] and [m, d] that returns a new array [n, m].
    distinct: whether pairs of an image with itself, and with its copies in a resample, are left out (the unbiased
        estimate); else all pairs count (the V-statistic).
    """

    kernel: Callable[[np.ndarray, np.ndarray], np.ndarray]
    distinct: bool

    def bootstrap(self, samples: np.ndarray, compared: np.ndarray, resamples: int, seed: int) -> Bounds:
        """(value, low, high) of samples [n, d] against the reference [m, d]; memory grows with n² and m²."""
        draws = _draws(len(compared), resamples, seed)
        compared = np.asarray(compared, np.float64)
        of_reference = self._mean(draws @ self._within(compared), draws)
        of_samples = self._of_samples(samples, compared, draws)
        return _bootstrap(lambda w, draw: of_reference[draw] + of_samples(w, draw), len(samples), resamples, seed)

    def change(
        self, samples: np.ndarray, baseline: np.ndarray, compared: np.ndarray, resamples: int, seed: int
    ) -> Bounds:
        """(value, low, high) of the difference from the baseline [n, d], paired; the reference's own term cancels."""
        draws = _draws(len(compared), resamples, seed)
        ours, theirs = (self._of_samples(side, compared, draws) for side in (samples, baseline))
        return _bootstrap(lambda w, draw: ours(w, draw) - theirs(w, draw), len(samples), resamples, seed)

    def _of_samples(self, samples, compared, draws):
        """Return a function of the samples' counts and the reference's draw: the terms of the distance with samples."""
        samples, compared = np.asarray(samples, np.float64), np.asarray(compared, np.float64)
        across = self.kernel(samples, compared) @ draws.T / len(compared)  # [n, 1 + resamples]
        within = self._within(samples)
        return lambda counts, draw: self._mean(counts @ within, counts) - 2 * (counts @ across[:, draw]) / len(samples)

    def _within(self, side):
        kernel = self.kernel(side, side)
        if self.distinct:
            np.fill_diagonal(kernel, 0)
        return kernel

    def _mean(self, weighted, counts):  # weighted: counts @ kernel
        pairs = counts.sum(axis=-1) ** 2 - ((counts**2).sum(axis=-1) if self.distinct else 0)
        return (weighted * counts).sum(axis=-1) / pairs


def _draws(m, resamples, seed):
    """Counts of each reference image per draw [1 + resamples, m]: the original sample, then the resamples."""
    draws = np.random.default_rng([seed, 1]).multinomial(m, np.full(m, 1 / m), size=resamples)
    return np.concatenate([np.ones((1, m)), draws])


def _bootstrap(distance, n, resamples, seed):
    draw = iter(range(1 + resamples))

    def of_index(index):
        return distance(np.bincount(index, minlength=n).astype(np.float64), next(draw))

    return bootstrap_statistic(of_index, n, resamples, seed)
