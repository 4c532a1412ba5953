"""HPSv2: how far people would prefer an image for its prompt (arXiv 2306.09341).

The value is 100 x the cosine, as tables of papers show it; the package `hpsv2` returns the cosine.
"""

from quantwatt.score.metrics.clip_score import PACKAGE, UNIT, change, score

__all__ = ["PACKAGE", "UNIT", "change", "score"]
