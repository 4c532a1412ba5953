"""Intervals of metrics hold the expected value at their number of images, in simulation."""

import math

import numpy as np
import pytest

from quantwatt.artifacts.moments import moments
from quantwatt.score.metrics import cmmd, fid, geneval, kid, mean_over_images

REFERENCE = np.random.default_rng(99).normal(size=(400, 4)) + 0.3


def normal(rng):
    return rng.normal([0.4, 0, 0.2, 0.6], 1, (80, 4))


DISTANCES = {  # of features; the mean over simulations stands for the expected value, whose bias at 80 images it has
    "fid": lambda rng: fid.score(normal(rng), moments(REFERENCE), resamples=100),
    "kid": lambda rng: kid.score(normal(rng), rng.normal(size=(120, 4)) + 0.3, resamples=100),
    "cmmd": lambda rng: cmmd.score(normal(rng), rng.normal(size=(120, 4)) + 0.3, resamples=100),
}
MEANS = {  # (score, true value)
    "mean": (lambda rng: mean_over_images(rng.gamma(2, 1, 80), 300), 2.0),
    "share": (lambda rng: geneval.score(np.where(rng.random(80) < 0.4, -1, rng.random(80) < 0.7), resamples=300), 0.7),
}


def check(scores, expected):
    share = np.mean([score.low <= expected <= score.high for score in scores])
    assert share > 0.93 - 3 * math.sqrt(0.95 * 0.05 / len(scores)), f"{share:.1%} of {len(scores)}"


@pytest.mark.parametrize("name", MEANS)
def test_intervals_of_means_and_ratios_cover(name):
    score, expected = MEANS[name]
    check([score(np.random.default_rng(seed)) for seed in range(150)], expected)


@pytest.mark.parametrize("name", DISTANCES)
def test_intervals_of_distances_cover_what_is_expected_of_so_many_images(name):
    scores = [DISTANCES[name](np.random.default_rng(seed)) for seed in range(60)]
    check(scores, np.mean([score.value for score in scores]))
