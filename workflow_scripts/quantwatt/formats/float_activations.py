"""Inputs of a layer in blocks of a row, each with a scale that is computed at run time."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch

from quantwatt.formats.activations import ActivationFormat, StaticGrid
from quantwatt.formats.minifloat import Minifloat


class FloatActivations(ActivationFormat):
    """Inputs as floating-point elements times a scale, which has no zero point."""

    @classmethod
    @abstractmethod
    def of_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Create the format of a completed `activations` entry of its own."""

    @property
    @abstractmethod
    def elements(self) -> Minifloat:
        """The floating-point numbers that inputs are rounded to."""

    @property
    def bits(self) -> int:
        return self.elements.bits


class BlockActivations(FloatActivations):
    """Blocks of `block_size` neighbouring inputs of one token; a row's last block may be narrower."""

    block_size: ClassVar[int]
    dynamic: bool = True

    @abstractmethod
    def rounded(self, blocks: torch.Tensor, static: StaticGrid | None = None) -> torch.Tensor:
        """Round blocks [tokens, blocks of a token, block_size] float32."""

    def calibrated(self, observed: Any) -> StaticGrid:
        raise ValueError("the scales of blocks are computed at run time")

    def inside(self, ratio: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        raise ValueError("the scales of blocks are computed at run time")

    def at_run_time(self) -> Self:
        return self

    def fake_quantize(self, inputs: torch.Tensor, static: StaticGrid | None = None) -> torch.Tensor:
        tokens = inputs.reshape(-1, inputs.shape[-1]).float()
        columns = tokens.shape[1]
        padded = torch.nn.functional.pad(tokens, (0, -columns % self.block_size))
        blocks = padded.reshape(len(padded), -1, self.block_size)
        values = self.rounded(blocks, static).reshape(padded.shape)[:, :columns]
        return values.to(inputs.dtype).reshape(inputs.shape)
