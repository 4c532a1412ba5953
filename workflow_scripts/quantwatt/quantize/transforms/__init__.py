"""Transforms change a layer before its weight is quantized, but not its product in exact arithmetic.

A transform module has a class `Transform`: a frozen dataclass whose fields are the settings of its schema. The schema
also declares the properties that other code reads without running the transform:

    "x-needs-calibration": true      the transform reads observers
    "x-last": "..."                  the transform must be the last; completes "'NAME' ...; put it last"
    "x-marks": {KEY: "..."}          MARK, the key by which a family marks the layers to transform, and a description of
                                     these layers that completes "NAME has no layer that ..."
    "x-takes-apart": KEY             layers with this key in the model's manifest are quantized in parts: "segments" or
                                     "skips" (`quantwatt.models.splits`)
    "x-untried": "..."               a sensitivity may have the transform; the text says what a sensitivity without it
                                     does, for a method with it

Convolutions are not transformed. Transforms run in order: each gets the weight from the transform before it, and
observers of that weight's inputs, which are already multiplied by all earlier factors, and rotated. After a transform
that rotates inputs (MIXES_COLUMNS) they are observed anew, because a column's maximum does not tell those of sums.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch

from quantwatt import registry
from quantwatt.formats.activations import ActivationFormat
from quantwatt.formats.weight_format import WeightFormat


@dataclass
class Transformed:
    """A weight to quantize, and the other parts of the layer that a transform adds.

    weight: [rows, columns] float32.
    input_factor: [columns] by which the layer's input is multiplied first, or None.
    block: length of the Walsh-Hadamard transforms of that product's blocks, or None (quantwatt.formats.rotation).
    down, up: [rank, columns] and [rows, rank] of a branch in 16 bit that adds x @ down.T @ up.T to the output, where x
        is the input after factor and transform; or None.
    first_output: [rows], the layer's product with the first token, or None.
    report: {figure: value} for the layer's entry in the checkpoint's manifest.
    """

    weight: torch.Tensor
    input_factor: torch.Tensor | None = None
    block: int | None = None
    down: torch.Tensor | None = None
    up: torch.Tensor | None = None
    first_output: torch.Tensor | None = None
    report: dict[str, Any] = field(default_factory=dict)


def load_transform(settings: Mapping[str, Any]) -> "Transform":
    """Load the transform of one entry in a completed method's `transforms`."""
    return registry.load("transforms", settings["name"]).Transform.from_settings(settings)


@dataclass(frozen=True, kw_only=True)
class Transform(ABC):
    """One transform with its settings."""

    NEEDS: ClassVar[tuple[str, ...]] = ()  # names of the observers that it reads (quantwatt/quantize/observers.py)
    MARK: ClassVar[str | None] = None  # only layers with this key in their entry of the allocation are transformed
    MIXES_COLUMNS: ClassVar[bool] = False  # whether it rotates inputs

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Create the transform from an entry in a completed method's `transforms`."""
        return cls(**{key: value for key, value in settings.items() if key != "name"})

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the observers that the transform reads with its settings."""
        return self.NEEDS

    def left_out(self, columns: Mapping[str, int]) -> str | None:
        """Return a sentence about the layers that the transform leaves as they are, or None.

        Args:
            columns: {layer: number of its inputs}; 0 for a convolution.
        Raises:
            DataError: these are all layers.
        """
        return None

    def prepare(self, denoiser: torch.nn.Module, layers: set[str]) -> dict[str, dict[str, Any]]:
        """Change several float layers at once, in place, so that the denoiser computes the same.

        Args:
            layers: names of the layers that are to be transformed.
        Returns:
            {layer: report} of the layers whose transform is done thereby: `apply` is not called for them.
        """
        return {}

    @abstractmethod
    def apply(
        self,
        weight: torch.Tensor,
        weight_format: WeightFormat,
        activation_format: ActivationFormat | None,
        statistics: Any,
    ) -> Transformed:
        """Transform a layer.

        Args:
            weight: [rows, columns] float32.
            weight_format, activation_format: the layer's formats.
            statistics: observers.Observers with the names in `needs`; None if `needs` is empty.
        """


def rounds(transforms: Sequence[Transform], static: bool, by_block: bool) -> list[tuple[list[Transform], set[str]]]:
    """Divide transforms where inputs have to be observed anew: return [(transforms, names of their observers)].

    Args:
        static: whether a layer has a static activation grid, for which the last round observes the range.
        by_block: whether the error of rounding without transforms is measured, for which the first round does, too.
    """
    divided = [[]]
    for transform in transforms:
        divided[-1].append(transform)
        if transform.MIXES_COLUMNS:
            divided.append([])
    needs = [{need for transform in part for need in transform.needs} for part in divided]
    if static:
        needs[-1].add("range")
        needs[0] |= {"range"} if by_block else set()
    return list(zip(divided, needs, strict=True))


@dataclass(frozen=True, kw_only=True)
class Split(Transform):
    """A transform whose layers `quantwatt.models.splits` has already split: it changes no weight."""

    def apply(
        self,
        weight: torch.Tensor,
        weight_format: WeightFormat,
        activation_format: ActivationFormat | None,
        statistics: Any,
    ) -> Transformed:
        """Return the unchanged weight."""
        return Transformed(weight)
