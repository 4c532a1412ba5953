"""Hold out calibration tokens from a solver, and compare its weights with rounding to nearest on these tokens.

A solver overfits if it has fewer tokens than a layer has inputs, or many similar tokens: its output error is then small
on these tokens and large on all others. The output error is therefore measured on held-out tokens. If it is larger than
that of rounding to nearest in the same format, the layer keeps the rounded weight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from quantwatt.formats.quantized_weight import QuantizedWeight
from quantwatt.quantize import output_errors
from quantwatt.quantize.layer_plan import LayerPlan
from quantwatt.quantize.observers import Observers
from quantwatt.quantize.solvers import Solution

# Replaced fields of a Solution that is worse than rounding.
REFUSED = {"damping": None, "fallback": "rounding (worse on held-out tokens)"}
SEED = 0


def chosen(origins: Sequence[Any], share: float) -> torch.Tensor:
    """Return which samples are held out, [samples] bool; at least one sample, drawn with a fixed seed.

    Samples of one origin are similar and are held out together; if all samples have one origin, each sample is drawn by
    itself. If there is a single sample, the last share of its tokens is held out: the result is [False, ..., True] over
    equal parts of its tokens, which `rows_of` expands.

    Args:
        origins: the origin of each sample, such as the number of its prompt.
        share: fraction of the samples to hold out.
    """
    if len(origins) == 1:
        parts = round(1 / share)
        return torch.arange(parts) == parts - 1
    names = list(dict.fromkeys(origins))
    if len(names) == 1:
        names = origins = range(len(origins))
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(SEED))
    held = {names[i] for i in order[: max(1, round(share * len(names)))].tolist()}
    return torch.tensor([origin in held for origin in origins])


def rows_of(held: torch.Tensor, count: int, real: torch.Tensor | None = None) -> torch.Tensor:
    """Return which tokens of a batch are held out, [count] bool.

    Args:
        held: [samples] bool; the tokens of a sample are consecutive.
        count: number of tokens.
        real: [samples, tokens] bool, which tokens are counted because they are not padding; None without padding.
    """
    if real is not None and len(real) == len(held):
        return held[:, None].expand_as(real)[real.cpu()]
    return held[torch.arange(count) * len(held) // count]


@dataclass
class Choice:
    """The final weights of a plan's layers.

    weights: {layer: QuantizedWeight}; reports: {layer: as `report` returns}.
    """

    weights: dict[str, QuantizedWeight]
    reports: dict[str, dict[str, Any]]


def choose(plan: LayerPlan, solution: Solution, statistics: Sequence[Observers] | None) -> tuple[Choice, torch.Tensor]:
    """Choose the solver's weight for each layer, or rounding to nearest if that is better on held-out tokens.

    Args:
        plan: LayerPlan.
        solution: for all rows of the plan.
        statistics: list of Observers, one per group of a convolution; None if the solver reads none.

    Returns:
        the Choice, and the values [rows, columns] of its weights as `output_errors.stands_for` returns, layers stacked.
    """
    solved, errors = plan.finish(solution.weight), {}
    values = output_errors.stands_for(plan, solved)
    if statistics and any(each.held_out is not None and each.held_out.inputs.seen for each in statistics):
        rounded = plan.finish(plan.nearest)
        nearest = output_errors.stands_for(plan, rounded)
        errors = output_errors.held_out(plan, (values, nearest), [each.held_out for each in statistics])
    choice = Choice({}, {})
    for name, rows in plan.names.items():
        final, worse = solution, is_worse(*errors.get(name, (None, None)))
        if worse:
            values[rows], final = nearest[rows], replace(solution, **REFUSED)
        choice.weights[name] = (rounded if worse else solved).rows(rows.start, rows.stop)
        choice.reports[name] = report(final, statistics[0] if statistics else None, *errors.get(name, (None, None)))
    return choice, values


def report(
    solution: Solution, statistics: Observers | None, error: float | None, rounding: float | None
) -> dict[str, Any]:
    """Return the report of a layer's Solution: damping, fallback, numbers of tokens, and errors on held-out tokens."""
    held_out = statistics and statistics.held_out
    return {
        "damping": solution.damping,
        "fallback": solution.fallback,
        "tokens": statistics and statistics.count.value,
        "held_out_tokens": held_out and held_out.inputs.seen,
        "held_out_error": error,
        "held_out_rounding": rounding,
    }


def is_worse(error: float | None, rounding: float | None) -> bool:
    """Return whether the held-out error exceeds that of rounding; None: not finite, or without held-out tokens."""
    return rounding is not None and (error is None or error > rounding)


def few_tokens(reports: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return a warning about the layers that were solved on fewer tokens than they have inputs, or None."""
    counted = {name: report for name, report in reports.items() if report.get("tokens") is not None}
    few = [name for name, report in counted.items() if report["tokens"] < report["in_features"]]
    if not few:
        return None
    tokens, inputs = (counted[few[0]][key] for key in ("tokens", "in_features"))
    return (
        f"{len(few)} of {len(counted)} solved layers saw fewer calibration tokens than they have inputs ({few[0]}: "
        f"{tokens} tokens, {inputs} inputs). The fit may not generalize: use more calibration samples."
    )
