"""Each layer the candidate that integer programs have chosen for it (quantwatt/allocate/programs.py)."""

from quantwatt.artifacts import manifest, sensitivity_table
from quantwatt.config.programs import SIDES, sides

FLOAT_BITS = 16  # what stays as it is counts with in an average, whatever type computes here


def allocate(layers, method, method_name, solved, tried=None):
    """As `quantwatt.allocate.allocation.allocate`, from what the programs have found.

    Layers of 16-bit weights are left out.

    Args:
        solved: of `quantwatt.allocate.programs.solve`.
        tried: {(program, number): image error} of the choices, where a program has several.
    """
    choices = []
    for program in range(len(method["allocation"]["programs"])):
        own = [choice for choice in solved if choice["program"] == program]
        choices.append(best(own, tried)["layers"])
    return {name: formats for name, formats in formats_of(method, choices).items() if formats["weights"]}


def read(candidates, trials=None):
    """What `allocate` takes, from the files of candidates.py and, where a program has several choices, trials.py."""
    rows = sensitivity_table.read(trials, sensitivity_table.TRIALS) if trials else []
    tried = {(row["program"], row["number"]): row["image_error"] for row in rows}
    return {"solved": manifest.read_json(candidates), "tried": tried}


def best(choices, tried):
    """The choice of the least image error; the first one where they err alike."""
    if len(choices) == 1:
        return choices[0]
    return min(choices, key=lambda choice: tried[choice["program"], choice["number"]])


def formats_of(method, choices):
    """{layer: {"weights", "activations"}} of all layers that were tried; None is 16 bit.

    Args:
        choices: {layer: candidate or None} of the first programs. What no program decides is as the method has it, and
            what a later program decides stays in 16 bit until then.
    """
    allocation = method["allocation"]
    decided = {side for program in allocation["programs"] for side in sides(program, allocation["candidates"])}
    formats = {}
    for name in choices[0]:
        formats[name] = {side: None if side in decided else method[side] for side in SIDES}
        for choice in choices:
            formats[name] |= allocation["candidates"][choice[name]] if choice[name] else {}
    return formats


def bits_of(formats, side):
    """Bits of one value in a candidate's format."""
    return FLOAT_BITS if formats[side] is None else formats[side]["bits"]
