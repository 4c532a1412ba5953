"""GenEval: the share of images that show all that their prompt asks for (arXiv 2310.11513).

On captioned shapes an attribute classifier answers; `scene_questions` says what is asked.
"""

import numpy as np

from quantwatt.intervals import RESAMPLES, bootstrap_ratios
from quantwatt.score.metrics import OfItems, Score, Undefined

UNIT = "1"
PACKAGE = "torch"


def score(samples: np.ndarray, compared: None = None, resamples: int | None = None, seed: int = 0) -> Score:
    """Right answers over prompts that ask; the interval is a bootstrap of images.

    Args:
        samples: answers [n]: 1 is right, 0 is wrong, and negative where the prompt does not ask.
        resamples: bootstrap resamples over images (10000).
    Raises:
        Undefined: no prompt asks.
    """
    right, asked = _counted(samples)
    return _share(right, asked, resamples, seed)._replace(of_items=OfItems(right, asked))


def change(
    samples: np.ndarray, baseline: np.ndarray, compared: None = None, resamples: int | None = None, seed: int = 0
) -> Score:
    """The share minus the baseline's on the same prompts and seeds, with a paired bootstrap; arguments as `score`."""
    (ours, asked), (theirs, _) = _counted(samples), _counted(baseline)
    return _share(ours - theirs, asked, resamples, seed)


def _counted(answers):
    answers = np.asarray(answers, np.float64)
    if not (answers >= 0).any():
        raise Undefined("no prompt asks for it.")
    return np.maximum(answers, 0), (answers >= 0).astype(np.float64)


def _share(right, asked, resamples, seed):
    resamples = RESAMPLES if resamples is None else resamples
    asking = asked > 0  # a resample of images that ask nothing would have no share
    shares = bootstrap_ratios(right[asking, None], asked[asking], lambda ratio: ratio[..., 0], resamples, seed)
    return Score(*shares, resamples)
