"""Cosine of the judge's features of an image and of the baseline's of the same prompt and seed (CLIP-I)."""

from quantwatt.score.metrics.dino_similarity import PACKAGE, UNIT, score

__all__ = ["PACKAGE", "UNIT", "score"]
