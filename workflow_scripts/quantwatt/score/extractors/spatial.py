"""Spatial features of Inception v3 for sFID (arXiv 2103.03841; github.com/openai/guided-diffusion, evaluations).

They are the first seven channels of 17 x 17 of the graph's node mixed_6/conv, which is what the 1x1 convolution of
PyTorch's Mixed_6d gives before it is normalized: 2,023 numbers, which see where something is.
"""

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantwatt.artifacts.manifest import sha256
from quantwatt.score import weights
from quantwatt.score.extractors import Extractor
from quantwatt.score.weights import fetch

if TYPE_CHECKING:
    import torch

__all__ = ["fetch", "load"]

CHANNELS, SIDE = 7, 299  # channels that are kept; pixels of an image
BEFORE = (  # the network's modules up to the one that is read, with clean-fid's own pooling where it differs
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2"),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c"),
)
READ = "Mixed_6d.branch1x1.conv"


def load(settings: Mapping[str, Any], device: str) -> "Spatial":
    """Load Inception's weights as pytorch-fid names them, a safetensors file.

    Args:
        settings: {"weights", "revision", "batch"}.
    Raises:
        DataError: they cannot be loaded, or are not of this network.
    """
    file = weights.file(settings)
    network = build()
    weights.load_into(network, file)
    return Spatial(network.eval().to(device), device, settings["batch"], file)


def build() -> "torch.nn.ModuleDict":
    """The modules up to the one that is read, without weights."""
    import quantwatt.jobs.torchvision_ops  # noqa: F401, I001  before clean-fid imports torchvision
    import torch
    from cleanfid import inception_pytorch as parts
    from torchvision.models import inception_v3

    whole = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False, transform_input=False)
    own = {
        "Mixed_5b": parts.FIDInceptionA(192, pool_features=32),
        "Mixed_5c": parts.FIDInceptionA(256, pool_features=64),
        "Mixed_5d": parts.FIDInceptionA(288, pool_features=64),
        "Mixed_6b": parts.FIDInceptionC(768, channels_7x7=128),
        "Mixed_6c": parts.FIDInceptionC(768, channels_7x7=160),
    }
    network = torch.nn.ModuleDict({name: own.get(name, getattr(whole, name)) for name in BEFORE})
    read = torch.nn.ModuleDict({"conv": whole.Mixed_6d.branch1x1.conv})
    network["Mixed_6d"] = torch.nn.ModuleDict({"branch1x1": read})
    return network


class Spatial(Extractor):
    """Inception's spatial features as an extractor; images are resized as clean-fid does."""

    resize = f"clean-fid 'clean': PIL bicubic to {SIDE}x{SIDE}"

    def __init__(self, network: "torch.nn.ModuleDict", device: str, batch: int, file: Path):
        import torch

        self.network, self.device, self.batch = network, torch.device(device), batch
        self.library = f"torchvision {metadata.version('torchvision')}, clean-fid {metadata.version('clean-fid')}"
        self.weights_sha256 = sha256(file)

    def image(self, files: Sequence[str | Path]) -> np.ndarray:
        """Features [n, 2023] float32 of image files, channel by channel."""
        from cleanfid.fid import get_files_features

        return get_files_features(
            [str(file) for file in files],
            model=self._embed,
            num_workers=0,
            batch_size=self.batch,
            device=self.device,
            mode="clean",
            verbose=False,
        ).astype(np.float32)

    def _embed(self, images: "torch.Tensor"):  # float [b, 3, 299, 299] in [0, 255], on the device
        import torch

        x = images / 127.5 - 1
        with torch.no_grad():
            for name in BEFORE:
                x = self.network[name](x)
            return self.network.get_submodule(READ)(x)[:, :CHANNELS].flatten(1).float()
