"""Features of clean-fid's Inception v3: the ones that published FID figures use."""

import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np

from quantwatt.manifest import DataError, sha256

FILE_NAME = "inception-2015-12-05.pt"  # the name InceptionV3W insists on


def load(settings, device):
    """Load clean-fid's TorchScript Inception v3.

    Args:
        settings: {"weights": path of inception-2015-12-05.pt, or "download" for clean-fid's own download into
            PyTorch's cache, "batch": images at once (32)}.
    Raises:
        DataError: the weights are missing, are no TorchScript file, or cannot be downloaded.
    """
    import quantwatt.torchvision_ops  # noqa: F401, I001  before clean-fid imports torchvision
    import torch
    from cleanfid.downloads_helper import check_download_inception
    from cleanfid.inception_torchscript import InceptionV3W

    weights = Path(settings["weights"])
    if settings["weights"] == "download":
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        weights = cache / FILE_NAME
        try:
            cache.mkdir(parents=True, exist_ok=True)
            check_download_inception(fpath=str(cache))
        except OSError as error:  # URLError is one
            weights.unlink(missing_ok=True)
            raise DataError(
                f"clean-fid's Inception weights cannot be downloaded ({error}); fetch {FILE_NAME} by hand "
                "and name its path as the extractor's 'weights'."
            ) from error
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


class Inception:
    """clean-fid's Inception v3 as an extractor: the 2048 pooled features."""

    resize = "clean-fid 'clean': PIL bicubic to 299x299"

    def __init__(self, model, device, batch, weights):
        self.model, self.device, self.batch = model, device, batch
        self.library = f"clean-fid {metadata.version('clean-fid')}"
        self.weights_sha256 = sha256(weights)

    def image(self, files):
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

    def text(self, prompts):
        """None: Inception reads no text."""
        return None
