"""Interface of formats whose weights a library rounds, stores and computes with."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, Self

import torch

from quantwatt import registry

ALIGNMENT = 64  # bytes; the alignment of torch's allocator, which vectorized products of the libraries require


class LibraryFormat(ABC):
    """Base class of a `Format` whose codes a library stores: a frozen dataclass of the settings in its schema.

    A `layer` is the layer's entry in a checkpoint's manifest ("in_features", "out_features"); a `state` is its tensors
    in the checkpoint.
    """

    LIBRARY: ClassVar[str]  # name of the package

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Create the format from a completed `weights` entry of a method."""
        return cls(**{field.name: settings[field.name] for field in fields(cls)})  # ty: ignore[invalid-argument-type]

    @property
    @abstractmethod
    def name(self) -> str:
        """The library's name of the format."""

    @property
    @abstractmethod
    def bits(self) -> tuple[int, int | None]:
        """(bits of a weight, bits of an activation or None if activations stay float)."""

    @abstractmethod
    def convert(self, linear: torch.nn.Linear, dtype: torch.dtype) -> torch.nn.Module:
        """Convert a float layer to the library's layer, on the CPU.

        Raises:
            DataError: the library does not take the weight's shape, or this machine's hardware.
        """

    @abstractmethod
    def state(self, module: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Return {part: tensor}, the tensors of the library's layer for a checkpoint."""

    @abstractmethod
    def restore(
        self,
        state: Mapping[str, torch.Tensor],
        layer: Mapping[str, Any],
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        device: str,
    ) -> torch.nn.Module:
        """Restore the library's layer for the device, in aligned memory."""

    @abstractmethod
    def dequantize(self, state: Mapping[str, torch.Tensor], layer: Mapping[str, Any]) -> torch.Tensor:
        """Return the weight, [rows, columns] float32."""

    @abstractmethod
    def unsupported(self, device: str) -> str | None:
        """Return a sentence why the library cannot compute the format on the device, or None.

        Each format calls `trial` itself: imported here, it would be part of every method's code.
        """

    def simulated(self, device: str) -> str | None:
        """Return a sentence why the library only simulates the format's product on the device, or None."""
        return None


def library_of(settings: Mapping[str, Any]) -> LibraryFormat | None:
    """Return the library's format of a `weights` entry, or None if quantwatt stores the codes itself."""
    kind = registry.load("formats", settings["format"]).Format
    return kind.from_settings(settings) if issubclass(kind, LibraryFormat) else None


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor, or a copy in torch's memory if its address is not a multiple of 64 bytes.

    A tensor of a safetensors file is a view into the file, at any address; torch's int8 product crashes on it.
    """
    return tensor.clone() if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT else tensor
