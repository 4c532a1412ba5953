"""DISTS: distances of images from the baseline's."""

from collections.abc import Mapping
from typing import Any

from quantwatt.score.image_pairs import PairRater
from quantwatt.score.weights import fetch, file

__all__ = ["fetch", "load"]

LEAST = 16  # pixels: VGG16 halves images four times


def load(settings: Mapping[str, Any], device: str) -> PairRater:
    """Load torchvision's weights of VGG16, a safetensors file; settings {"weights", "revision", "batch"}.

    Raises:
        DataError: they cannot be loaded, or are not of this network.
    """
    from quantwatt.score.dists import Dists

    return PairRater(Dists(file(settings)), settings, device, LEAST)
