"""GenEval's question of colour: the share of images whose objects have their colours."""

from quantwatt.score.metrics.geneval import PACKAGE, UNIT, change, score

__all__ = ["PACKAGE", "UNIT", "change", "score"]
