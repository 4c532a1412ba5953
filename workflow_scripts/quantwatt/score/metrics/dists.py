"""DISTS, a distance of structure and texture to the baseline's image of the same prompt and seed (arXiv 2004.07728)."""

from quantwatt.score.metrics.lpips import PACKAGE, UNIT, score

__all__ = ["PACKAGE", "UNIT", "score"]
