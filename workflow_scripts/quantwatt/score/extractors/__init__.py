"""Feature extractors, loaded by `registry.load("extractors", NAME)`.

An extractor's module has `fetch(settings)`, which makes the weights available on this machine and returns their files;
the folder of the first file contains all of them. Other files that `load` needs are then in the libraries' caches. It
also has `load(settings, device)`, which returns an Extractor and downloads nothing in a job of a rule. Both raise
DataError if the weights cannot be downloaded, found or loaded.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

NAMES = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")


class Extractor(ABC):
    """Features of images, and optionally features of texts (of the same dimension d) or classes of images."""

    library: str  # libraries and their versions, reported with every score
    resize: str  # how images are resized, reported with every score
    weights_sha256: str
    cut = 0  # number of texts that the last call of `text` truncated
    n_classes = 0  # number of classes; 0 if `classes` returns None

    @abstractmethod
    def image(self, files: Sequence[str | Path]) -> np.ndarray:
        """Features of image files, read by clean-fid: float32 [n, d]."""

    def text(self, prompts: Sequence[str]) -> np.ndarray | None:
        """Features of texts, float32 [n, d]; None if the extractor does not read texts."""
        return None

    def classes(self, features: np.ndarray) -> np.ndarray | None:
        """Predicted class of each image from its features [n, d], int64 [n]; None if the extractor has no classes."""
        return None
