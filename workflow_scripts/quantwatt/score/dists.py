"""DISTS (Ding et al., arXiv 2004.07728): similarity of structure and texture in VGG16's features.

The weights of channels, resources/models/perceptual/dists.safetensors, are of the authors' package `DISTS-pytorch` 0.1.
"""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from quantwatt.score import weights
from quantwatt.score.lpips import HEADS, layers_of

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's images in 0..1
AFTER = (3, 8, 15, 22, 29)  # the last layer of each of VGG16's stages
CHANNELS = (3, 64, 128, 256, 512, 512)  # of the image and of each stage
SMALL = 1e-6


class Dists(nn.Module):
    """Distances of pairs of images.

    Maximum pooling is replaced by L2 pooling with a Hann window, without aliasing.
    """

    layers: nn.Sequential

    def __init__(self, path: str | Path):
        super().__init__()
        self.layers = layers_of("vgg16", path, AFTER[-1])
        window = torch.hann_window(5, periodic=False)[1:-1]
        self.register_buffer("window", torch.outer(window, window) / window.sum() ** 2)
        self.channels = nn.Module()
        for name in ("alpha", "beta"):
            self.channels.register_buffer(name, torch.empty(1, sum(CHANNELS), 1, 1))
        weights.load_into(self.channels, HEADS / "dists.safetensors")

    def _pooled(self, x):
        window = self.get_buffer("window").expand(x.shape[1], 1, -1, -1)
        return (functional.conv2d(x.square(), window, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()

    def _features(self, images):
        mean, deviation = (torch.tensor(v, device=images.device)[:, None, None] for v in (MEAN, DEVIATION))
        x, seen = (images - mean) / deviation, [images]
        for index, layer in enumerate(self.layers):
            x = self._pooled(x) if isinstance(layer, nn.MaxPool2d) else layer(x)
            if index in AFTER:
                seen.append(x)
        return seen

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Distances [b] of images [b, 3, h, w] in 0..1: 1 - the weighted similarities of means and of structures."""
        features = zip(self._features(one), self._features(other), strict=True)
        texture, structure = (self.channels.get_buffer(name)[0, :, 0, 0] for name in ("alpha", "beta"))
        total, similarity, first = texture.sum() + structure.sum(), torch.zeros(len(one), device=one.device), 0
        for x, y in features:
            here = slice(first, first := first + x.shape[1])
            x_mean, y_mean = x.mean((2, 3)), y.mean((2, 3))  # [b, c]
            means = (2 * x_mean * y_mean + SMALL) / (x_mean.square() + y_mean.square() + SMALL)
            x_variance, y_variance = x.var((2, 3), correction=0), y.var((2, 3), correction=0)
            covariance = (x * y).mean((2, 3)) - x_mean * y_mean
            structures = (2 * covariance + SMALL) / (x_variance + y_variance + SMALL)
            similarity += (means * texture[here] + structures * structure[here]).sum(1) / total
        return 1 - similarity
