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
observers of that weight's inputs, which are already multiplied by all earlier factors.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
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
    down, up: [rank, columns] and [rows, rank] of a branch in 16 bit that adds (x * input_factor) @ down.T @ up.T to
        the output, or None.
    first_output: [rows], the layer's product with the first token, or None.
    report: {figure: value} for the layer's entry in the checkpoint's manifest.
    """

    weight: torch.Tensor
    input_factor: torch.Tensor | None = None
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

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Create the transform from an entry in a completed method's `transforms`."""
        return cls(**{key: value for key, value in settings.items() if key != "name"})

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the observers that the transform reads with its settings."""
        return self.NEEDS

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
