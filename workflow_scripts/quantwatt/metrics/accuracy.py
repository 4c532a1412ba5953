"""Share of predictions that are right: labels of sentences, or next tokens of running text."""

from quantwatt.intervals import RESAMPLES, bootstrap_ratio
from quantwatt.metrics import Score
from quantwatt.text.predictions import column, require_judged

COMPARED_WITH = "predictions"
UNIT = "1"
HIGHER_IS_BETTER = True
PACKAGE = "numpy"


def score(samples, compared=None, resamples=None, seed=0):
    """Right predictions over all; the interval is a bootstrap of items (sentences, windows).

    Args:
        samples: items of `quantwatt.text.predictions`.
        resamples: bootstrap resamples (10000).
    Raises:
        Undefined: the texts have no labels.
    """
    require_judged(samples)
    resamples = RESAMPLES if resamples is None else resamples
    return Score(*bootstrap_ratio(column(samples, "correct"), column(samples, "tokens"), resamples, seed), resamples)


def change(samples, baseline, resamples=None, seed=0):
    """Accuracy minus the baseline's on the same items, which are drawn in pairs; arguments as for `score`."""
    require_judged(samples)
    resamples = RESAMPLES if resamples is None else resamples
    gained = column(samples, "correct") - column(baseline, "correct")
    return Score(*bootstrap_ratio(gained, column(samples, "tokens"), resamples, seed), resamples)
