"""SmoothQuant (arXiv 2211.10438) and AWQ (arXiv 2306.00978): multiply weights and divide inputs, column by column.

SmoothQuant moves outliers of the activations into the weights. AWQ enlarges the weights that meet large inputs, so that
rounding changes them less. The strength is an exponent alpha, set by hand or searched per layer as in AWQ and SVDQuant
(arXiv 2411.05007, deepcompressor).
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
    rule: str = "smoothquant"  # or "awq"

    @property
    def needs(self) -> tuple[str, ...]:
        needs = ("mean",) if self.rule == "awq" else self.NEEDS
        return (*needs, "tokens") if self.alpha == "search" else needs

    def apply(
        self,
        weight: torch.Tensor,
        weight_format: WeightFormat,
        activation_format: ActivationFormat | None,
        statistics: Observers,
    ) -> Transformed:
        """Divide inputs and multiply weights by s.

        SmoothQuant: s = max|x|^alpha / max|w|^(1 - alpha) (equation 4). AWQ: s = mean|x|^alpha (equation 5), divided by
        sqrt(max(s) min(s)) as in its code.

        Args:
            weight: [rows, columns] float32.
            weight_format, activation_format: the layer's formats, for a search; activation_format may be None.
            statistics: maximum, or mean for AWQ, of the layer's inputs; for a search also tokens.
        Returns:
            Transformed(weight * s, input_factor=1 / s).
        """
        smoothed = _enlarged if self.rule == "awq" else _smoothed
        magnitude = (statistics.mean if self.rule == "awq" else statistics.maximum).value
        if self.alpha != "search":
            return smoothed(weight, magnitude, self.alpha)
        inputs = statistics.tokens.value.nan_to_num(0, 0, 0)  # [tokens, columns]
        outputs = inputs @ weight.T
        least, best = None, None
        for step in range(self.grid):
            candidate = smoothed(weight, magnitude, step / self.grid) if step else _unchanged(weight)
            rounded = quantize_to_nearest(candidate.weight, weight_format).dequantize(weight_format)
            rounded_outputs = _rounded_inputs(inputs * candidate.input_factor, activation_format) @ rounded.T
            error = (rounded_outputs - outputs).square().sum()
            if least is None or error < least:
                least, best = error, candidate
        return best  # ty: ignore[invalid-explicit-return]  (there is at least one iteration)


def _smoothed(weight, largest_input, alpha):
    """Smooth by one alpha as SmoothQuant does; columns that are zero or not finite are left unchanged."""
    largest_weight = weight.abs().amax(dim=0)
    smoothing = largest_input**alpha / largest_weight ** (1 - alpha)
    return _multiplied(weight, smoothing, (largest_input > 0) & (largest_weight > 0) & largest_input.isfinite())


def _enlarged(weight, mean_input, alpha):
    """Scale by one alpha as AWQ does; columns that are zero or not finite are left unchanged."""
    usable = (mean_input > 0) & mean_input.isfinite()
    scales = mean_input**alpha
    if usable.any():
        scales = scales / (scales[usable].amin() * scales[usable].amax()).sqrt()
    return _multiplied(weight, scales, usable)


def _multiplied(weight, scales, usable):
    """Multiply the usable columns of a weight.

    The factor of the inputs is rounded to bfloat16 before the weight is divided by it, so that both match exactly: all
    compute types except float16 represent bfloat16 values exactly.
    """
    factor = (1 / torch.where(usable, scales, 1.0)).to(torch.bfloat16).float()
    return Transformed(weight / factor, input_factor=factor)


def _unchanged(weight):
    return Transformed(weight, input_factor=torch.ones(weight.shape[1], device=weight.device))


def _rounded_inputs(inputs, activation_format):
    """Fake-quantize inputs [tokens, columns] as the layer does; a static grid is calibrated on these tokens."""
    if activation_format is None:
        return inputs
    return activation_format.at_run_time().fake_quantize(inputs)
