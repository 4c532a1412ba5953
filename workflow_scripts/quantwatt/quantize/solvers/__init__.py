"""How the values on a format's grid are chosen.

A solver module has a class `Solver`, which extends one of the three kinds below: a frozen dataclass whose fields are
the settings of its schema. Weights are [rows, columns] float32 with one row per output; inputs are [tokens, columns].
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
    """A quantized weight and how it was found.

    damping: what was added to the Hessian's diagonal as a fraction of its mean, or None.
    fallback: the rung of the failure ladder that was needed, or None when the first try succeeded.
    """

    weight: QuantizedWeight
    damping: float | None = None
    fallback: str | None = None


def load_solver(settings: Mapping[str, Any]) -> "Solver":
    """The solver of a completed method's `solver`."""
    return registry.load("solvers", settings["name"]).Solver.from_settings(settings)


@dataclass(frozen=True, kw_only=True)
class Solver:
    """What the three kinds share."""

    NEEDS: ClassVar[tuple[str, ...]] = ()  # names of the statistics that it reads (quantwatt/quantize/observers.py)
    held_out: float = 0.0  # share of the calibration samples that it does not see and is judged on

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Of a completed method's `solver`."""
        return cls(**{key: value for key, value in settings.items() if key != "name"})


@dataclass(frozen=True, kw_only=True)
class LayerSolver(Solver, ABC):
    """Solves one layer, or several of one input stacked by rows, from statistics of its inputs."""

    @abstractmethod
    def solve(self, weight: torch.Tensor, weight_format: WeightFormat, statistics: Any) -> Solution:
        """Choose the codes of a weight.

        Args:
            weight: [rows, columns] float32.
            statistics: observers.Observers of what NEEDS names; None where it names nothing.
        """

    def of_channel_groups(self) -> Self:
        """The solver of a convolution's groups of channels, each of which is solved apart from the others."""
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
            batches: the block's keyword arguments, one mapping per batch, from the quantized model. Tensors as long as
                the batch are cut into samples; everything else is handed on as the first batch has it.
            targets: what the float block returned for the same samples in the float model, one tensor or tuple per
                batch.
            family: quantwatt.models.family.Family, for which tokens of padded samples are real.
            held: for every batch the samples [samples] bool that are not learned from, or None.
        """


@dataclass(frozen=True, kw_only=True)
class ExternalSolver(Solver, ABC):
    """GPTQ of a library in an environment of its own, from files and into files (quantwatt/quantize/exchange.py)."""

    DAMPING_TRIES: ClassVar[int]  # each ten times the one before

    damping: float  # of the Hessian, a fraction of its mean diagonal
    act_order: bool  # columns of the largest diagonal first
    static_groups: bool  # grids are fitted before any column is quantized

    @abstractmethod
    def solve_layer(
        self, weight: torch.Tensor, inputs: torch.Tensor, weights: Mapping[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float]:
        """Run the library on one layer, in its environment.

        Args:
            weight: [rows, columns] float32.
            inputs: [tokens, columns] float32.
            weights: the layer's integer format, as its schema has it.
        Returns:
            (values [rows, columns], scale, zero [rows, groups], g_idx [columns], damping used).
        Raises:
            torch.linalg.LinAlgError: the Hessian could not be factorized.
        """

    @abstractmethod
    def read(self, folder: str | Path, layer: str) -> QuantizedWeight:
        """What the library has made of a layer, here."""
