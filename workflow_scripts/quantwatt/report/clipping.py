"""Where an axis ends when a few points are so much worse than the others that these would shrink to a dot."""

from collections.abc import Collection

import numpy as np

LEAST = 1 / 3  # of the axis: where all others would have less, the worst points are drawn at its edge
MOST = 0.45  # of the points that are drawn at the edge


def worst_shown(low: np.ndarray, high: np.ndarray, kept: Collection[int] = ()) -> float:
    """The end of what is drawn in its place; worse points belong at the edge. Infinite where all have room.

    Of points that are left, again the worst go to the edge as long as they leave the others less than LEAST.

    Args:
        low, high: [n] ends of the points' intervals on the axis' scale; larger is worse.
        kept: indices of points that are never drawn at the edge.
    """
    order = np.argsort(-low, kind="stable")
    end, span = np.inf, high.max() - low.min()
    for count in range(1, int(MOST * len(order)) + 1):
        worst, others = order[:count], order[count:]
        if set(worst) & set(kept):
            break
        most, least = high[others].max(), low[others].min()
        if low[worst].min() > most and most - least < LEAST * span:
            end, span = float(most), most - least
    return end
