"""The embedded model's own judge: a small open_clip model of captioned shapes.

Its figures are not comparable with those of published Inception or CLIP features.
"""

from quantwatt.extractors.clip import load

__all__ = ["load"]
