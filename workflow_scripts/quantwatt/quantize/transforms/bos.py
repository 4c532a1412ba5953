"""MixDQ's treatment of the first token (arXiv 2405.17873, section 4.1): its product is computed once, in 16 bit.

The first token of the text encoder attends only to itself, so its vector is equal for all prompts. In CLIP its values
are orders of magnitude larger than those of other tokens. Its product with a layer's weight is therefore computed once,
before the weight is quantized, and the activation grid covers only the other tokens.
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
        """Return the unchanged weight, its product with the first token, and the token's deviation between prompts.

        Args:
            weight: [rows, columns] float32.
            weight_format, activation_format: not used.
            statistics: first_token of the layer's inputs.
        """
        token = statistics.first_token
        report = {"first_token_deviation": token.deviation}
        return Transformed(weight, first_output=weight @ token.value, report=report)
