"""LPIPS by AlexNet: distances of images from the baseline's."""

from collections.abc import Mapping
from typing import Any

from quantwatt.score.image_pairs import PairRater
from quantwatt.score.weights import fetch, file

__all__ = ["fetch", "load"]


def load(settings: Mapping[str, Any], device: str) -> PairRater:
    """Load torchvision's weights, a safetensors file; settings {"weights", "revision", "batch"}.

    Raises:
        DataError: they cannot be loaded, or are not of this network.
    """
    from quantwatt.score.lpips import BACKBONES, Lpips

    return PairRater(Lpips("alex", file(settings)), settings, device, BACKBONES["alex"].least)
