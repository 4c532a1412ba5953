"""Feature extractors, loaded by `registry.load("extractors", NAME)`.

An extractor's module has `fetch(settings)`, which makes its weights available on this machine and returns their files,
the first in the folder that holds all of them; what `load` reads beside them is then in the libraries' caches. It has
`load(settings, device)`, which fetches nothing in a job of a rule. Both raise DataError where the weights cannot be had
or loaded. `load` returns an Extractor.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

NAMES = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")


class Extractor(ABC):
    """Features of images, and of texts or classes where it reads or sees them; d is the same for both."""

    library: str  # and its version, ...
    resize: str  # how images are resized, ...
    weights_sha256: str  # what to print beside a figure
    cut = 0  # texts of the last call that were too long for it
    n_classes = 0  # that it knows; then there is `classes`

    @abstractmethod
    def image(self, files: Sequence[str | Path]) -> np.ndarray:
        """Features of image files, through clean-fid: float32 [n, d]."""

    def text(self, prompts: Sequence[str]) -> np.ndarray | None:
        """Features of texts, float32 [n, d]; None where it reads none."""
        return None

    def classes(self, features: np.ndarray) -> np.ndarray | None:
        """The class seen in each image of which these are the features, int64 [n]; None where it knows none."""
        return None
