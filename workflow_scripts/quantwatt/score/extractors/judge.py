"""The judge: image and text features of an open_clip model, from a local folder or the Hugging Face Hub."""

import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import read_json, sha256
from quantwatt.score.extractors import Extractor

if TYPE_CHECKING:
    import torch

QUALITY = ["Good photo.", "Bad photo."]
LOCAL_WEIGHTS = "open_clip_model.safetensors"


def fetch(settings: Mapping[str, Any]) -> list[Path]:
    """The files of an open_clip model; settings as for `load`.

    A model given by name is loaded once: this puts its configuration, weights and tokenizer into the libraries' caches.
    So is a local folder whose text tower refers to a configuration on the Hugging Face Hub.

    Raises:
        DataError: the model or its weights cannot be downloaded or loaded.
    """
    schema, _, folder = settings["model"].partition(":")
    if schema == "local-dir":
        files = sorted(path for path in Path(folder).glob("*") if path.is_file())
        config = Path(folder) / "open_clip_config.json"
        if config in files and "hf_model_name" not in json.dumps(read_json(config)):
            return [_local_weights(folder), *(path for path in files if path.name != LOCAL_WEIGHTS)]
    return [load(settings, "cpu").weights]


def _local_weights(folder):
    path = Path(folder) / LOCAL_WEIGHTS
    if not path.is_file():
        raise DataError(f"open_clip model local-dir:{folder}: cannot be loaded ({path} does not exist).")
    return path


def load(settings: Mapping[str, Any], device: str) -> "Clip":
    """Load an open_clip model.

    Args:
        settings: {"model": "local-dir:PATH", "hf-hub:ORGANIZATION/NAME" or a name that open_clip knows,
            "pretrained": open_clip's tag of the weights (only for a name), "batch": images per batch (64)}.
            A local folder contains open_clip_config.json, open_clip_model.safetensors and a tokenizer.
    Raises:
        DataError: the model or its weights cannot be loaded.
    """
    from quantwatt.jobs import lean_imports, torchvision_ops  # noqa: F401  (the second before open_clip)

    lean_imports.load("open_clip")
    import open_clip
    import torch
    from safetensors import SafetensorError

    name, pretrained = settings["model"], settings.get("pretrained")
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # open_clip logs a warning before it raises the same error
    try:
        weights = Path(_weights_file(open_clip, name, pretrained))
        if weights.suffix != ".safetensors":
            raise ValueError(f"{weights.name} is not a safetensors file, the only format that is read")
        model, preprocess = open_clip.create_model_from_pretrained(name, pretrained, device=device)
        tokenizer = open_clip.get_tokenizer(name)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:  # no folder, no network, ...
        message = " ".join(str(error).split())
        raise DataError(f"open_clip model {name}: cannot be loaded ({message}).") from error
    finally:
        logging.disable(level)
    return Clip(model.eval(), preprocess, tokenizer, torch.device(device), settings.get("batch", 64), weights)


class Clip(Extractor):
    """An open_clip model as an extractor. Features are the embeddings, not normalized."""

    def __init__(
        self,
        model: Any,
        preprocess: Callable[..., "torch.Tensor"],
        tokenizer: Callable[..., "torch.Tensor"],
        device: "torch.device",
        batch: int,
        weights: Path,
    ):
        self.model, self.preprocess, self.tokenizer = model, preprocess, tokenizer
        self.device, self.batch, self.cut = device, batch, 0
        self.library = f"open_clip {metadata.version('open_clip_torch')}, clean-fid {metadata.version('clean-fid')}"
        size = model.visual.image_size
        height, width = size if isinstance(size, tuple) else (size, size)
        self.resize = f"open_clip preprocessing to {height}x{width}"
        self.weights, self.weights_sha256 = weights, sha256(weights)

    def image(self, files: Sequence[str | Path]) -> np.ndarray:
        """Features [n, d] float32 of image files: clean-fid reads and batches them, open_clip resizes them."""
        from cleanfid.fid import get_files_features

        return get_files_features(
            [str(file) for file in files],
            model=self._embed,
            num_workers=0,
            batch_size=self.batch,
            device=self.device,
            custom_fn_resize=lambda pixels: pixels,
            verbose=False,
        ).astype(np.float32)

    def text(self, prompts: Sequence[str]) -> np.ndarray:
        """Features [n, d] float32 of texts; `cut` counts texts that are longer than the context and truncated."""
        import torch

        features, self.cut = [], 0
        with torch.no_grad():
            for i in range(0, len(prompts), self.batch):
                tokens = self.tokenizer(prompts[i : i + self.batch])
                length = tokens.shape[1]
                longer = self.tokenizer(prompts[i : i + self.batch], context_length=length + 1)
                self.cut += int((longer[:, :length] != tokens).any(dim=1).sum())  # the end token moves
                features.append(self.model.encode_text(tokens.to(self.device)).float().cpu().numpy())
        if self.cut:
            print(f"{self.cut} of {len(prompts)} prompts are longer than {length} tokens: the judge truncates them.",
                  file=sys.stderr)  # fmt: skip
        return np.concatenate(features)

    def quality(self) -> np.ndarray:
        """Features [2, d] of CLIP-IQA's two texts (arXiv 2207.12396)."""
        import torch

        with torch.no_grad():
            return self.model.encode_text(self.tokenizer(QUALITY).to(self.device)).float().cpu().numpy()

    def _embed(self, images):  # float [b, 3, h, w] in [0, 255], on the device
        import torch
        from PIL import Image

        pixels = images.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
        prepared = torch.stack([self.preprocess(Image.fromarray(image)) for image in pixels])
        return self.model.encode_image(prepared.contiguous().to(self.device)).float()


def _weights_file(open_clip, name, pretrained):
    """The weights' file of an open_clip model; it is downloaded if it is not on this machine."""
    schema, _, identifier = name.partition(":")
    if schema == "local-dir":
        return _local_weights(identifier)
    if schema == "hf-hub":
        return open_clip.pretrained.download_pretrained_from_hf(identifier)
    config = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else None
    if not config:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none, the model is unknown"
        raise ValueError(f"'pretrained' is {pretrained!r}, and its weights are: {tags}")
    return open_clip.download_pretrained(config)
