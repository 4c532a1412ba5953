"""HPSv2 (arXiv 2306.09341): an open_clip model whose cosines of image and prompt follow people's choices."""

from collections.abc import Mapping
from typing import Any

from quantwatt.score import weights
from quantwatt.score.extractors import judge
from quantwatt.score.weights import fetch

__all__ = ["fetch", "load"]


def load(settings: Mapping[str, Any], device: str) -> judge.Clip:
    """Load a local folder of open_clip, or one of a repository; settings {"weights", "revision", "batch"}.

    Raises:
        DataError: the folder holds no such model.
    """
    folder = weights.location(settings)
    return judge.load({"model": f"local-dir:{folder}", "batch": settings["batch"]}, device)
