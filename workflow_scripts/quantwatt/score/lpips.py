"""LPIPS (Zhang et al., arXiv 1801.03924, version 0.1): distances of deep features under learned weights.

Heads: resources/models/perceptual/lpips-NETWORK.safetensors, those that the authors' package `lpips` 0.1.4 contains.
Backbones: torchvision's classifiers, trained on ImageNet.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantwatt.artifacts.manifest import PROJECT
from quantwatt.score import weights

HEADS = PROJECT / "resources/models/perceptual"
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of images in -1..1
SMALL = 1e-10  # is added to the length of a feature


@dataclass(frozen=True)
class Backbone:
    """A torchvision network: the layers of its `features` after which LPIPS compares, and the smallest image."""

    model: str
    after: tuple[int, ...]
    least: int  # pixels


BACKBONES = {
    "alex": Backbone("alexnet", (1, 4, 7, 9, 11), 31),
    "vgg": Backbone("vgg16", (3, 8, 15, 22, 29), 16),
    "squeeze": Backbone("squeezenet1_1", (1, 4, 7, 9, 10, 11, 12), 17),
}


def layers_of(model: str, path: str | Path, last: int) -> nn.Sequential:
    """The layers of a torchvision network (its `features`) up to the last one, with weights of a safetensors file.

    Raises:
        DataError: the file does not have them.
    """
    import quantwatt.jobs.torchvision_ops  # noqa: F401, I001  before torchvision
    from torchvision.models import get_model

    with torch.device("meta"):  # nothing is initialized
        layers: Any = get_model(model, weights=None).features
    layers = layers.to_empty(device="cpu").eval().requires_grad_(False)
    weights.load_into(layers, path, prefix="features.")
    return layers[: last + 1]


class Lpips(nn.Module):
    """Distances of pairs of images."""

    layers: nn.Sequential

    def __init__(self, network: str, path: str | Path):
        super().__init__()
        self.after = BACKBONES[network].after
        self.layers = layers_of(BACKBONES[network].model, path, self.after[-1])
        self.heads = nn.Module()
        for index, feature in enumerate(self._features(torch.zeros(1, 3, 64, 64))):
            self.heads.register_buffer(f"lin{index}", torch.empty(feature.shape[1]))
        weights.load_into(self.heads, HEADS / f"lpips-{network}.safetensors")

    def _features(self, x):
        seen = []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in self.after:
                seen.append(x / (x.square().sum(1, keepdim=True).sqrt() + SMALL))
        return seen

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Distances [b] of images [b, 3, h, w] in 0..1."""
        shift, scale = (torch.tensor(v, device=one.device)[:, None, None] for v in (SHIFT, SCALE))
        features = (self._features((2 * images - 1 - shift) / scale) for images in (one, other))
        total = torch.zeros(len(one), device=one.device)
        for index, (here, there) in enumerate(zip(*features, strict=True)):
            head = self.heads.get_buffer(f"lin{index}")
            total += torch.einsum("bchw,c->bhw", (here - there).square(), head).mean((1, 2))
        return total
