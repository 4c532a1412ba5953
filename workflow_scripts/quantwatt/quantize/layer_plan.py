"""State of a layer while it is quantized: float weight, results of the transforms, inputs of its product."""

import functools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import torch

from quantwatt.formats import convolution, rotation
from quantwatt.formats.activations import ActivationFormat
from quantwatt.formats.convolution import Convolution
from quantwatt.formats.quantized_weight import QuantizedWeight, quantize_to_nearest
from quantwatt.formats.weight_format import WeightFormat
from quantwatt.quantize.observers import Observers
from quantwatt.quantize.transforms import Transform


@dataclass
class LayerPlan:
    """A layer to quantize, or several layers with one input and equal formats, stacked by rows.

    names: {layer: slice of its rows}; biases: {layer: [rows] or None}.
    settings: the layer's entry in the allocation.
    geometry: Convolution, or None for a linear layer.
    original, weight: [rows, columns] float32 before and after the transforms.
    input_factor, block, down, up, first_output: results of the transforms, as in `transforms.Transformed`.
    rotated_factor: [columns], by which the rotated input is multiplied.
    activation_scale, activation_zero: [1] for a static activation format; plain_grid: the same without transforms.
    report: {figure: value} from the transforms.
    done: transforms that the float weight already has, by `Transform.prepare`.
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
    block: int | None = None
    rotated_factor: torch.Tensor | None = None
    down: torch.Tensor | None = None
    up: torch.Tensor | None = None
    first_output: torch.Tensor | None = None
    activation_scale: torch.Tensor | None = None
    activation_zero: torch.Tensor | None = None
    plain_grid: tuple[torch.Tensor, torch.Tensor] | None = None
    report: dict = field(default_factory=dict)
    done: Sequence[Transform] = ()

    @property
    def groups(self) -> list[slice]:
        """Return the slice of rows of every group of a convolution; for a linear layer one slice of all rows."""
        count = self.geometry.groups if self.geometry else 1
        rows = len(self.weight) // count
        return [slice(first * rows, (first + 1) * rows) for first in range(count)]

    @property
    def bias(self) -> torch.Tensor | None:
        """Return the bias [rows] or None of a plan with a single layer."""
        (bias,) = self.biases.values()
        return bias

    @property
    def bound_format(self) -> WeightFormat:
        """Return the weight's format with what it fixes once for the weight as transformed."""
        return self.weight_format.bound(self.weight)

    @functools.cached_property
    def plain(self) -> QuantizedWeight:
        """Return the original weight rounded to nearest, a QuantizedWeight; callers must not change it."""
        return quantize_to_nearest(self.original, self.weight_format)

    @property
    def nearest(self) -> QuantizedWeight:
        """Return the transformed weight rounded to nearest."""
        return self.plain if self.weight is self.original else quantize_to_nearest(self.weight, self.weight_format)

    def untransformed(self) -> QuantizedWeight:
        """Return `plain` with the first token's output and the static activation grid, which any weight needs."""
        scale, zero = self.plain_grid or (self.activation_scale, self.activation_zero)
        return replace(self.plain, first_output=self.first_output, activation_scale=scale, activation_zero=zero)

    @property
    def static_grid(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        if self.activation_scale is None or self.activation_zero is None:
            return None
        return self.activation_scale, self.activation_zero

    def seen(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return inputs as the layer's product gets them: scaled, rotated and fake-quantized."""
        inputs = self.scaled(inputs)
        if self.activation_format is not None:
            inputs = convolution.rounded(inputs, self.activation_format, self.static_grid, self.geometry)
        return inputs

    def scaled(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return inputs multiplied by the factors of the transforms, and rotated; differentiable."""
        if self.block is not None:
            return rotation.rotated(inputs, self.block, self.input_factor, self.rotated_factor)
        return inputs if self.input_factor is None else inputs * self.input_factor.to(inputs.dtype)

    @property
    def map(self) -> tuple[int | None, torch.Tensor | None, torch.Tensor | None]:
        """Return (block, before, after) of the inputs' map, as `quantwatt.formats.rotation` takes it."""
        return self.block, self.input_factor, self.rotated_factor

    def rest(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return inputs without the first token if the first token is computed separately."""
        return inputs[:, 1:] if self.settings.get("first_token") else inputs

    def tokens(self, inputs: torch.Tensor, real: torch.Tensor | None = None, raw: bool = False) -> list[torch.Tensor]:
        """Return the matrices that the weight is multiplied by: [tokens, columns] for every group of a convolution.

        Args:
            inputs: of the layer, in any shape that the layer accepts.
            real: [samples, tokens] bool, which tokens are not padding.
            raw: inputs of the transforms that are still to come; for a convolution [positions, channels].
        """
        if self.geometry is not None and not raw:
            return self.geometry.patches(inputs)
        inputs = convolution.positions(inputs, self.geometry)
        return [inputs if real is None else inputs[real.reshape(-1).to(inputs.device)]]

    def statistics(self, needs: Collection[str], raw: bool) -> list[Observers]:
        """Return empty observers of `tokens`; for raw inputs of a convolution only the range for its static grid."""
        columns, device = self.weight.shape[1], self.weight.device
        if raw and self.geometry is not None:
            channels = columns * self.geometry.groups // math.prod(self.geometry.kernel_size)
            return [Observers.new({"range"}.intersection(needs), channels, device)]
        return [Observers.new(needs, columns, device) for _ in self.groups]

    def transform(
        self, transforms: Sequence[Transform], statistics: Sequence[Observers] | None, last: bool = True
    ) -> None:
        """Apply transforms in order; where they are the last ones, calibrate a static activation grid.

        The weight of a convolution is not transformed.

        Args:
            transforms: of which only the last may mix columns, and then others follow in another call.
            statistics: observers of the inputs as all earlier calls have mapped them, or None.
        """
        factor = None  # of the inputs since they were observed
        static = self.activation_format is not None and not self.activation_format.dynamic
        if static and self.plain_grid is None and statistics is not None and statistics[0].range is not None:
            self.plain_grid = self.activation_format.calibrated(statistics[0].range)
        for transform in transforms if self.geometry is None else ():
            marked = transform.MARK is None or self.settings.get(transform.MARK)
            if not marked or any(transform is one for one in self.done):
                continue
            seen = statistics and statistics[0].scaled(factor)
            result = transform.apply(self.weight, self.weight_format, self.activation_format, seen)
            self.weight = result.weight
            if result.input_factor is not None:
                factor = result.input_factor if factor is None else factor * result.input_factor
            self._map_further(result.input_factor, result.block)
            if result.down is not None and result.up is not None:
                self.down = result.down if self.down is None else torch.cat([self.down, result.down])
                self.up = result.up if self.up is None else torch.cat([self.up, result.up], dim=1)
            self.report |= result.report
            if result.first_output is not None:
                self.first_output = result.first_output
        if static and last:
            if statistics is None:
                raise ValueError("a static activation grid needs observers of the inputs")
            observed = statistics[0].scaled(factor).range
            self.activation_scale, self.activation_zero = self.activation_format.calibrated(observed)

    def _map_further(self, factor, block):
        """Multiply the mapped inputs by a factor, and then rotate them; None does nothing."""
        if block is not None and self.block is not None:
            raise ValueError("a layer's inputs are rotated once")
        if factor is not None and self.block is None:
            self.input_factor = factor if self.input_factor is None else self.input_factor * factor
        elif factor is not None:
            self.rotated_factor = factor if self.rotated_factor is None else self.rotated_factor * factor
        self.block = self.block or block
        if self.down is not None and (factor is not None or block is not None):
            self.down = rotation.folded(self.down.float(), block, factor, None)

    def finish(self, weight: QuantizedWeight) -> QuantizedWeight:
        """Add map of the inputs, branch, first output and static grid to a weight, on the CPU; keep a learned grid."""
        block = None if self.block is None else torch.tensor([self.block], dtype=torch.int32)
        added = {"input_factor": self.input_factor, "rotation": block, "rotated_factor": self.rotated_factor}
        added |= {"down": self.down, "up": self.up, "first_output": self.first_output}
        if weight.activation_scale is None:
            added |= {"activation_scale": self.activation_scale, "activation_zero": self.activation_zero}
        if weight.tensor_scale is None:
            added["tensor_scale"] = self.bound_format.tensor_scale
        parts = vars(weight) | added
        return replace(
            weight, **{key: None if part is None else part.cpu().contiguous() for key, part in parts.items()}
        )
