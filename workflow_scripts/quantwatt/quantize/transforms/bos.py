"""MixDQ's treatment of the first token (arXiv 2405.17873, section 4.1): in 16 bit, once.

The text encoder's first token sees nothing but itself, so it is the same vector for every prompt, and in CLIP one whose
values are larger by orders than all others'. What a layer makes of it is computed once, before the weight is
quantized; the other tokens' grid need not hold it any more.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from quantwatt.formats.activations import ActivationFormat
from quantwatt.formats.weight_format import WeightFormat
from quantwatt.quantize import transforms
from quantwatt.quantize.observers import Observers
from quantwatt.quantize.transforms import Transformed

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Transform(transforms.Transform):
    """The first token's product, computed once."""

    NEEDS: ClassVar = ("first_token",)
    MARK: ClassVar = "first_token"

    def apply(
        self,
        weight: "torch.Tensor",
        weight_format: WeightFormat,
        activation_format: ActivationFormat | None,
        statistics: Observers,
    ) -> Transformed:
        """The weight as it is, its product with the first token, and how far that token was from equal for all prompts.

        Args:
            weight: [rows, columns] float32.
            weight_format, activation_format: not read.
            statistics: first_token, of the layer's inputs.
        """
        token = statistics.first_token
        report = {"first_token_deviation": token.deviation}
        return Transformed(weight, first_output=weight @ token.value, report=report)
