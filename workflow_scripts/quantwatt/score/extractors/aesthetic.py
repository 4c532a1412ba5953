"""LAION's aesthetic predictor (github.com/LAION-AI/aesthetic-predictor): linear in CLIP's normalized embedding."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import sha256
from quantwatt.score import weights
from quantwatt.score.extractors import Rater, judge
from quantwatt.score.weights import fetch

if TYPE_CHECKING:
    import torch

__all__ = ["fetch", "load"]

HEAD = "head.safetensors"  # beside the CLIP model's files: weight [1, d], bias [1]


def load(settings: Mapping[str, Any], device: str) -> "Aesthetic":
    """Load a folder of open_clip with the head's file in it; settings {"weights", "revision", "batch"}.

    Raises:
        DataError: the folder holds no such model or head.
    """
    import torch

    folder = weights.location(settings)
    if not (folder / HEAD).is_file():
        raise DataError(f"{folder}: there is no {HEAD}, the aesthetic predictor's linear layer.")
    clip = judge.load({"model": f"local-dir:{folder}", "batch": settings["batch"]}, device)
    head = torch.nn.Linear(clip.model.visual.output_dim, 1)
    weights.load_into(head, folder / HEAD)
    return Aesthetic(clip, head, folder / HEAD)


class Aesthetic(Rater):
    """The predictor as a rater of images; prompts are not read."""

    def __init__(self, clip: judge.Clip, head: "torch.nn.Linear", file: Path):
        self.clip, self.head = clip, head.eval()
        self.library, self.resize = clip.library, clip.resize
        self.weights_sha256 = hashlib.sha256(f"{clip.weights_sha256} {sha256(file)}".encode()).hexdigest()

    def rate(self, files: Sequence[str | Path], others: Sequence[Any]) -> dict[str, np.ndarray]:
        """{"rating": float32 [n]} of image files, from 1 to 10 as people rated."""
        import torch

        features = torch.from_numpy(self.clip.image(files))
        with torch.no_grad():
            return {"rating": self.head(torch.nn.functional.normalize(features, dim=1))[:, 0].numpy()}
