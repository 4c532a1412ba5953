"""Complete and check the `schedule` of methods: ranges of a drawing's steps with formats of their own.

A completed schedule is a list of ranges, {"steps": number, or None for the rest} with "weights" and "activations" where
they differ from the method's; None: all steps are alike. That of a mixed method may come from its sensitivity's ranges.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from quantwatt.artifacts import step_ranges
from quantwatt.artifacts.errors import DataError
from quantwatt.config.method_entries import check_combination, complete_activations, complete_weights
from quantwatt.config.methods import is_external, is_library, is_mixed, needs_calibration
from quantwatt.config.schemas import ConfigurationError

UNQUANTIZED = {"weights": None, "activations": None}


def complete_schedule(method: dict[str, Any], file: str, where: str) -> dict[str, Any]:
    """Complete the schedule of a quantized method whose other keys are complete; return the method."""
    where = f"{where}.schedule"
    if method["schedule"] is None:
        return method
    ranges = method["schedule"]
    if isinstance(ranges, dict):
        ranges = _around(ranges, file, where)
    ranges = [_complete_range(entry, file, f"{where}.{i}") for i, entry in enumerate(ranges)]
    _check_ranges(method, ranges, file, where)
    for i, entry in enumerate(ranges):
        of_range = method | {side: entry[side] for side in UNQUANTIZED if side in entry}
        _check_formats(method, entry, file, f"{where}.{i}")
        if of_range["weights"]:
            check_combination(of_range, file, f"{where}.{i}")
    return method | {"schedule": ranges}


def _around(ends, file, where):
    """The ranges of {"first", "last"}, the unquantized steps around the others."""
    if not any(ends.values()):
        raise ConfigurationError(f"{file}: {where}: first and last are 0, so that all steps are alike; drop the key.")
    first, last = ([{"steps": ends[key], **UNQUANTIZED}] if ends[key] else [] for key in ("first", "last"))
    return [*first, {"steps": None}, *last]


def _complete_range(entry, file, where):
    entry = dict(entry)
    if "weights" in entry:
        entry["weights"] = complete_weights(entry["weights"], file, f"{where}.weights")
    if "activations" in entry:
        entry["activations"] = complete_activations(entry["activations"], file, f"{where}.activations")
    if "weights" in entry and entry["weights"] is None:
        if entry.get("activations"):
            raise ConfigurationError(
                f"{file}: {where}.activations: layers of 16-bit weights keep 16-bit activations; drop the key."
            )
        entry["activations"] = None
    return entry


def _check_ranges(method, ranges, file, where):
    """Refuse several rests, ranges of which none is quantized, and methods whose steps are all alike."""
    if len([entry for entry in ranges if entry["steps"] is None]) > 1:
        raise ConfigurationError(f"{file}: {where}: two ranges without `steps`, and one alone can take what is left.")
    if all("weights" in entry and entry["weights"] is None for entry in ranges):
        raise ConfigurationError(f"{file}: {where}: no step is quantized; leave out the weights of a range.")
    libraries = [method, *(method | entry for entry in ranges)]
    if library := next((entry["weights"]["format"] for entry in libraries if is_library(entry)), None):
        raise ConfigurationError(
            f"{file}: {where}: '{library}' is stored and computed by its library, in all steps alike; drop the key."
        )
    if is_external(method):
        raise ConfigurationError(
            f"{file}: {where}: '{method['solver']['name']}' solves each layer once, for all steps alike; drop the key."
        )


def _check_formats(method, entry, file, where):
    """Refuse formats of a range that an allocation would have to change, too."""
    own = next((side for side in UNQUANTIZED if entry.get(side)), None)
    if own and is_mixed(method):
        raise ConfigurationError(
            f"{file}: {where}.{own}: the programs of the allocation decide on formats; leave it out, or set weights: "
            "null for unquantized steps."
        )
    if own and method["allocation"].get("overrides"):
        raise ConfigurationError(
            f"{file}: {where}.{own}: the allocation's overrides change the method's own formats; drop them, or leave "
            "the range those."
        )


def of_sensitivity(method: dict[str, Any], sensitivity: Mapping[str, Any], name: str, file: str, where: str) -> None:
    """Give a mixed method the ranges of its sensitivity, for each of which its programs choose formats."""
    if not sensitivity["ranges"]:
        return
    if method["schedule"]:
        raise ConfigurationError(
            f"{file}: {where}.schedule: the programs choose formats for the ranges of sensitivities.{name}; drop the "
            "key, or its ranges."
        )
    method["schedule"] = [{"steps": steps} for steps in sensitivity["ranges"]]


def complete_ranges(entry: dict[str, Any], file: str, where: str) -> None:
    """Replace a number of ranges of a sensitivity by the steps of each, and check that they are its steps."""
    ranges, steps = entry["ranges"], entry["steps"]
    if isinstance(ranges, int):
        if ranges > steps:
            raise ConfigurationError(f"{file}: {where}.ranges: {steps} steps are no {ranges} ranges; set fewer.")
        entry["ranges"] = step_ranges.equal(ranges, steps)
    elif ranges and sum(ranges) != steps:
        raise ConfigurationError(f"{file}: {where}.ranges: they take {sum(ranges)} steps, and it has {steps}.")


def check_steps(experiment: Mapping[str, Any], file: str) -> None:
    """Refuse schedules of models without steps, of folded rotations, and that do not fit into what is drawn."""
    for name, method in experiment["methods"].items():
        if not method["schedule"]:
            continue
        if experiment["kind"] == "text":
            raise ConfigurationError(f"{file}: methods.{name}.schedule: text models have no steps; drop the key.")
        if any(transform.get("fold") for transform in method["transforms"]):
            raise ConfigurationError(
                f"{file}: methods.{name}.schedule: a rotation that is folded changes layers in all steps, and also "
                "those that stay unquantized; set fold: false."
            )
        for where, steps in _drawings(experiment, method):
            try:
                step_ranges.counts([entry["steps"] for entry in method["schedule"]], steps)
            except DataError as error:
                raise ConfigurationError(f"{file}: methods.{name}.schedule: {error} ({where}.steps).") from error


def _drawings(experiment: Mapping[str, Any], method: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """(entry, its steps) of all that is drawn with a method."""
    for name, sampling in experiment["samplings"].items():
        yield (f"samplings.{name}", sampling["steps"]) if not method.get("steps") else ("the method", method["steps"])
    if experiment["calibration"] and needs_calibration(method):
        yield "calibration", experiment["calibration"]["steps"]
