"""Accuracy and perplexity: coverage of their intervals, and changes from paired resamples."""

import math

import numpy as np
import pytest

from quantwatt.score.metrics import Undefined, accuracy, perplexity


def windows(rng, n=60, harder=0.0):
    """Items of 10 to 30 tokens whose likelihoods vary from item to item; every true mean is known."""
    tokens = rng.integers(10, 31, n)
    level = rng.normal(2.0, 0.3, n)
    share = np.clip(rng.normal(0.6, 0.1, n), 0, 1)
    return [
        {"nll": float(t * (x + harder)), "tokens": int(t), "correct": int(rng.binomial(t, s))}
        for t, x, s in zip(tokens, level, share, strict=True)
    ]


def test_intervals_cover_the_truth_in_95_percent():
    rng = np.random.default_rng(0)
    found = [windows(rng) for _ in range(400)]
    perplexities = [perplexity.score(items, resamples=300) for items in found]
    accuracies = [accuracy.score(items, resamples=300) for items in found]
    assert np.mean([s.low <= math.exp(2) <= s.high for s in perplexities]) == pytest.approx(0.95, abs=0.03)
    assert np.mean([s.low <= 0.6 <= s.high for s in accuracies]) == pytest.approx(0.95, abs=0.03)


def test_a_change_is_known_better_than_its_two_scores():
    before = windows(np.random.default_rng(1))
    after = [{**item, "nll": item["nll"] + 0.1 * item["tokens"], "correct": item["correct"] - 1} for item in before]
    whole, change = perplexity.score(after), perplexity.change(after, before)
    assert change.value == pytest.approx(whole.value - perplexity.score(before).value)
    assert change.low > 0 and change.high - change.low < 0.2 * (whole.high - whole.low)
    lost = accuracy.change(after, before)
    assert lost.value == pytest.approx(-60 / sum(item["tokens"] for item in before)) and lost.high < 0


def test_one_window_has_a_value_and_no_interval():
    found = perplexity.score([{"nll": 20.0, "tokens": 10, "correct": 3}])
    assert found.value == pytest.approx(math.exp(2)) and math.isnan(found.low) and math.isnan(found.high)


def test_a_perplexity_beyond_numbers_is_infinite():
    items = [{"nll": 8000.0, "tokens": 10, "correct": 0}] * 3
    assert math.isinf(perplexity.score(items, resamples=100).value)


def test_items_without_labels_are_refused():
    with pytest.raises(Undefined, match="no labels"):
        accuracy.score([{"label": 1, "logits": [0.0, 1.0]}])
