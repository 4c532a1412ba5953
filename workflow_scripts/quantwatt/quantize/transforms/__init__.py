"""What is done to a layer before its weight is quantized, so that the product stays the same in exact arithmetic.

A transform module has a class `Transform`: a frozen dataclass whose fields are the settings of its schema. The schema
also says what is known without running it:

    "x-needs-calibration": true      it reads statistics
    "x-last": "..."                  it comes behind all others; the end of "'NAME' ...; put it last"
    "x-marks": {KEY: "..."}          MARK, and what the layers do that a family marks so: "NAME has no layer that ..."
    "x-takes-apart": KEY             layers with this key of the model's manifest are quantized in parts, "segments" or
                                     "skips" (`quantwatt.models.splits`)
    "x-untried": "..."               a sensitivity may have it: what one without it does, for a method that has it

Convolutions are left as they are. Transforms run in order: each gets the weight that the one before has left, and
statistics of the inputs that its weight meets, which are already multiplied by the factors so far.
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
    """A weight to quantize, and what the layer does beside it.

    weight: [rows, columns] float32.
    input_factor: [columns] by which the layer's input is multiplied first, or None.
    down, up: [rank, columns] and [rows, rank] of a branch in 16 bit that adds (x * input_factor) @ down.T @ up.T to
        the output, or None.
    first_output: [rows], what the layer gives for the first token, or None.
    report: {figure: value} for the layer's entry in the checkpoint's manifest.
    """

    weight: torch.Tensor
    input_factor: torch.Tensor | None = None
    down: torch.Tensor | None = None
    up: torch.Tensor | None = None
    first_output: torch.Tensor | None = None
    report: dict[str, Any] = field(default_factory=dict)


def load_transform(settings: Mapping[str, Any]) -> "Transform":
    """The transform of one entry of a completed method's `transforms`."""
    return registry.load("transforms", settings["name"]).Transform.from_settings(settings)


@dataclass(frozen=True, kw_only=True)
class Transform(ABC):
    """One transform with its settings."""

    NEEDS: ClassVar[tuple[str, ...]] = ()  # names of the statistics that it reads (quantwatt/quantize/observers.py)
    MARK: ClassVar[str | None] = None  # the key of the allocation's entries of those layers that are transformed alone

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Of an entry of a completed method's `transforms`."""
        return cls(**{key: value for key, value in settings.items() if key != "name"})

    @property
    def needs(self) -> tuple[str, ...]:
        """NEEDS, or what these settings need of it."""
        return self.NEEDS

    @abstractmethod
    def apply(
        self,
        weight: torch.Tensor,
        weight_format: WeightFormat,
        activation_format: ActivationFormat | None,
        statistics: Any,
    ) -> Transformed:
        """What becomes of a layer.

        Args:
            weight: [rows, columns] float32.
            weight_format, activation_format: what the layer is quantized to.
            statistics: observers.Observers of what `needs` names; None where it names nothing.
        """
