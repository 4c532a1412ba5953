"""GenEval's questions of captioned shapes, answered by the embedded attribute classifier."""

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantwatt.artifacts.errors import DataError, Unsupported
from quantwatt.artifacts.manifest import sha256
from quantwatt.data import scenes
from quantwatt.score import scene_questions, weights
from quantwatt.score.extractors import Rater
from quantwatt.score.weights import fetch

if TYPE_CHECKING:
    from quantwatt.score.attribute_classifier import AttributeClassifier

__all__ = ["fetch", "load"]


def load(settings: Mapping[str, Any], device: str) -> "Attributes":
    """Load the folder of a classifier; settings {"weights", "revision", "batch"}. It computes on the CPU.

    Raises:
        DataError: the folder holds no such classifier.
    """
    from safetensors import SafetensorError

    from quantwatt.score import attribute_classifier

    folder = weights.location(settings)
    try:
        model = attribute_classifier.load(folder)
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise DataError(f"{folder}: no attribute classifier ({' '.join(str(error).split())}).") from error
    return Attributes(model, settings["batch"], weights.file(settings))


class Attributes(Rater):
    """The attribute classifier as a rater of images with their prompts, which are captions of scenes."""

    resize = "none"

    def __init__(self, model: "AttributeClassifier", batch: int, file: Path):
        self.model, self.batch, self.weights_sha256 = model, batch, sha256(file)
        self.library = f"torch {metadata.version('torch')}"

    def rate(self, files: Sequence[str | Path], others: Sequence[str]) -> dict[str, np.ndarray]:
        """{question: float32 [n]} of files of 64 x 64 pixels and prompts; see `scene_questions`."""
        from PIL import Image

        from quantwatt.score import attribute_classifier

        try:
            asked = [scenes.parse(prompt) for prompt in others]
        except ValueError as error:
            raise DataError(f"the attribute classifier reads prompts of scenes alone: {error}.") from error
        pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
        if pixels.shape[1:3] != (scenes.IMAGE_SIZE, scenes.IMAGE_SIZE):
            size = f"{pixels.shape[1]} x {pixels.shape[2]}"
            raise Unsupported(f"the attribute classifier reads images of 64 x 64 pixels, and these are {size}.")
        seen = attribute_classifier.read(self.model, pixels, self.batch)
        found = [scene_questions.answers(*pair) for pair in zip(asked, seen, strict=True)]
        return {name: np.array([one[name] for one in found], np.float32) for name in scene_questions.QUESTIONS}
