"""Calibration tokens that a solver does not see, and what it does to the outputs on them.

A solver that has fewer tokens than a layer has inputs, or few that differ, fits them and loses on all others. What it
gains is therefore judged on tokens held out of the fit, and a layer that it makes worse there than rounding to nearest
in the same format keeps the rounding.
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

# What becomes of a Solution that is worse than rounding.
REFUSED = {"damping": None, "fallback": "rounding (worse on held-out tokens)"}
SEED = 0


def chosen(origins: Sequence[Any], share: float) -> torch.Tensor:
    """Which samples are held out, [samples] bool; at least one, drawn once and for all.

    Samples of one origin resemble one another and are held out together; where all have the same, each is its own.
    Of a single sample it is the last of its tokens, as many as make the share: [False, ..., True], as of `rows_of`.

    Args:
        origins: what each sample comes from, such as its prompt's number.
        share: of the samples to hold out.
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
    """Which of a batch's tokens are held out, [count] bool.

    Args:
        held: [samples] bool, whose tokens stand one after another.
        count: of all tokens.
        real: [samples, tokens] bool, which tokens those are where some of the samples are padding; else None.
    """
    if real is not None and len(real) == len(held):
        return held[:, None].expand_as(real)[real.cpu()]
    return held[torch.arange(count) * len(held) // count]


@dataclass
class Choice:
    """What a plan's layers become.

    weights: {layer: QuantizedWeight}; reports: {layer: as of `report`}.
    """

    weights: dict[str, QuantizedWeight]
    reports: dict[str, dict[str, Any]]


def choose(plan: LayerPlan, solution: Solution, statistics: Sequence[Observers] | None) -> tuple[Choice, torch.Tensor]:
    """The solver's weight for the layers that it does not make worse on held-out tokens, else the nearest.

    Args:
        plan: LayerPlan.
        solution: of all its rows.
        statistics: list of Observers, one for each group of a convolution; None where the solver reads none.

    Returns:
        the Choice, and [rows, columns] that its weights stand for, all below one another.
    """
    solved, errors = plan.finish(solution.weight), {}
    values = output_errors.stands_for(plan, solved)
    if statistics and any(one.held_out is not None and one.held_out.inputs.seen for one in statistics):
        rounded = plan.finish(plan.nearest)
        nearest = output_errors.stands_for(plan, rounded)
        errors = output_errors.held_out(plan, (values, nearest), [one.held_out for one in statistics])
    choice = Choice({}, {})
    for name, rows in plan.names.items():
        own, worse = solution, is_worse(*errors.get(name, (None, None)))
        if worse:
            values[rows], own = nearest[rows], replace(solution, **REFUSED)
        choice.weights[name] = (rounded if worse else solved).rows(rows.start, rows.stop)
        choice.reports[name] = report(own, statistics[0] if statistics else None, *errors.get(name, (None, None)))
    return choice, values


def report(
    solution: Solution, statistics: Observers | None, error: float | None, rounding: float | None
) -> dict[str, Any]:
    """What a layer's report says of its Solution: how it was found, on how many tokens, and what it does to others."""
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
    """Whether a solver's error on held-out tokens is larger than rounding's; None: not finite, or nothing held out."""
    return rounding is not None and (error is None or error > rounding)


def few_tokens(reports: Mapping[str, Mapping[str, Any]]) -> str | None:
    """A sentence on the layers that were solved on fewer tokens than they have inputs; None where there are none."""
    counted = {name: report for name, report in reports.items() if report.get("tokens") is not None}
    few = [name for name, report in counted.items() if report["tokens"] < report["in_features"]]
    if not few:
        return None
    tokens, inputs = (counted[few[0]][key] for key in ("tokens", "in_features"))
    return (
        f"{len(few)} of {len(counted)} solved layers saw fewer calibration tokens than they have inputs ({few[0]}: "
        f"{tokens} tokens, {inputs} inputs). What is fitted to them may not hold for others: take more samples."
    )
