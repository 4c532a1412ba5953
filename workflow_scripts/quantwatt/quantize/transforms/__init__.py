"""What is done to a layer before its weight is quantized, so that the product stays the same in exact arithmetic.

A transform module offers

    apply(weight, weight_format, activation_format, settings, statistics) -> Transformed
    NEEDS = (...) or needs(settings) -> (...)       names of the statistics that it reads, where it reads any
    MARK = "..."                                    where only some layers are transformed: the key that their entries
                                                    of the allocation have (`quantwatt.allocate.allocation`)

Its schema says what is known without running it:

    "x-needs-calibration": true      it reads statistics
    "x-last": "..."                  it comes behind all others; the end of "'NAME' ...; put it last"
    "x-marks": {KEY: "..."}          MARK, and what the layers do that a family marks so: "NAME has no layer that ..."
    "x-takes-apart": KEY             layers with this key of the model's manifest are quantized in parts, "segments" or
                                     "skips" (`quantwatt.models.splits`)
    "x-untried": "..."               a sensitivity may have it: what one without it does, for a method that has it

Convolutions are left as they are.

Transforms run in order: each gets the weight that the one before has left, and statistics of the inputs that its
weight meets, which are already multiplied by the factors so far.
"""

from dataclasses import dataclass, field

import torch


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
    report: dict = field(default_factory=dict)
