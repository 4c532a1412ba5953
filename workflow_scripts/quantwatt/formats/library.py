"""Formats whose weights a library rounds, stores and computes with itself."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, Self

import torch

from quantwatt import registry

ALIGNMENT = 64  # bytes; what torch's allocator gives and vectorized products of the libraries take for granted


class LibraryFormat(ABC):
    """The `Format` of a module whose codes a library holds: a frozen dataclass of the settings of its schema.

    A `layer` is what a checkpoint's manifest says of one ("in_features", "out_features"), a `state` its tensors there.
    """

    LIBRARY: ClassVar[str]  # name of the package

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Of a completed `weights` entry of a method."""
        return cls(**{field.name: settings[field.name] for field in fields(cls)})  # ty: ignore[invalid-argument-type]

    @property
    @abstractmethod
    def name(self) -> str:
        """What the library calls the format."""

    @property
    @abstractmethod
    def bits(self) -> tuple[int, int | None]:
        """Bits of a weight, and of an activation or None where it stays float."""

    @abstractmethod
    def convert(self, linear: torch.nn.Linear, dtype: torch.dtype) -> torch.nn.Module:
        """The library's layer for a float one, on the CPU.

        Raises:
            DataError: the library does not take the weight's shape, or this machine's hardware.
        """

    @abstractmethod
    def state(self, module: torch.nn.Module) -> dict[str, torch.Tensor]:
        """{part: tensor} that a checkpoint stores of the library's layer."""

    @abstractmethod
    def restore(
        self,
        state: Mapping[str, torch.Tensor],
        layer: Mapping[str, Any],
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        device: str,
    ) -> torch.nn.Module:
        """The library's layer again, for the device, in aligned memory whatever it is given."""

    @abstractmethod
    def dequantize(self, state: Mapping[str, torch.Tensor], layer: Mapping[str, Any]) -> torch.Tensor:
        """[rows, columns] float32."""

    @abstractmethod
    def unsupported(self, device: str) -> str | None:
        """Why the library cannot compute it on the device, a sentence, or None.

        Each format asks `trial` by itself: imported here, it would be part of every method's code.
        """

    def simulated(self, device: str) -> str | None:
        """Why what the library computes there is not the format's own product, a sentence, or None."""
        return None


def library_of(settings: Mapping[str, Any]) -> LibraryFormat | None:
    """The format of a `weights` entry where it is a library's, or None where quantwatt holds the codes itself."""
    kind = registry.load("formats", settings["format"]).Format
    return kind.from_settings(settings) if issubclass(kind, LibraryFormat) else None


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, copied into memory that torch allocates where it does not begin at a multiple of 64 bytes.

    A tensor of a safetensors file is a view into the file, which begins anywhere; torch's int8 product crashes on it.
    """
    return tensor.clone() if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT else tensor
