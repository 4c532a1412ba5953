"""The interface of a model family: how one kind of pipeline is loaded, run and split into blocks and layers.

A module of families/ has a class `Family`, which extends ImageFamily or TextFamily. It must define the abstract methods
and may override the methods with a default. `quantwatt.models.architecture` detects the blocks and layers of a network
that is not described otherwise; families/pipeline_family.py is the shared base of families of diffusers pipelines.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from quantwatt.models.network import Network
from quantwatt.models.sampling import Drawing, Reading

Settings = Mapping[str, Any]  # a model's entry, completed by its family's schema
Pipeline = Any  # diffusers' class, or quantwatt.models.text_pipeline's
Batch = Any  # prompts or sentences; or windows of a text, a tensor of tokens
Asked = Any  # a Drawing of an image family, a Reading of a text family
Run = Callable[[], Any]  # runs once and leaves its result on the device


class Family(Network, ABC):
    """Base of image and text families; `denoiser` is the network that a method quantizes, also in text models."""

    DEFAULTS: ClassVar[Mapping[str, Any]] = {}  # generation settings for notebooks: steps, guidance
    PHASES_APART: ClassVar[tuple[str, ...]] = ()  # phases that `prepare`'s run does not include
    # Modules that a job imports without what they do not need, before any other of their libraries.
    LIBRARIES: ClassVar[tuple[str, ...]] = ()
    PADS: ClassVar[bool] = False  # whether a batch's samples are padded to one length; then define `real_tokens`

    @abstractmethod
    def load(self, settings: Settings, location: str | Path, denoiser: torch.nn.Module | None = None) -> Pipeline:
        """The whole pipeline on the CPU, with `denoiser` in place of the stored one if given."""

    @abstractmethod
    def load_denoiser(self, settings: Settings, location: str | Path) -> torch.nn.Module:
        """The denoiser alone, on the CPU, in the model's type."""

    @abstractmethod
    def meta_denoiser(self, location: str | Path) -> torch.nn.Module:
        """The denoiser's architecture: parameters on the meta device."""

    def load_network(self, settings: Settings, location: str | Path) -> torch.nn.Module:
        """See Network: the denoiser."""
        return self.load_denoiser(settings, location)

    def meta_network(self, location: str | Path) -> torch.nn.Module:
        """See Network: the denoiser."""
        return self.meta_denoiser(location)

    @abstractmethod
    def prepare(self, pipeline: Pipeline, batch: Batch, seeds: Sequence[int], asked: Asked, /) -> Run:
        """A function that computes one batch and leaves the result on the device."""

    @abstractmethod
    def phases(self, pipeline: Pipeline, batch: Batch, seeds: Sequence[int], asked: Asked, /) -> dict[str, Run]:
        """{phase: function that computes only this phase of a batch}, in order."""

    def check(self, location: str | Path) -> None:
        """Refuse an unsuitable pipeline by its configuration files, before its weights are downloaded.

        Raises:
            DataError: the folder holds no pipeline that this family can run.
        """
        return None

    def transposed(self, location: str | Path) -> set[str]:
        """Layers whose weights the model's library stores as [in, out]."""
        return set()

    def work(self, pipeline: Pipeline, batch: Batch, asked: Asked, /) -> dict[str, int] | None:
        """{"items", "tokens", "padded_tokens"} of one call of `prepare`'s function; None where a batch has no tokens.

        Families with a phase `decode` also return "new_tokens", the tokens that one call of it writes.
        """
        return None


class Recorded(dict[int, dict[str, torch.Tensor]]):
    """{step: {denoiser input: [batch, ...]}}, and in `timesteps` {step: the scheduler's timestep}."""

    def __init__(self, inputs: Mapping[int, dict[str, torch.Tensor]], timesteps: Mapping[int, float]):
        super().__init__(inputs)
        self.timesteps = timesteps


class ImageFamily(Family):
    """Generates one image for each prompt and seed."""

    @abstractmethod
    def load(
        self,
        settings: Settings,
        location: str | Path,
        denoiser: torch.nn.Module | None = None,
        **components: torch.nn.Module,
    ) -> Pipeline:
        """See Family; `components` replace stored parts, by name."""

    @abstractmethod
    def denoiser_name(self, location: str | Path) -> str:
        """The denoiser's name among the parts of a pipeline's folder."""

    @abstractmethod
    def denoiser(self, pipeline: Pipeline) -> torch.nn.Module:
        """The denoiser of a loaded pipeline."""

    @abstractmethod
    def generate(
        self, pipeline: Pipeline, prompts: Sequence[str], seeds: Sequence[int], drawing: Drawing
    ) -> np.ndarray:
        """Images of one batch: float32 [n, height, width, 3] in 0..1, NaN where the model produced NaN.

        Image i depends on its prompt and seed in the same way for every method, device and batch.
        """

    @abstractmethod
    def record(
        self,
        pipeline: Pipeline,
        prompts: Sequence[str],
        seeds: Sequence[int],
        drawing: Drawing,
        steps: set[int],
    ) -> Recorded:
        """Denoiser inputs along the trajectory of the unquantized model, as `recording.record` returns them."""


class TextFamily(Family):
    """Reads sentences or running text; its schema says "x-kind": "text"."""

    LIBRARIES = ("transformers.modeling_utils",)

    @abstractmethod
    def read(self, path: str | Path) -> tuple[list[str], list[int] | list[str] | None]:
        """(texts, labels or None) of a file."""

    @abstractmethod
    def predict(self, pipeline: Pipeline, texts: Sequence[str], reading: Reading) -> list[dict[str, Any]]:
        """The model's predictions: one mapping per sentence or window, in order."""

    @abstractmethod
    def batches(self, pipeline: Pipeline, texts: Sequence[str], reading: Reading, size: int, count: int) -> list[Batch]:
        """The first `count` batches of `size` sentences or windows, as `prepare` takes them.

        Raises:
            DataError: the texts give fewer batches.
        """

    @abstractmethod
    def record(self, pipeline: Pipeline, texts: Sequence[str], reading: Reading) -> dict[str, torch.Tensor]:
        """{network input: [samples, ...]} of calibration texts."""
