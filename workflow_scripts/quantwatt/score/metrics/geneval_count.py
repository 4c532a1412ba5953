"""GenEval's question of count: the share of images with as many objects as asked."""

from quantwatt.score.metrics.geneval import PACKAGE, UNIT, change, score

__all__ = ["PACKAGE", "UNIT", "change", "score"]
