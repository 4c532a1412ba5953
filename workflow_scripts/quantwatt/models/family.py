"""What a family of models offers: how a kind of pipeline is loaded, run and taken apart.

A module of families/ has a class `Family`, which extends ImageFamily or TextFamily: it must define what is abstract
here, and may leave what has a default. `quantwatt.models.architecture` finds the blocks and layers of a network of
which nothing else is known; families/pipeline_family.py has what diffusers' pipelines do alike.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

Settings = Mapping[str, Any]  # completed by a schema of resources/schemas/
Pipeline = Any  # diffusers' class, or quantwatt.models.text_pipeline's
Run = Callable[[], Any]  # does something once, and leaves what it made on the device


class Family(ABC):
    """What image and text models share; `denoiser` is the network that is quantized, also where it denoises nothing."""

    BLOCKS: ClassVar[str] = ""  # the ModuleList of the denoiser's blocks, in execution order
    # Patterns of the ends of a block's layers' names: those of each read what those of the ones before have computed.
    STAGES: ClassVar[tuple[str, ...]] = ()
    DEFAULTS: ClassVar[Settings] = {}  # of a sampling, for notebooks: steps, guidance
    PHASES_APART: ClassVar[tuple[str, ...]] = ()  # phases that are no part of `prepare`'s run
    PADS: ClassVar[bool] = False  # whether a batch's samples are padded to one length; then there is `real_tokens`

    @abstractmethod
    def load(self, settings: Settings, location: str | Path, denoiser: torch.nn.Module | None = None) -> Pipeline:
        """The whole pipeline on the CPU, with `denoiser` in place of the stored one if given."""

    @abstractmethod
    def load_denoiser(self, settings: Settings, location: str | Path) -> torch.nn.Module:
        """The denoiser alone, on the CPU, in the model's type."""

    @abstractmethod
    def meta_denoiser(self, location: str | Path) -> torch.nn.Module:
        """The denoiser's architecture: parameters on the meta device."""

    @abstractmethod
    def prepare(self, pipeline: Pipeline, batch: Sequence, seeds: Sequence[int], settings: Settings) -> Run:
        """A function that does one batch and leaves the result on the device."""

    @abstractmethod
    def phases(self, pipeline: Pipeline, batch: Sequence, seeds: Sequence[int], settings: Settings) -> dict[str, Run]:
        """{name: function that does this part of a batch by itself}, in order."""

    def check(self, location: str | Path) -> None:
        """Refuse a folder of which only the configuration files are there yet, before gigabytes are fetched.

        Raises:
            DataError: it holds no pipeline that this family can run.
        """
        return None

    def blocks(self, denoiser: torch.nn.Module) -> list[str]:
        """Names of the modules that are quantized one after another."""
        return [f"{self.BLOCKS}.{name}" for name, _ in denoiser.get_submodule(self.BLOCKS).named_children()]

    def quantizable(self, denoiser: torch.nn.Module) -> list[str]:
        """Names of the layers that may be quantized, each in one block.

        They are the linear ones, and convolutions where a family says so. Embeddings, norms and heads keep the model's
        type.
        """
        return [
            name
            for name, module in denoiser.named_modules()
            if isinstance(module, torch.nn.Linear) and name.startswith(f"{self.BLOCKS}.")
        ]

    def segments(self, denoiser: torch.nn.Module) -> dict[str, int]:
        """{layer: chunks} of the layers whose outputs are cut into chunks of equal size that are used apart."""
        return {}

    def stages(self, names: list[str]) -> list[list[str]] | None:
        """A block's layers in groups of which each reads what those before it have computed.

        Args:
            names: quantizable layers of the block, or chunks of them (NAME.0, ...).
        Returns:
            None where that is known only when the block runs.
        Raises:
            ValueError: a layer that no stage knows.
        """
        if not self.STAGES:
            return None
        found = [[name for name in names if re.search(rf"(^|\.){stage}(\.\d+)?$", name)] for stage in self.STAGES]
        if unknown := set(names).difference(*found):
            raise ValueError(f"{min(unknown)}: of no stage of a block")
        return [stage for stage in found if stage]

    def skips(self, denoiser: torch.nn.Module) -> dict[str, tuple[int, int]]:
        """{layer: (channels of the block's input, of the skip connection)} of the convolutions that read both."""
        return {}

    def first_token(self, denoiser: torch.nn.Module) -> list[str]:
        """Layers whose input's first token is the same for all prompts."""
        return []

    def content(self, denoiser: torch.nn.Module) -> list[str] | None:
        """Layers that decide what is in a picture, not how well it is drawn (MixDQ's content group); None: unknown."""
        return None

    def real_tokens(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """Which tokens of a block's arguments are no padding: bool [samples, tokens]; None where nothing is padded."""
        return None

    def transposed(self, location: str | Path) -> set[str]:
        """Layers whose weights the model's library stores as [in, out]."""
        return set()

    def work(self, pipeline: Pipeline, batch: Sequence, settings: Settings) -> dict[str, int] | None:
        """{"items", "tokens", "padded_tokens"} of one call of `prepare`'s function; None where a batch has no tokens.

        Where there is a phase `decode`, also "new_tokens" of one of its calls.
        """
        return None


class Recorded(dict[int, dict[str, torch.Tensor]]):
    """{step: {denoiser input: [batch, ...]}}, and in `timesteps` {step: the scheduler's timestep}."""

    def __init__(self, inputs: Mapping[int, dict[str, torch.Tensor]], timesteps: Mapping[int, float]):
        super().__init__(inputs)
        self.timesteps = timesteps


class ImageFamily(Family):
    """Draws one image for each prompt and seed."""

    @abstractmethod
    def generate(
        self, pipeline: Pipeline, prompts: Sequence[str], seeds: Sequence[int], sampling: Settings
    ) -> np.ndarray:
        """Images of one batch: float32 [n, height, width, 3] in 0..1, NaN where the model produced NaN.

        Image i is the same function of its prompt and seed for every method, device and batch.
        """

    @abstractmethod
    def record(
        self,
        pipeline: Pipeline,
        prompts: Sequence[str],
        seeds: Sequence[int],
        calibration: Settings,
        steps: set[int],
    ) -> Recorded:
        """Denoiser inputs that a float trajectory passes through, as of `recording.record`."""


class TextFamily(Family):
    """Reads sentences or running text; its schema says "x-kind": "text"."""

    @abstractmethod
    def read(self, path: str | Path) -> tuple[list[str], list[int] | None]:
        """(texts, labels or None) of a file."""

    @abstractmethod
    def predict(self, pipeline: Pipeline, texts: Sequence[str], settings: Settings) -> list[dict[str, Any]]:
        """What the model says: one mapping per sentence or window, in order."""

    @abstractmethod
    def batches(
        self, pipeline: Pipeline, texts: Sequence[str], settings: Settings, size: int, count: int
    ) -> list[Sequence]:
        """The first `count` batches of `size` sentences or windows, as `prepare` takes them.

        Raises:
            DataError: there are not so many.
        """

    @abstractmethod
    def record(self, pipeline: Pipeline, texts: Sequence[str], calibration: Settings) -> dict[str, torch.Tensor]:
        """{network input: [samples, ...]} of calibration texts."""
