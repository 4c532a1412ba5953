"""GenEval's question of object: the share of images with the objects asked for."""

from quantwatt.score.metrics.geneval import PACKAGE, UNIT, change, score

__all__ = ["PACKAGE", "UNIT", "change", "score"]
