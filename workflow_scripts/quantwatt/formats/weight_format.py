"""What a format of weights offers whose codes this project holds: a grid of values, and a packing to its true bits.

A format module has a class `Format`: a frozen dataclass of the settings of its schema, which extends WeightFormat, or
LibraryFormat (library.py) where a library rounds, stores and computes.

Elementwise coding is what makes every solver work with every format: a solver chooses values, one column or one
matrix at a time, and never looks inside the format. Tensors may be on any device; all of one call on the same.

Settings of every format have "bits", too, a constant where there is no choice: budgets, tables and messages read it
there and import no format. Where inputs share a scale in groups, "group_size" is how many.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch

Grid = tuple[torch.Tensor, torch.Tensor | None]  # scale and zero point; [rows, 1] each of one group, or what broadcasts


class WeightFormat(ABC):
    """A grid of values for each group of a row."""

    bits: int  # of one code
    scale_dtype: ClassVar[torch.dtype] = torch.float32  # as a group's scale is stored
    codebook: ClassVar[torch.Tensor | None] = None  # [2**bits] float32, the value of each code at scale 1, if any is
    middle: int = 0  # the code of 0, where no zero point says so

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Of a completed `weights` entry of a method."""

    @property
    @abstractmethod
    def zero_dtype(self) -> torch.dtype | None:
        """As a group's zero point is stored; None without one."""

    @abstractmethod
    def group_width(self, columns: int) -> int:
        """How many inputs share a scale."""

    @abstractmethod
    def fit(self, values: torch.Tensor) -> Grid:
        """The grid of each row's range: [rows, width] -> [rows, 1] each."""

    @abstractmethod
    def encode(self, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
        """Codes, elementwise, uint8; scale and zero broadcast."""

    @abstractmethod
    def decode(self, codes: torch.Tensor, scale: torch.Tensor | float, zero: torch.Tensor | None) -> torch.Tensor:
        """Values, elementwise, float32."""

    @abstractmethod
    def snap(self, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
        """decode(encode(values)) in fewer steps: what solvers do column by column."""

    @abstractmethod
    def bracket(
        self, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes of the grid points around each value, (low, high); equal beyond an end."""

    @abstractmethod
    def refit(self, codes: torch.Tensor, target: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> Grid:
        """The least squares grid for codes [rows, width] that stay as they are.

        A float zero point moves, else the scale (and an integer zero point).
        """
