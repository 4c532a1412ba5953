"""LPIPS by SqueezeNet."""

from quantwatt.score.metrics.lpips import PACKAGE, UNIT, score

__all__ = ["PACKAGE", "UNIT", "score"]
