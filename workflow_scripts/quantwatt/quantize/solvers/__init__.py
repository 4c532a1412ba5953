"""Solvers choose the codes of a weight on the grid of its format.

A solver module has a class `Solver`, which extends one of the three base classes below: a frozen dataclass whose fields
are the settings of its schema. Weights are [rows, columns] float32, one row per output; inputs are [tokens, columns].
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from quantwatt import registry
from quantwatt.formats.quantized_weight import QuantizedWeight
from quantwatt.formats.weight_format import WeightFormat


@dataclass
class Solution:
    """A quantized weight and how it was computed.

    damping: the value added to the Hessian's diagonal, as a fraction of the diagonal's mean, or None.
    fallback: the fallback that was needed, such as "damping", "float64" or "rtn"; None if the first attempt succeeded.
    """

    weight: QuantizedWeight
    damping: float | None = None
    fallback: str | None = None


def load_solver(settings: Mapping[str, Any]) -> "Solver":
    """Load the solver of a completed method's `solver`."""
    return registry.load("solvers", settings["name"]).Solver.from_settings(settings)


@dataclass(frozen=True, kw_only=True)
class Solver:
    """Common base of the three kinds of solvers."""

    NEEDS: ClassVar[tuple[str, ...]] = ()  # names of the observers that it reads (quantwatt/quantize/observers.py)
    held_out: float = 0.0  # fraction of the calibration samples held out to judge the solver

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Create the solver from a completed method's `solver`."""
        return cls(**{key: value for key, value in settings.items() if key != "name"})


@dataclass(frozen=True, kw_only=True)
class LayerSolver(Solver, ABC):
    """Solves one layer, or several layers with one input stacked by rows, from observers of the input."""

    @abstractmethod
    def solve(self, weight: torch.Tensor, weight_format: WeightFormat, statistics: Any) -> Solution:
        """Choose the codes of a weight.

        Args:
            weight: [rows, columns] float32.
            statistics: observers.Observers with the names in NEEDS; None if NEEDS is empty.
        """

    def of_channel_groups(self) -> Self:
        """Return the solver for the channel groups of a convolution, which are solved separately."""
        return self


@dataclass(frozen=True, kw_only=True)
class BlockSolver(Solver, ABC):
    """Learns all layers of a block together."""

    @abstractmethod
    def solve_block(
        self,
        block: torch.nn.Module,
        plans: Mapping[str, Any],
        batches: Sequence[Mapping[str, Any]],
        targets: Sequence[Any],
        family: Any,
        held: Sequence[torch.Tensor | None] | None = None,
    ) -> dict[str, Solution]:
        """Choose the codes of all planned layers of a block.

        Args:
            block: float module; not changed.
            plans: {layer's name inside the block: LayerPlan}.
            batches: the block's keyword arguments, one mapping per batch, from the quantized model. Tensors whose
                first dimension is the batch are split into samples; all other values are those of the first batch.
            targets: outputs of the float block in the float model for the same samples, one tensor or tuple per batch.
            family: quantwatt.models.family.Family, which says which tokens are not padding.
            held: per batch [samples] bool, the samples held out from training, or None.
        """


@dataclass(frozen=True, kw_only=True)
class ExternalSolver(Solver, ABC):
    """GPTQ of a library in a separate environment; layers are exchanged as files (quantwatt/quantize/exchange.py)."""

    DAMPING_TRIES: ClassVar[int]  # the damping grows tenfold per attempt

    damping: float  # fraction of the Hessian's mean diagonal
    act_order: bool  # columns in descending order of the diagonal
    static_groups: bool  # grids are fitted before any column is quantized

    @abstractmethod
    def solve_layer(
        self, weight: torch.Tensor, inputs: torch.Tensor, weights: Mapping[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float]:
        """Run the library on one layer, in its environment.

        Args:
            weight: [rows, columns] float32.
            inputs: [tokens, columns] float32.
            weights: settings of the layer's integer format, as in its schema.
        Returns:
            (values [rows, columns], scale, zero [rows, groups], g_idx [columns], damping used).
        Raises:
            torch.linalg.LinAlgError: the Hessian could not be factorized.
        """

    @abstractmethod
    def read(self, folder: str | Path, layer: str) -> QuantizedWeight:
        """Read the library's result for a layer, in the main environment."""
