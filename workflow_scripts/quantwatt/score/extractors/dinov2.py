"""Features of DINOv2 (arXiv 2304.07193), its normalized class token, for FD-DINOv2 and the DINO similarity."""

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import sha256
from quantwatt.score import weights
from quantwatt.score.extractors import Extractor
from quantwatt.score.weights import fetch

if TYPE_CHECKING:
    import torch

__all__ = ["fetch", "load"]

SIZE = 224  # pixels
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's images in 0..1


def load(settings: Mapping[str, Any], device: str) -> "Dinov2":
    """Load a Dinov2Model of transformers from a folder or a repository; settings {"weights", "revision", "batch"}.

    Raises:
        DataError: the folder holds no such model.
    """
    import quantwatt.jobs.torchvision_ops  # noqa: F401, I001  before transformers
    from transformers import Dinov2Model

    folder = weights.location(settings)
    try:
        model = Dinov2Model.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(f"{folder}: no folder of a Dinov2Model, as facebook/dinov2-large is ({reason}).") from error
    return Dinov2(model.eval().to(device), device, settings["batch"], weights.file(settings))


class Dinov2(Extractor):
    """DINOv2 as an extractor; images are resized as clean-fid does, which dgm-eval's published values use, too."""

    resize = f"clean-fid 'clean': PIL bicubic to {SIZE}x{SIZE}"

    def __init__(self, model: Any, device: str, batch: int, file: Path):
        import torch

        self.model, self.device, self.batch = model, torch.device(device), batch
        self.library = f"transformers {metadata.version('transformers')}, clean-fid {metadata.version('clean-fid')}"
        self.weights_sha256 = sha256(file)

    def image(self, files: Sequence[str | Path]) -> np.ndarray:
        """Features [n, d] float32 of image files; d is 1024 of the large model."""
        from cleanfid.fid import get_files_features
        from cleanfid.resize import make_resizer

        return get_files_features(
            [str(file) for file in files],
            model=self._embed,
            num_workers=0,
            batch_size=self.batch,
            device=self.device,
            custom_fn_resize=make_resizer("PIL", False, "bicubic", (SIZE, SIZE)),
            verbose=False,
        ).astype(np.float32)

    def _embed(self, images: "torch.Tensor"):  # float [b, 3, 224, 224] in [0, 255], on the device
        import torch

        mean, deviation = (torch.tensor(v, device=images.device)[:, None, None] for v in (MEAN, DEVIATION))
        with torch.no_grad():
            return self.model((images / 255 - mean) / deviation).last_hidden_state[:, 0].float()
