"""A layer on its way to a quantized weight: what it was, what the transforms made of it, what its product sees."""

import functools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import torch

from quantwatt.formats import convolution
from quantwatt.formats.activations import ActivationFormat
from quantwatt.formats.convolution import Convolution
from quantwatt.formats.quantized_weight import QuantizedWeight, quantize_to_nearest
from quantwatt.formats.weight_format import WeightFormat
from quantwatt.quantize.observers import Observers
from quantwatt.quantize.transforms import Transform


@dataclass
class LayerPlan:
    """A layer, or several that share an input and their formats, stacked by rows, on the way to its quantized weight.

    names: {layer: slice of its rows}; biases: {layer: [rows] or None}.
    settings: the layer's entry of the allocation.
    geometry: Convolution, or None of a linear layer.
    original, weight: [rows, columns] float32 before and after the transforms.
    input_factor, down, up, first_output: as the transforms left them.
    activation_scale, activation_zero: [1] of a static activation format.
    report: what the transforms say of it.
    """

    names: dict
    biases: dict
    settings: dict
    geometry: Convolution | None
    weight_format: WeightFormat
    activation_format: ActivationFormat | None
    original: torch.Tensor
    weight: torch.Tensor
    dtype: torch.dtype
    input_factor: torch.Tensor | None = None
    down: torch.Tensor | None = None
    up: torch.Tensor | None = None
    first_output: torch.Tensor | None = None
    activation_scale: torch.Tensor | None = None
    activation_zero: torch.Tensor | None = None
    report: dict = field(default_factory=dict)

    @property
    def groups(self) -> list[slice]:
        """[slice of the rows] of every group of a convolution; all rows else."""
        count = self.geometry.groups if self.geometry else 1
        rows = len(self.weight) // count
        return [slice(first * rows, (first + 1) * rows) for first in range(count)]

    @property
    def bias(self) -> torch.Tensor | None:
        """[rows] or None, of a plan of one layer."""
        (bias,) = self.biases.values()
        return bias

    @functools.cached_property
    def plain(self) -> QuantizedWeight:
        """The original weight rounded to nearest, a QuantizedWeight; not to be changed."""
        return quantize_to_nearest(self.original, self.weight_format)

    @property
    def nearest(self) -> QuantizedWeight:
        """The transformed weight rounded to nearest."""
        return self.plain if self.weight is self.original else quantize_to_nearest(self.weight, self.weight_format)

    def untransformed(self) -> QuantizedWeight:
        """`plain` with what is computed beside the product whatever the weight is."""
        grid = {"activation_scale": self.activation_scale, "activation_zero": self.activation_zero}
        return replace(self.plain, first_output=self.first_output, **grid)

    @property
    def static_grid(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        if self.activation_scale is None or self.activation_zero is None:
            return None
        return self.activation_scale, self.activation_zero

    def seen(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs as the layer's product gets them: multiplied by the factor and quantized."""
        inputs = self.scaled(inputs)
        if self.activation_format is not None:
            inputs = convolution.rounded(inputs, self.activation_format, self.static_grid, self.geometry)
        return inputs

    def scaled(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs multiplied by the transforms' factor."""
        return inputs if self.input_factor is None else inputs * self.input_factor.to(inputs.dtype)

    def rest(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs without the first token where that is computed apart."""
        return inputs[:, 1:] if self.settings.get("first_token") else inputs

    def tokens(self, inputs: torch.Tensor, real: torch.Tensor | None = None, raw: bool = False) -> list[torch.Tensor]:
        """What the rows of the weight are multiplied by: [tokens, columns] for every group of a convolution.

        Args:
            inputs: the layer's, in any shape that it takes.
            real: [samples, tokens], which of them are no padding.
            raw: before the transforms; of a convolution then the inputs themselves, [positions, channels].
        """
        if self.geometry is not None and not raw:
            return self.geometry.patches(inputs)
        inputs = convolution.positions(inputs, self.geometry)
        return [inputs if real is None else inputs[real.reshape(-1).to(inputs.device)]]

    def statistics(self, needs: Collection[str], raw: bool) -> list[Observers]:
        """Empty statistics of `tokens`; of a convolution's inputs (raw) only what its grid needs."""
        columns, device = self.weight.shape[1], self.weight.device
        if raw and self.geometry is not None:
            channels = columns * self.geometry.groups // math.prod(self.geometry.kernel_size)
            return [Observers.new({"range"}.intersection(needs), channels, device)]
        return [Observers.new(needs, columns, device) for _ in self.groups]

    def transform(self, transforms: Sequence[Transform], statistics: Sequence[Observers] | None) -> None:
        """Apply the transforms in order, then fix the activations' grid if it is static.

        A convolution is left as it is, but for its activations' grid.
        """
        for one in transforms if self.geometry is None else ():
            if one.MARK is not None and not self.settings.get(one.MARK):
                continue
            seen = statistics and statistics[0].scaled(self.input_factor)
            result = one.apply(self.weight, self.weight_format, self.activation_format, seen)
            self.weight = result.weight
            if result.input_factor is not None:
                factor = result.input_factor
                self.input_factor = factor if self.input_factor is None else self.input_factor * factor
                self.down = self.down if self.down is None else self.down / factor
            if result.down is not None and result.up is not None:
                self.down = result.down if self.down is None else torch.cat([self.down, result.down])
                self.up = result.up if self.up is None else torch.cat([self.up, result.up], dim=1)
            self.report |= result.report
            if result.first_output is not None:
                self.first_output = result.first_output
        if self.activation_format is not None and not self.activation_format.dynamic:
            if statistics is None:
                raise ValueError("a static grid is calibrated from statistics of the inputs")
            observed = statistics[0].scaled(self.input_factor).range
            self.activation_scale, self.activation_zero = self.activation_format.calibrated(observed)

    def finish(self, weight: QuantizedWeight) -> QuantizedWeight:
        """A QuantizedWeight with what the layer does beside it, on the CPU; a learned activation grid is kept."""
        own = {"input_factor": self.input_factor, "down": self.down, "up": self.up, "first_output": self.first_output}
        if weight.activation_scale is None:
            own |= {"activation_scale": self.activation_scale, "activation_zero": self.activation_zero}
        parts = vars(weight) | own
        return replace(weight, **{part: None if of is None else of.cpu().contiguous() for part, of in parts.items()})
