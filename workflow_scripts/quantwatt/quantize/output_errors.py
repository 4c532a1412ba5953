"""Output errors of quantized layers against the float layers, estimated from observers of the inputs."""

from collections.abc import Sequence
from typing import Any

import torch

from quantwatt.artifacts.manifest import finite
from quantwatt.formats import rotation
from quantwatt.formats.quantized_weight import QuantizedWeight
from quantwatt.quantize.layer_plan import LayerPlan
from quantwatt.quantize.observers import Observers


def stands_for(plan: LayerPlan, weight: QuantizedWeight) -> torch.Tensor:
    """Return the matrix [rows, columns] float32 that multiplies the mapped input: dequantized codes plus branch."""
    branch = 0 if plan.down is None or plan.up is None else plan.up.float() @ plan.down.float()
    return weight.dequantize(plan.weight_format).to(plan.original.device) + branch


def relative(
    plan: LayerPlan, values: torch.Tensor, statistics: Sequence[Observers] | None
) -> dict[str, dict[str, Any]]:
    """Return {layer: relative errors} of rounding the untransformed weight to nearest, and of the method's weight.

    With a Hessian of the inputs, the error of the output, ‖X̃ΔWᵀ‖ / ‖X̃Wᵀ‖. With inputs of the float model, too, the
    distance from the float model's output, ‖XWᵀ - X̃Qᵀ‖ / ‖XWᵀ‖, on a sample of tokens. Else ‖ΔW‖ / ‖W‖.

    Args:
        plan: LayerPlan; values: as `stands_for` returns.
        statistics: list of Observers, one per group of a convolution, or None.
    """
    nearest = rotation.folded(plan.plain.dequantize(plan.weight_format), *plan.map)
    target = rotation.folded(plan.original, *plan.map)  # the float weight for the scaled and rotated inputs
    parts = [
        _squared(target[rows], (nearest[rows], values[rows]), plan.map, observers)
        for rows, observers in zip(plan.groups, statistics or [None] * len(plan.groups), strict=True)
    ]
    norm, before, after = (torch.cat(errors) for errors in zip(*(part[1:] for part in parts), strict=True))  # [rows]
    return {
        name: {
            "error_before": _relative(before[rows], norm[rows]),
            "relative_error": _relative(after[rows], norm[rows]),
            "error_of": parts[0][0],
        }
        for name, rows in plan.names.items()
    }


def held_out(
    plan: LayerPlan, candidates: Sequence[torch.Tensor], samples: Sequence[Any]
) -> dict[str, tuple[float | None, ...]]:
    """Return {layer: (relative output error of each candidate weight)} on held-out tokens.

    Input columns that are not finite are ignored, as in solvers.

    Args:
        plan: LayerPlan; candidates: as `stands_for` returns.
        samples: list of observers.HeldOut, one per group of a convolution.
    """
    target = rotation.folded(plan.original, *plan.map)
    parts = []
    for rows, sample in zip(plan.groups, samples, strict=True):
        inputs = sample.inputs.value
        references = sample.references.value if sample.references.seen else inputs
        usable = inputs.isfinite().all(dim=0) & references.isfinite().all(dim=0)
        inputs, references = (torch.where(usable, part, 0.0) for part in (inputs, references))
        parts.append(_on_tokens(target[rows], [candidate[rows] for candidate in candidates], inputs, references))
    norm, *errors = (torch.cat(values) for values in zip(*parts, strict=True))  # [rows]
    return {name: tuple(_relative(error[rows], norm[rows]) for error in errors) for name, rows in plan.names.items()}


def _relative(errors, norm):
    return finite((errors.sum().clamp(min=0) / norm.sum()).sqrt()) if norm.sum() != 0 else 0.0


def _squared(target, candidates, inputs_map, statistics):
    """Return (compared quantity, target's squared norm [rows], each candidate's squared distance [rows], ...)."""
    if statistics is None or statistics.hessian is None:
        parts = (rotation.unfolded(part, *inputs_map) for part in (target, *(c - target for c in candidates)))
        return "weights", *(part.square().sum(dim=1) for part in parts)
    if statistics.cross is not None:
        inputs, references = statistics.cross.inputs.value, statistics.cross.references.value
        return "float outputs", *_on_tokens(target, candidates, inputs, references)
    hessian = statistics.hessian.value
    return "outputs", *(((part @ hessian) * part).sum(dim=1) for part in (target, *(c - target for c in candidates)))


def _on_tokens(target, candidates, inputs, references):
    """Return the squared norm of the float outputs and each candidate's squared distance from them, [rows] each.

    Args:
        inputs: [tokens, columns] in the quantized model; references: in the float model, for the same tokens.
    """
    outputs = references @ target.T
    distances = ((outputs - inputs @ candidate.T).square().sum(dim=0) for candidate in candidates)
    return outputs.square().sum(dim=0), *distances
