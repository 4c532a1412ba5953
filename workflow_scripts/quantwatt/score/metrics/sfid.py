"""sFID: Frechet distance of Inception's spatial features, which see where something is (arXiv 2103.03841).

Its bias is FID's: compare values at equal numbers of images.
"""

from quantwatt.score.metrics.fid import PACKAGE, UNIT, change, score

__all__ = ["PACKAGE", "UNIT", "change", "score"]
