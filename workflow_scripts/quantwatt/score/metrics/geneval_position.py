"""GenEval's question of position: the share of images whose objects stand where they are asked to."""

from quantwatt.score.metrics.geneval import PACKAGE, UNIT, change, score

__all__ = ["PACKAGE", "UNIT", "change", "score"]
