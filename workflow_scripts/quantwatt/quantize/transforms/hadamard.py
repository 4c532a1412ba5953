"""Rotate a layer's inputs by Walsh-Hadamard matrices (QuaRot, arXiv 2404.00456; QuIP#, arXiv 2402.04396).

The rotation spreads outliers of the inputs and of the weight's rows over a block of columns. It is computed at run
time, before the inputs are quantized; its inverse is folded into the weight before that is quantized. Between most
layers of these models stands a norm, a modulation or an activation function; where none does, in attentions, the
rotation may be folded into the layer before, too (quantwatt.quantize.value_rotation).
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from quantwatt.artifacts.errors import DataError
from quantwatt.formats import rotation
from quantwatt.formats.activations import ActivationFormat
from quantwatt.formats.weight_format import WeightFormat
from quantwatt.quantize import transforms, value_rotation
from quantwatt.quantize.observers import Observers
from quantwatt.quantize.transforms import Transformed

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Transform(transforms.Transform):
    """A rotation of every block of columns."""

    MIXES_COLUMNS: ClassVar = True

    block: int  # a power of two; where it does not divide the columns, the largest one below it that does
    signs: bool  # change the signs of columns at random before the rotation
    seed: int  # of the signs, which are equal for layers with as many columns
    fold: bool  # whether attentions rotate their values, so that their output projections need no rotation at run time

    def apply(
        self,
        weight: "torch.Tensor",
        weight_format: WeightFormat,
        activation_format: ActivationFormat | None,
        statistics: Observers | None,
    ) -> Transformed:
        """Rotate a weight's rows, unless it has an odd number of columns.

        Args:
            weight: [rows, columns] float32.
            weight_format, activation_format, statistics: not used.
        Returns:
            Transformed(the rotated weight, input_factor=signs, block).
        """
        columns = weight.shape[1]
        if (block := rotation.block_of(columns, self.block)) is None:
            return Transformed(weight)
        signs = rotation.random_signs(columns, self.seed).to(weight.device) if self.signs else None
        folded = rotation.folded(weight, block, signs, None)
        return Transformed(folded, input_factor=signs, block=block, report={"hadamard_block": block})

    def left_out(self, columns: Mapping[str, int]) -> str | None:
        """As in transforms.Transform: about convolutions, and layers with an odd number of inputs."""
        counts = Counter(
            "odd numbers of inputs" if count else "convolutions"
            for count in columns.values()
            if rotation.block_of(count, self.block) is None
        )
        if not counts:
            return None
        total, kinds = counts.total(), ", ".join(f"{kind}: {count}" for kind, count in sorted(counts.items()))
        if total == len(columns):
            raise DataError(
                f"the transform 'hadamard' rotates linear layers with an even number of inputs, and there are none "
                f"({kinds}); drop it."
            )
        return f"hadamard leaves {total} of {len(columns)} layers as they are ({kinds})."

    def prepare(self, denoiser: "torch.nn.Module", layers: set[str]) -> dict[str, dict[str, Any]]:
        """As in transforms.Transform: fold the rotation into projections to values, if asked for."""
        if not self.fold:
            return {}
        rotated = value_rotation.fold(denoiser, layers, self.block, self.signs, self.seed)
        return {name: {"hadamard_block": block, "hadamard_folded": True} for name, block in rotated.items()}
