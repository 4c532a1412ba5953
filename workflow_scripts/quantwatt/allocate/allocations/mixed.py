"""Give each layer the candidate that the integer programs chose for it (quantwatt/allocate/programs.py)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantwatt.artifacts import manifest, sensitivity_table
from quantwatt.config.programs import SIDES, sides

FLOAT_BITS = 16  # an unquantized layer counts as 16 bits in an average, whatever its compute type


def allocate(
    layers: Mapping[str, Mapping[str, Any]],
    method: Mapping[str, Any],
    method_name: str,
    solved: Sequence[Mapping[str, Any]],
    tried: Mapping[tuple[int, int], float] | None = None,
    of_range: int = 0,
) -> dict[str, dict[str, Any]]:
    """As `quantwatt.allocate.allocation.allocate`, from the results of the integer programs.

    Layers with 16-bit weights are left out.

    Args:
        solved: the choices that `quantwatt.allocate.programs.solve` returned.
        tried: {(program, number): image error} of each choice of a program with several choices.
        of_range: the range of steps, where the programs chose for each.
    """
    choices = []
    for program in range(len(method["allocation"]["programs"])):
        of_program = [choice for choice in solved if choice["program"] == program]
        ranges = best(of_program, tried or {})["ranges"]
        choices.append(ranges[of_range if len(ranges) > 1 else 0])
    return {name: formats for name, formats in formats_of(method, choices).items() if formats["weights"]}


def read(candidates: str | Path, trials: str | Path | None = None) -> dict[str, Any]:
    """Read the arguments of `allocate` from the files of candidates.py and, for several choices, of trials.py."""
    rows = sensitivity_table.read(trials, sensitivity_table.TRIALS) if trials else []
    tried = {(row["program"], row["number"]): row["image_error"] for row in rows}
    return {"solved": manifest.read_json(candidates), "tried": tried}


def best(choices: Sequence[Mapping[str, Any]], tried: Mapping[tuple[int, int], float]) -> Mapping[str, Any]:
    """Return the choice with the smallest image error; of equal choices, the first."""
    if len(choices) == 1:
        return choices[0]
    return min(choices, key=lambda choice: tried[choice["program"], choice["number"]])


def formats_of(method: Mapping[str, Any], choices: Sequence[Mapping[str, str | None]]) -> dict[str, dict[str, Any]]:
    """Return {layer: {"weights", "activations"}} of all measured layers; None means 16 bit.

    Args:
        choices: {layer: candidate or None} of the first programs. A side (weights or activations) that no program
            decides has the method's format; a side that only a later program decides stays in 16 bit.
    """
    allocation = method["allocation"]
    decided = {side for program in allocation["programs"] for side in sides(program, allocation["candidates"])}
    formats = {}
    for name in choices[0]:
        formats[name] = {side: None if side in decided else method[side] for side in SIDES}
        for choice in choices:
            formats[name] |= allocation["candidates"][choice[name]] if choice[name] else {}
    return formats


def bits_of(formats: Mapping[str, Any], side: str) -> int:
    """Return the bits per value in a candidate's format."""
    return FLOAT_BITS if formats[side] is None else formats[side]["bits"]
