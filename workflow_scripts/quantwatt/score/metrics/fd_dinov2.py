"""Frechet distance of DINOv2's features (Stein et al., arXiv 2306.04675), which follow people's judgement more closely.

Its bias is FID's: compare values at equal numbers of images.
"""

from quantwatt.score.metrics.fid import PACKAGE, UNIT, change, score

__all__ = ["PACKAGE", "UNIT", "change", "score"]
