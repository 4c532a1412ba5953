"""A classifier: its penultimate features for FID and KID, and its predicted class of every image."""

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import sha256
from quantwatt.score.extractors import Extractor

if TYPE_CHECKING:
    import torch

DIGITS = "digits"  # the only network that is not from torchvision
IMAGENET_SIZE = 224
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of torchvision's weights


def fetch(settings: Mapping[str, Any]) -> list[Path]:
    """The files of a classifier's weights, which the user provides; settings as for `load`.

    Raises:
        DataError: there are no files.
    """
    path = Path(settings["path"])
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise DataError(f"classifier {settings['network']}: {path} is missing or empty; name the weights' path.")
    return files


def load(settings: Mapping[str, Any], device: str) -> "Classifier":
    """Load a classifier.

    Args:
        settings: {"network": "digits" or a classification model of torchvision (resnet50), "path": the folder that
            `quantwatt.score.digit_classifier` has written, or the safetensors file of torchvision's weights,
            "batch": images per batch (64)}.
    Raises:
        DataError: there is no such network, or its weights cannot be loaded.
    """
    import quantwatt.jobs.torchvision_ops  # noqa: F401, I001  must come before torchvision
    import torch
    from safetensors import SafetensorError

    name, path = settings["network"], Path(settings["path"])
    try:
        if name == DIGITS:
            from quantwatt.score import digit_classifier

            model, weights = digit_classifier.load(path), path / "model.safetensors"
        else:
            model, weights = _of_torchvision(name, path), path
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        message = " ".join(str(error).split())
        raise DataError(f"classifier {name}: {path} cannot be loaded ({message}).") from error
    return Classifier(name, model.eval().to(device), torch.device(device), settings.get("batch", 64), weights)


def _of_torchvision(name, path):
    """A torchvision network with weights from a safetensors file (pickle files are never read)."""
    from safetensors.torch import load_file
    from torchvision.models import get_model

    model = get_model(name, weights=None)
    model.load_state_dict(load_file(path))
    return model


class Classifier(Extractor):
    """A classifier as an extractor. Features are the inputs of its last linear layer."""

    def __init__(self, name: str, model: Any, device: "torch.device", batch: int, weights: Path):
        import torch

        self.model, self.device, self.batch = model, device, batch
        self.head = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
        self.of_digits, self.n_classes = name == DIGITS, self.head.out_features
        self.size = model.image_size if self.of_digits else IMAGENET_SIZE
        self.library = f"clean-fid {metadata.version('clean-fid')}"
        if not self.of_digits:
            self.library = f"torchvision {metadata.version('torchvision')} {name}, {self.library}"
        self.resize = f"PIL bicubic to {self.size}x{self.size}"
        self.weights_sha256 = sha256(weights)

    def image(self, files: Sequence[str | Path]) -> np.ndarray:
        """Features [n, d] float32 of image files: clean-fid reads and batches them."""
        from cleanfid.fid import get_files_features

        return get_files_features(
            [str(file) for file in files],
            model=self._features,
            num_workers=0,
            batch_size=self.batch,
            device=self.device,
            custom_fn_resize=self._resize,
            verbose=False,
        ).astype(np.float32)

    def classes(self, features: np.ndarray) -> np.ndarray:
        """Predicted classes, int64 [n], from features [n, d]."""
        import torch

        with torch.no_grad():
            seen = [self.head(part.to(self.device)).argmax(-1) for part in torch.from_numpy(features).split(4096)]
        return torch.cat(seen).cpu().numpy()

    def _resize(self, pixels):  # uint8 [h, w, 3] -> [size, size, 3]
        from PIL import Image

        if pixels.shape[:2] == (self.size, self.size):
            return pixels
        return np.asarray(Image.fromarray(pixels).resize((self.size, self.size), Image.Resampling.BICUBIC))

    def _features(self, images):  # float [b, 3, h, w] in [0, 255], on the device
        import torch

        seen = []
        handle = self.head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        with torch.no_grad(), handle:
            if self.of_digits:
                self.model(images / 127.5 - 1)
            else:
                mean, deviation = (torch.tensor(v, device=images.device)[:, None, None] for v in
                                   (IMAGENET_MEAN, IMAGENET_DEVIATION))  # fmt: skip
                self.model((images / 255 - mean) / deviation)
        return seen[0].flatten(1).float()
