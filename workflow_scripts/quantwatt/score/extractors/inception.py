"""Features of clean-fid's Inception v3, which published FID values use."""

import tempfile
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

FILE_NAME = "inception-2015-12-05.pt"  # InceptionV3W requires this name


def fetch(settings: Mapping[str, Any]) -> list[Path]:
    """The weights' file; with "weights": "download", clean-fid fetches it into PyTorch's cache. Settings as for `load`.

    A killed download leaves no incomplete file in the cache.

    Raises:
        DataError: the file is missing, or cannot be downloaded.
    """
    weights = _path(settings)
    if settings["weights"] == "download" and not weights.is_file():
        _download(weights)
    if not weights.is_file():
        raise DataError(f"{weights}: no such file of Inception weights; give the path of {FILE_NAME} or 'download'.")
    return [weights]


def _path(settings):
    """The path of the weights; a download goes to the folder of TORCH_HOME."""
    if settings["weights"] != "download":
        return Path(settings["weights"])
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / FILE_NAME


def _download(weights):
    from cleanfid.downloads_helper import check_download_inception

    try:
        weights.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=weights.parent) as folder:
            Path(check_download_inception(fpath=folder)).replace(weights)
    except OSError as error:  # includes URLError
        raise DataError(
            f"clean-fid's Inception weights cannot be downloaded ({error}); fetch {FILE_NAME} by hand "
            "and name its path as the extractor's 'weights'."
        ) from error


def load(settings: Mapping[str, Any], device: str) -> "Inception":
    """Load clean-fid's TorchScript Inception v3.

    Args:
        settings: {"weights": path of inception-2015-12-05.pt, or "download" for the file that `fetch` has
            downloaded, "batch": images per batch (32)}.
    Raises:
        DataError: the weights are missing, or are not a TorchScript file.
    """
    import quantwatt.jobs.torchvision_ops  # noqa: F401, I001  before clean-fid imports torchvision
    import torch
    from cleanfid.inception_torchscript import InceptionV3W

    weights = _path(settings)
    if not weights.is_file():
        raise DataError(f"{weights}: no such file of Inception weights; give the path of {FILE_NAME} or 'download'.")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / FILE_NAME).symlink_to(weights.resolve())
        try:
            model = InceptionV3W(folder, download=False).to(device).eval()
        except RuntimeError as error:
            raise DataError(
                f"{weights}: not a readable TorchScript file (truncated?); delete it and fetch it again."
            ) from error
    return Inception(model, torch.device(device), settings.get("batch", 32), weights)


class Inception(Extractor):
    """clean-fid's Inception v3 as an extractor. Features are its 2048 pooled activations."""

    resize = "clean-fid 'clean': PIL bicubic to 299x299"

    def __init__(self, model: "torch.nn.Module", device: "torch.device", batch: int, weights: Path):
        self.model, self.device, self.batch = model, device, batch
        self.library = f"clean-fid {metadata.version('clean-fid')}"
        self.weights_sha256 = sha256(weights)

    def image(self, files: Sequence[str | Path]) -> np.ndarray:
        """Features [n, 2048] float32 of image files, resized as clean-fid does."""
        from cleanfid.fid import get_files_features

        return get_files_features(
            [str(file) for file in files],
            model=self.model,
            num_workers=0,
            batch_size=self.batch,
            device=self.device,
            mode="clean",
            verbose=False,
        ).astype(np.float32)
