"""What each rule reads of a configuration and which plugins it loads: two tables, and README's table of reruns in them.

A rule has each of its slices as one parameter, a canonical JSON string. Keys that are not in a slice may change without
rerunning the rule, and so may modules of plugins that it does not load.
"""

from dataclasses import dataclass

from quantwatt.artifacts.manifest import canonical_json


@dataclass(frozen=True)
class Slice:
    """The keys of one entry that a parameter holds.

    entry: what the wildcards of a job name, see `quantwatt.config.plan.Plan.entry`.
    keys: those that it holds, "solver.name" for one key of a nested entry; empty: all.
    without: all but these.
    watched: whether another value reruns the rule.
    """

    entry: str
    keys: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    watched: bool = True

    def of(self, entry: dict) -> str:
        """The slice of a complete entry, a canonical JSON string: equal for equal settings.

        Raises:
            KeyError: it has no such key.
        """
        if self.keys:
            entry = {key.partition(".")[0]: _held(entry, *key.split(".")) for key in self.keys}
        if self.without:
            entry = {key: value for key, value in entry.items() if key not in self.without}
        return canonical_json(entry)


def _held(entry, key, *nested):
    """The value of a key, of a nested one as a mapping of that one alone; None where the outer one is."""
    value = entry[key]
    return {name: value[name] for name in nested} if nested and value is not None else value


def whole(entry: str) -> Slice:
    """All keys."""
    return Slice(entry)


def only(entry: str, *keys: str) -> Slice:
    """These keys alone."""
    return Slice(entry, keys=keys)


def but(entry: str, *keys: str) -> Slice:
    """All but these keys."""
    return Slice(entry, without=keys)


FORMATS = ("weights", "activations", "transforms", "allocation")  # of a method: all but how its solver computes
# Time and energy of a job are written into its manifest: another meter or wattage shall not make it anew.
METERING = Slice("measuring", watched=False)
TRYING = but("sensitivity", "costs")  # how layers are tried, not how their costs are measured

READS = {  # {rule: {parameter: the slice}}; a rule that is not here reads no configuration
    "fetch_weights": {"settings": whole("extractor")},
    "model": {"settings": whole("model")},
    "calibrate": {"settings": whole("calibration"), "metering": METERING},
    "sensitivity_job": {"sensitivity": TRYING},
    "sensitivity": {"sensitivity": TRYING},
    "layer_costs": {  # not what is scored, nor on how many images and in how many jobs
        "sensitivity": but("sensitivity", "jobs", "images", "batch_size", "objectives"),
        "measuring": whole("measuring"),
    },
    "candidates": {"method": only("method", *FORMATS)},
    "trials": {  # of the sensitivity how images are drawn
        "method": only("method", *FORMATS),
        "sensitivity": but("sensitivity", "candidates", "exclude", "jobs", "costs", "objectives"),
    },
    "allocate": {"method": only("method", *FORMATS, "solver.name")},
    "solve_layers": {"solver": whole("solver")},  # the method's other entries are in its allocation
    "quantize": {"method": whole("method"), "metering": METERING},
    "generate": {"sampling": whole("sampling")},
    "generate_part": {"sampling": but("sampling", "images")},  # a set that grows keeps its full parts
    "predict": {"sampling": whole("sampling")},
    "measure": {"sampling": but("sampling", "images"), "measuring": whole("measuring")},
    "reference": {"settings": whole("reference")},
    "score": {"settings": whole("metric")},
    "tables": {"grid": whole("grid with settings")},  # which the cells are held against
    "figure": {"grid": whole("grid")},
    "report": {"grid": whole("grid")},
    "study": {"grid": whole("grid")},
}

_QUANTIZED = ("families", "formats", "kernels")  # what computes a quantized model
PLUGINS = {  # {rule: folders of the plugins that its script loads by name}; a rule that is not here loads none
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

SHOWING_METRICS = ("tables", "figure", "report")  # rules whose scripts read from all metrics' schemas how to show them

_SCRIPTS = {  # of rules that share another one's
    "generate_part": "generate",
    "reference_features": "features",
}


def script(rule: str) -> str:
    """The file in workflow_scripts/ that a rule runs, of its name."""
    return f"{_SCRIPTS.get(rule, rule)}.py"


def unwatched(rule: str) -> list[str]:
    """Parameters of a rule that do not rerun it."""
    return [parameter for parameter, own in READS.get(rule, {}).items() if not own.watched]


def run(rule: str, *arguments: str, python: str = "python") -> str:
    """The shell command of a rule: its script with arguments, and all that this says into the rule's log."""
    return " ".join([python, f"workflow_scripts/{script(rule)}", *arguments, "> {log} 2>&1"])
