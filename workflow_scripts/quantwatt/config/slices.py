"""The parts of the configuration that each rule reads, and the plugins that it loads, as in docs/reruns.md.

Each slice is one parameter of the rule, a canonical JSON string. Keys outside of a rule's slices, and modules of
plugins that the rule does not load, may change without rerunning it.
"""

from dataclasses import dataclass
from typing import Any

from quantwatt.artifacts.manifest import canonical_json
from quantwatt.config.methods import COMPONENTS, DRAWING


@dataclass(frozen=True)
class Slice:
    """The keys of one entry that a parameter holds.

    entry: the kind of entry that the job's wildcards name, see `quantwatt.config.plan.Plan.entry`.
    keys: the keys in the slice, "solver.name" for one key of a nested entry; empty: all keys.
    without: keys that are left out.
    watched: whether a changed value reruns the rule.
    """

    entry: str
    keys: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    watched: bool = True

    def of(self, entry: dict[str, Any]) -> str:
        """The slice of a complete entry, a canonical JSON string: equal for equal settings.

        Raises:
            KeyError: the entry lacks one of `keys`.
        """
        if self.keys:
            entry = {key.partition(".")[0]: _held(entry, *key.split(".")) for key in self.keys}
        if self.without:
            entry = {key: value for key, value in entry.items() if key not in self.without}
        return canonical_json(entry)


def _held(entry, key, *nested):
    """The value of a key; for a nested key a mapping with only this key, or None if the outer value is None."""
    value = entry[key]
    return {name: value[name] for name in nested} if nested and value is not None else value


def whole(entry: str) -> Slice:
    """A slice with all keys."""
    return Slice(entry)


def only(entry: str, *keys: str) -> Slice:
    """A slice with only these keys."""
    return Slice(entry, keys=keys)


def but(entry: str, *keys: str) -> Slice:
    """A slice with all keys except these."""
    return Slice(entry, without=keys)


# Keys of a method without its solver's settings.
PARTS = ("weights", "activations", "transforms", "allocation")
FORMATS = (*PARTS, "schedule")
# A job writes its time and energy into its manifest; a changed meter or wattage must not rerun it.
METERING_KEYS = ("meter", "gpus", "interval_ms", "idle_w", "full_w")  # the keys of `measuring` that a meter reads
METERING = Slice("measuring", METERING_KEYS, watched=False)
TRYING = but("sensitivity", "costs")  # how layers are tried, without how their costs are measured

READS = {  # {rule: {parameter: slice}}; a rule that is missing here reads no configuration
    "fetch": {"sha256": Slice("data_sha256", watched=False)},  # what is there already is used
    "fetch_weights": {"settings": whole("extractor")},
    "model": {"settings": whole("model")},
    "calibrate": {"settings": whole("calibration"), "metering": METERING},
    "sensitivity_job": {"sensitivity": TRYING},
    "sensitivity": {"sensitivity": TRYING},
    "layer_costs": {  # costs depend neither on the objectives nor on the number of images and jobs
        "sensitivity": but("sensitivity", "jobs", "images", "batch_size", "objectives", "ranges"),
        "measuring": only("measuring", "images_per_batch", "warmup_s", *METERING_KEYS),
    },
    "candidates": {"method": only("method", *FORMATS)},
    "trials": {  # the keys of the sensitivity that determine how images are generated
        "method": only("method", *FORMATS),
        "sensitivity": but("sensitivity", "candidates", "exclude", "jobs", "costs", "objectives"),
    },
    "allocate": {"method": only("method", *FORMATS, "solver.name")},
    "solve_layers": {"solver": whole("solver")},  # the method's other keys are in its allocation file
    "quantize": {"method": but("method", *DRAWING, COMPONENTS), "metering": METERING},
    "quantize_apart": {"method": but("method", *DRAWING, COMPONENTS), "metering": METERING},
    "calibrate_component": {"settings": whole("calibration"), "metering": METERING},
    "allocate_component": {"method": only("component", *PARTS, "solver.name")},
    "quantize_component": {"method": whole("component"), "metering": METERING},
    "share_weights": {"method": whole("method")},
    "fetch_checkpoint": {"settings": whole("checkpoint")},
    "import_checkpoint": {"method": whole("method")},
    "generate": {"sampling": whole("sampling")},
    "generate_part": {"sampling": but("sampling", "images")},  # full parts are kept when a set grows
    "predict": {"sampling": whole("sampling")},
    "measure": {"sampling": but("sampling", "images", "trajectory"), "measuring": whole("measuring")},
    "reference": {"settings": whole("reference")},
    "score": {"settings": whole("metric")},
    "tables": {"grid": whole("grid with settings")},  # cells are checked against the settings
    "recommend": {"limits": whole("limits")},
    "gate": {"policy": whole("policy")},
    "figure": {"grid": whole("grid")},
    "report": {"grid": whole("grid"), "protocol": whole("protocol")},
    "study": {"grid": whole("grid")},
}

_QUANTIZED = ("caches", "families", "formats", "kernels", "loaders")  # plugins for running a quantized model
PLUGINS = {  # {rule: kinds of the plugins that its script loads by name}; a rule that is missing here loads none
    "fetch_weights": ("extractors",),
    "model": ("families",),
    "calibrate": ("families",),
    "sensitivity_job": ("families", "formats"),
    "layer_costs": (*_QUANTIZED, "meters"),
    "trials": ("families", "formats"),
    "allocate": ("allocations",),
    "export_layers": ("families",),
    "solve_layers": ("formats", "transforms", "solvers"),
    "quantize": ("families", "formats", "transforms", "solvers"),
    "quantize_apart": ("families", "formats", "transforms", "solvers"),
    "fetch_checkpoint": ("loaders",),
    "import_checkpoint": ("families", "formats", "loaders"),
    "calibrate_component": ("families",),
    "allocate_component": ("allocations",),
    "quantize_component": ("families", "formats", "transforms", "solvers"),
    "generate": _QUANTIZED,
    "generate_part": _QUANTIZED,
    "predict": _QUANTIZED,
    "measure": (*_QUANTIZED, "meters"),
    "features": ("extractors",),
    "reference_features": ("extractors",),
    "score": ("metrics",),
    "figure": ("figures",),
    "study": ("studies",),
}

SHOWING_METRICS = (
    "tables",
    "recommend",
    "gate",
    "compare",
    "figure",
    "report",
)  # rules whose scripts read the display settings of all metric schemas

_SCRIPTS = {  # {rule: script}, for rules that share the script of another rule
    "generate_part": "generate",
    "quantize_apart": "quantize",
    "calibrate_component": "calibrate",
    "allocate_component": "allocate",
    "quantize_component": "quantize",
    "reference_features": "features",
}


def script(rule: str) -> str:
    """The file in workflow_scripts/ that a rule runs; usually the rule's name with .py."""
    return f"{_SCRIPTS.get(rule, rule)}.py"


def unwatched(rule: str) -> list[str]:
    """Parameters of a rule whose changes do not rerun it."""
    return [parameter for parameter, part in READS.get(rule, {}).items() if not part.watched]


def run(rule: str, *arguments: str, python: str = "python") -> str:
    """The shell command of a rule: its script with arguments; stdout and stderr go into the rule's log."""
    return " ".join([python, f"workflow_scripts/{script(rule)}", *arguments, "> {log} 2>&1"])
