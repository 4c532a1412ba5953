"""Perplexity: e to the mean negative log-likelihood of what was to be predicted, tokens of text or labels."""

import numpy as np

from quantwatt.intervals import RESAMPLES, bootstrap_ratio
from quantwatt.metrics import Score
from quantwatt.text.predictions import column, require_judged

COMPARED_WITH = "predictions"
UNIT = "1"
HIGHER_IS_BETTER = False
PACKAGE = "numpy"


def score(samples, compared=None, resamples=None, seed=0):
    """Perplexity of all tokens together; the interval is a bootstrap of items (windows, sentences).

    Args:
        samples: items of `quantwatt.text.predictions`.
        resamples: bootstrap resamples (10000).
    Raises:
        Undefined: the texts have no labels.
    """
    require_judged(samples)
    resamples = RESAMPLES if resamples is None else resamples
    return _exponential(column(samples, "nll"), column(samples, "tokens"), resamples, seed)


def change(samples, baseline, resamples=None, seed=0):
    """Perplexity over the baseline's on the same items, which are drawn in pairs; arguments as for `score`."""
    require_judged(samples)
    resamples = RESAMPLES if resamples is None else resamples
    lost = column(samples, "nll") - column(baseline, "nll")
    return _exponential(lost, column(samples, "tokens"), resamples, seed)


def _exponential(nll, tokens, resamples, seed):
    bounds = bootstrap_ratio(nll, tokens, resamples, seed)
    with np.errstate(over="ignore"):  # a broken model's perplexity may be beyond any number
        return Score(*(float(np.exp(bound)) for bound in bounds), resamples)
