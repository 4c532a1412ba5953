"""Rate pairs of images by a network."""

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantwatt.artifacts.errors import Unsupported
from quantwatt.artifacts.manifest import sha256
from quantwatt.score import weights
from quantwatt.score.extractors import Rater

if TYPE_CHECKING:
    import torch


def read(files: Sequence[str | Path], device: "torch.device") -> "torch.Tensor":
    """Images of one size: float32 [n, 3, h, w] in 0..1."""
    import torch
    from PIL import Image

    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).contiguous().float() / 255


class PairRater(Rater):
    """A network that gives one distance of every pair of images, at the size that they have."""

    resize = "none"

    def __init__(self, network: "torch.nn.Module", settings: Mapping[str, Any], device: str, least: int):
        """Of a network that takes two batches [b, 3, h, w] in 0..1 of at least `least` pixels, and returns [b]."""
        import torch

        self.network, self.device, self.batch = network.eval().to(device), torch.device(device), settings["batch"]
        self.least = least
        self.library = f"torchvision {metadata.version('torchvision')}"
        self.weights_sha256 = sha256(weights.file(settings))

    def rate(self, files: Sequence[str | Path], others: Sequence[str | Path]) -> dict[str, np.ndarray]:
        """{"distance": float32 [n]} of files of images and of the baseline's."""
        import torch

        found = []
        for first in range(0, len(files), self.batch):
            one, other = (read(side[first : first + self.batch], self.device) for side in (files, others))
            if (side := min(one.shape[2:])) < self.least:
                raise Unsupported(f"the network reads images from {self.least} pixels on, and these have {side}.")
            with torch.no_grad():
                found.append(self.network(one, other).float().cpu().numpy())
        return {"distance": np.concatenate(found)}
