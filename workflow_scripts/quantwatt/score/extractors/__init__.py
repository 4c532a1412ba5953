"""Networks that read images for metrics, loaded by `registry.load("extractors", NAME)`.

An Extractor gives features, which several metrics share; a Rater gives numbers of pairs of images, or of images with
their prompts, as its schema's "x-reads" says ("pairs" or "prompts"). What a metric needs but the judge, the classifier
and Inception is an entry of an experiment's `extractors`.

A module has `fetch(settings)`, which makes the weights available on this machine and returns their files;
the folder of the first file contains all of them. Other files that `load` needs are then in the libraries' caches. It
also has `load(settings, device)`, which returns an Extractor or a Rater and downloads nothing in a job of a rule. Both
raise DataError if the weights cannot be downloaded, found or loaded.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

NAMES = sorted(path.stem.replace("_", "-") for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")


class Network(ABC):
    """What is reported of a network with every score."""

    library: str  # libraries and their versions
    resize: str  # how images are resized
    weights_sha256: str


class Rater(Network):
    """Numbers of images together with something else."""

    @abstractmethod
    def rate(self, files: Sequence[str | Path], others: Sequence[Any]) -> dict[str, np.ndarray]:
        """One number of every image: {name in small letters: float32 [n]}.

        Args:
            files: of images.
            others: [n] files of the baseline's images, or prompts.
        Raises:
            Unsupported: the network cannot read images of this size.
        """


class Extractor(Network):
    """Features of images, and optionally features of texts (of the same dimension d) or classes of images."""

    cut = 0  # number of texts that the last call of `text` truncated
    n_classes = 0  # number of classes; 0 if `classes` returns None

    @abstractmethod
    def image(self, files: Sequence[str | Path]) -> np.ndarray:
        """Features of image files, read by clean-fid: float32 [n, d]."""

    def text(self, prompts: Sequence[str]) -> np.ndarray | None:
        """Features of texts, float32 [n, d]; None if the extractor does not read texts."""
        return None

    def quality(self) -> np.ndarray:
        """Features of a text that calls an image good and of one that calls it bad, float32 [2, d].

        An extractor that reads texts defines it.
        """
        raise NotImplementedError

    def classes(self, features: np.ndarray) -> np.ndarray | None:
        """Predicted class of each image from its features [n, d], int64 [n]; None if the extractor has no classes."""
        return None
