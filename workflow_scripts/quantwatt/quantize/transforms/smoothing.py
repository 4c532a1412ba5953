"""SmoothQuant (arXiv 2211.10438): move outliers of the activations into the weights, column by column.

The migration strength is an exponent alpha, set by hand or searched per layer as in SVDQuant (arXiv 2411.05007,
deepcompressor).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from quantwatt.formats.activations import ActivationFormat
from quantwatt.formats.quantized_weight import quantize_to_nearest
from quantwatt.formats.weight_format import WeightFormat
from quantwatt.quantize import transforms
from quantwatt.quantize.observers import Observers
from quantwatt.quantize.transforms import Transformed


@dataclass(frozen=True, kw_only=True)
class Transform(transforms.Transform):
    """Factors per input column that make activations easier to quantize, and weights harder."""

    NEEDS: ClassVar = ("maximum",)

    alpha: float | str  # 0: equal maxima of weight columns; 1: of activation columns; or "search"
    grid: int  # of a search: alpha = i / grid for 0 < i < grid, and no smoothing

    @property
    def needs(self) -> tuple[str, ...]:
        return (*self.NEEDS, "tokens") if self.alpha == "search" else self.NEEDS

    def apply(
        self,
        weight: torch.Tensor,
        weight_format: WeightFormat,
        activation_format: ActivationFormat | None,
        statistics: Observers,
    ) -> Transformed:
        """Divide inputs and multiply weights by s = max|x|^alpha / max|w|^(1 - alpha) (equation 4).

        Args:
            weight: [rows, columns] float32.
            weight_format, activation_format: the layer's formats, for a search; activation_format may be None.
            statistics: maximum of the layer's inputs; for a search also tokens.
        Returns:
            Transformed(weight * s, input_factor=1 / s).
        """
        if self.alpha != "search":
            return _smoothed(weight, statistics.maximum.value, self.alpha)
        inputs = statistics.tokens.value.nan_to_num(0, 0, 0)  # [tokens, columns]
        outputs = inputs @ weight.T
        least, best = None, None
        for step in range(self.grid):
            candidate = _smoothed(weight, statistics.maximum.value, step / self.grid if step else None)
            rounded = quantize_to_nearest(candidate.weight, weight_format).dequantize(weight_format)
            rounded_outputs = _rounded_inputs(inputs * candidate.input_factor, activation_format) @ rounded.T
            error = (rounded_outputs - outputs).square().sum()
            if least is None or error < least:
                least, best = error, candidate
        return best  # ty: ignore[invalid-explicit-return]  (there is at least one iteration)


def _smoothed(weight, largest_input, alpha):
    """Smooth by one alpha, or not at all if alpha is None; columns that are zero or not finite are left unchanged.

    The factor is rounded to bfloat16 before the weight is divided by it, so that both match exactly: all compute types
    except float16 represent bfloat16 values exactly.
    """
    if alpha is None:
        return Transformed(weight, input_factor=torch.ones_like(largest_input))
    largest_weight = weight.abs().amax(dim=0)
    smoothing = largest_input**alpha / largest_weight ** (1 - alpha)
    smoothing[(largest_input == 0) | (largest_weight == 0) | ~largest_input.isfinite()] = 1
    factor = (1 / smoothing).to(torch.bfloat16).float()
    return Transformed(weight / factor, input_factor=factor)


def _rounded_inputs(inputs, activation_format):
    """Fake-quantize inputs [tokens, columns] as the layer does; a static grid is calibrated on these tokens."""
    if activation_format is None:
        return inputs
    return activation_format.at_run_time().fake_quantize(inputs)
