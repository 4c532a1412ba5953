"""What a method is, in words, from the settings that its checkpoint records."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from quantwatt.artifacts import step_ranges
from quantwatt.report.cells import Cell

NAMES = {"rtn": "rounding to nearest", "gptq": "GPTQ", "hqq": "HQQ", "brecq": "BRECQ", "qronos": "Qronos"}


def method_rows(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """One mapping per method: {"method", "solver", "weights", "activations", "also", "kernel"}, all text."""
    found: dict[str, dict[str, Any]] = {}
    for cell in cells:
        settings = cell.checkpoint.get("settings")
        if not settings:
            continue
        row = found.setdefault(cell.method, {"method": cell.method, **_words(settings), "kernel": None})
        measured = cell.measurement
        if row["kernel"] is None and measured.get("kernel"):
            row["kernel"] = measured["kernel"] if measured.get("compute") == "real" else "none: simulated"
    return list(found.values())


def short(settings: Mapping[str, Any] | None) -> str:
    """One line for a card: "GPTQ, integer 4 bits, groups of 64; inputs of 8 bits"."""
    if not settings:
        return ""
    words = _words(settings)
    inputs = f"; inputs: {words['activations']}" if words["activations"] else ""
    if not words["weights"] and settings.get("components"):
        return "; ".join([*_components(settings), *_drawing(settings)])
    what = f"{words['solver'].partition(':')[0]}, {words['weights']}{inputs}" if words["weights"] else words["solver"]
    steps = ["other formats in some steps"] if settings.get("schedule") else []
    return "; ".join([what, *_components(settings), *steps, *_drawing(settings)])


def _words(settings):
    solver = settings.get("solver")
    also = [_named(transform) for transform in settings.get("transforms") or ()]
    allocation = settings.get("allocation") or {}
    if allocation.get("name") not in (None, "uniform") or allocation.get("overrides") or allocation.get("exclude"):
        also.append(f"allocation {_named(allocation)}")
    if settings.get("schedule"):
        also.append(_ranges(settings["schedule"], settings["allocation"]))
    also += _components(settings)
    also += [f"{key} {settings[key]}" for key in ("dtype", "autocast", "compile") if settings.get(key)]
    also += _drawing(settings)
    return {
        "solver": _named(solver) if solver else _of_others(settings),
        "weights": _grid(settings.get("weights")),
        "activations": _grid(settings.get("activations")),
        "also": "; ".join(also),
    }


def _of_others(settings):
    """Who quantized a checkpoint of others: "gguf of others: flux-q4_k.gguf"; "not quantized" without one."""
    checkpoint = settings.get("checkpoint")
    if not checkpoint:
        return f"{'denoiser ' if settings.get('components') else ''}not quantized"
    where = checkpoint.get("function") or checkpoint.get("hub") or Path(checkpoint["path"]).name
    return f"{checkpoint['loader']} of others: {checkpoint.get('file') or where}"


def _components(settings):
    """The components that are quantized beside the denoiser: ["text_encoder_3: GPTQ, integer 4 bits"]."""
    return [f"{name}: {short(entry)}" for name, entry in (settings.get("components") or {}).items()]


def _ranges(schedule, allocation):
    """The formats of each range of steps: "steps 1-3: unquantized; steps 4 to the last: as above"."""
    named = step_ranges.words([entry["steps"] for entry in schedule])
    usual = "as allocated" if allocation["name"] == "mixed" else "as above"
    words = [_of_range(entry) or usual for entry in schedule]
    return "; ".join(f"{steps}: {formats}" for steps, formats in zip(named, words, strict=True))


def _of_range(entry):
    """The formats that a range of steps has of its own; "" where they are the method's."""
    if "weights" in entry and entry["weights"] is None:
        return "unquantized"
    weights, inputs = _grid(entry.get("weights")), _grid(entry.get("activations"))
    if "activations" in entry and not inputs:
        inputs = "16 bits"
    return ", ".join(filter(None, [weights, inputs and f"inputs of {inputs}"]))


def _drawing(settings):
    """A cache and steps of its own: ["cache first-block: threshold 0.1", "5 steps"]."""
    steps = settings.get("steps")
    cache = [f"cache {_named(settings['cache'])}"] if settings.get("cache") else []
    return cache + ([f"{steps} {'step' if steps == 1 else 'steps'}"] if steps else [])


def _named(entry):
    """A solver, transform or allocation with its settings: "GPTQ: act order, damping 0.01"."""
    name = NAMES.get(entry["name"], entry["name"])
    told = [text for key, value in entry.items() if key != "name" and (text := _setting(key, value))]
    return f"{name}: {', '.join(told)}" if told else name


def _setting(key, value):
    words = key.replace("_", " ")
    if value is True:
        return words
    if value in (None, False, [], {}):
        return ""
    return f"{words} {_text(value)}"


def _text(value):
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_text(inner)}" for key, inner in value.items()) + "}"
    return ", ".join(map(_text, value)) if isinstance(value, (list, tuple)) else str(value)


def _grid(grid):
    """A format of weights or activations: "integer 4 bits, groups of 64, symmetric"."""
    if not grid:
        return ""
    parts = [" ".join(filter(None, [grid.get("format", ""), f"{grid['bits']:g} bits" if "bits" in grid else ""]))]
    if grid.get("group_size"):
        parts.append(f"groups of {grid['group_size']}")
    elif grid.get("granularity"):
        parts.append(f"one scale per {grid['granularity']}")
    if "symmetric" in grid:
        parts.append("symmetric" if grid["symmetric"] else "with zero points")
    if grid.get("dynamic") is False:
        parts.append("static")
    known = {"format", "bits", "group_size", "granularity", "symmetric", "dynamic", "zero_point", "narrow"}
    parts += [text for key, value in grid.items() if key not in known and (text := _setting(key, value))]
    return ", ".join(parts)
