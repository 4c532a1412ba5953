"""Complete and check sensitivities, and the integer programs of mixed methods, which use them."""

from collections.abc import Mapping
from typing import Any

from quantwatt import registry
from quantwatt.config.method_entries import complete_activations, complete_transforms, complete_weights
from quantwatt.config.programs import names_of
from quantwatt.config.programs import sides as sides_of
from quantwatt.config.schedule_entries import complete_ranges, of_sensitivity
from quantwatt.config.schemas import ConfigurationError, complete, lookup
from quantwatt.config.suggestions import nearest
from quantwatt.registry import schema


def complete_sensitivity(entry: Mapping[str, Any], file: str, where: str) -> dict[str, Any]:
    """Complete a sensitivity: the candidates that are tried on one layer at a time."""
    entry = complete(entry, schema("sensitivity"), file, where)
    complete_ranges(entry, file, where)
    for name, candidate in entry["candidates"].items():
        place = f"{where}.candidates.{name}"
        formats = {"weights": None, "activations": None} | candidate
        formats["activations"] = complete_activations(formats["activations"], file, f"{place}.activations")
        formats["weights"] = complete_weights(formats["weights"], file, f"{place}.weights")
        if formats["weights"] and schema(f"formats/{formats['weights']['format']}").get("x-library", False):
            raise ConfigurationError(
                f"{file}: {place}.weights.format: '{formats['weights']['format']}' is stored by its library, and a "
                f"candidate is rounded here; use {_rounded_here()}."
            )
        entry["candidates"][name] = {side: formats[side] for side in candidate}
    entry["transforms"] = complete_transforms(entry["transforms"], file, f"{where}.transforms")
    known = _untried(registry.names("transforms"))
    for i, transform in enumerate(entry["transforms"]):
        if transform["name"] not in known:
            raise ConfigurationError(
                f"{file}: {where}.transforms.{i}.name: '{transform['name']}' belongs to a method; layers are tried "
                f"with {', '.join(known)} only."
            )
    return entry


def _untried(transforms):
    """{transform: effect of leaving it out} of the transforms that a sensitivity may have ("x-untried" in schemas).

    These transforms do not change a layer's values before rounding.
    """
    sentences = {name: schema(f"transforms/{name}").get("x-untried") for name in sorted(transforms)}
    return {name: sentence for name, sentence in sentences.items() if sentence}


def _rounded_here():
    """The formats that quantwatt rounds itself, in words."""
    *most, last = (name for name in registry.names("formats") if not schema(f"formats/{name}").get("x-library", False))
    return f"{', '.join(most)} or {last}"


def check_mixed(method: dict[str, Any], sensitivities: Mapping[str, Any], file: str, where: str) -> None:
    """Check the programs of a mixed method, and add their candidates and ranges of steps to it."""
    allocation, where = method["allocation"], f"{where}.allocation"
    try:
        sensitivity = lookup(sensitivities, allocation["sensitivity"], "entry of sensitivities", file)
    except ConfigurationError as error:
        raise ConfigurationError(f"{file}: {where}.sensitivity: {str(error).removeprefix(f'{file}: ')}") from error
    candidates, decided = {}, {}
    for i, program in enumerate(allocation["programs"]):
        place = f"{where}.programs.{i}"
        chosen = _chosen(program, sensitivity["candidates"], allocation["sensitivity"], file, f"{place}.candidates")
        candidates |= chosen
        sides = sides_of(program, chosen)
        _check_candidates(chosen, sides, file, f"{place}.candidates")
        for side in sides:
            if side in decided:
                raise ConfigurationError(
                    f"{file}: {place}.candidates: program {decided[side]} decides on {side} already."
                )
            decided[side] = i
        _check_program(program, sides, file, place)
    for side in decided:
        if method[side]:
            raise ConfigurationError(
                f"{file}: {where.removesuffix('.allocation')}.{side}: the programs of its allocation decide on {side}; "
                "drop the key."
            )
    if "weights" not in decided and method["weights"] is None:
        raise ConfigurationError(
            f"{file}: {where}.programs: none decides on weights, and layers of 16-bit weights keep 16-bit activations; "
            "give the method weights, or add a program."
        )
    _check_same_transforms(method, sensitivity, allocation["sensitivity"], file, f"{where}.sensitivity")
    of_sensitivity(method, sensitivity, allocation["sensitivity"], file, where.removesuffix(".allocation"))
    allocation["candidates"] = candidates


def _chosen(program, tried, sensitivity, file, where):
    """{name: formats} of the candidates that a program names; its sensitivity must try them."""
    for name in names_of(program):
        if name not in tried:
            raise ConfigurationError(f"{file}: {where}: '{sensitivity}' tries no '{name}'{nearest(name, tried)}.")
    return {name: tried[name] for name in names_of(program)}


def _check_candidates(candidates, sides, file, where):
    """Refuse candidates of one program that set different sides, or formats that a layer cannot combine."""
    for name, formats in candidates.items():
        if unsaid := [side for side in sides if side not in formats]:
            raise ConfigurationError(
                f"{file}: {where}: '{name}' says nothing of {' and '.join(unsaid)}, and others do; candidates of one "
                "program set the same (null: 16 bit)."
            )
        if len(sides) == 2 and formats["weights"] is None and formats["activations"]:
            raise ConfigurationError(
                f"{file}: {where}: '{name}' has 16-bit weights, and such layers keep 16-bit activations."
            )


def _check_same_transforms(method, sensitivity, name, file, where):
    """Refuse a sensitivity whose transforms differ from the method's, among those that a sensitivity may have."""
    mine, tried = ({transform["name"] for transform in entry["transforms"]} for entry in (method, sensitivity))
    if lacking := sorted(tried - mine):
        raise ConfigurationError(
            f"{file}: {where}: '{name}' tries layers with '{lacking[0]}', which this method does not have among its "
            "transforms."
        )
    for sentence in _untried(mine - tried).values():
        raise ConfigurationError(f"{file}: {where}: '{name}' {sentence}; give it that transform.")


def _check_program(program, sides, file, where):
    """Refuse combinations of a program's candidates, budget, objective, protected layers and split."""
    bits = "bits" in program["budget"]
    if bits and len(sides) > 1:
        raise ConfigurationError(
            f"{file}: {where}.budget.bits: these candidates set weights and activations, whose bits are two budgets; "
            "make two programs, or budget megabytes, milliseconds or joules."
        )
    if not bits and "weights" not in sides:
        raise ConfigurationError(
            f"{file}: {where}.budget: these candidates set activations alone, which take nothing by themselves; "
            "give it in bits, or let the candidates set weights, too."
        )
    if isinstance(program["objective"], dict) and not bits:
        raise ConfigurationError(
            f"{file}: {where}.objective: a metric for each group splits a budget in bits; with another name one metric."
        )
    if program["protect"] and (not bits or sides != ["activations"]):
        raise ConfigurationError(
            f"{file}: {where}.protect: layers keep 16-bit activations in a program of activations and bits only."
        )
    if program["split"] and not isinstance(program["objective"], dict):
        raise ConfigurationError(f"{file}: {where}.split: one objective does not split the budget; drop the key.")
    if program["split"] and program["split"]["low"] > program["split"]["high"]:
        raise ConfigurationError(f"{file}: {where}.split.low: {program['split']['low']} is above high.")
