"""What scoring takes of a machine's memory, told from the JSON files of the features that it reads."""

import json
from pathlib import Path

from quantwatt.registry import schema

LIBRARIES_MB = 1500
COPIES = 4  # of features: as they are, in float64, and drawn again


def of_files(metric, inputs):
    """Megabytes to ask for, from the inputs of a score.

    Args:
        metric: its name.
        inputs: {name: path}; "features", "reference_features" and "baseline_features" are of features.
    Raises:
        FileNotFoundError: one of these is not there yet, by which Snakemake asks again.
    """
    found = {name: json.loads(Path(path).read_text()) for name, path in inputs.items() if name.endswith("features")}
    return score_memory_mb(metric, found.pop("reference_features", None), found.values())


def score_memory_mb(metric, reference, sets):
    """Megabytes to ask for.

    Args:
        metric: its name; one of images or predictions reads them one by one.
        reference: what vouches for the features of the reference images, or None where a metric has none.
        sets: the same of the generated images, and of the baseline's.
    """
    sets, pairs, declared = list(sets), 0, schema(f"metrics/{metric}")
    loaded = sum(_bytes(own) for own in sets)
    if reference and declared["x-compared-with"] == "moments":
        loaded += _bytes(reference, ("-mean.npy", "-covariance.npy"))
    elif reference:
        held, largest = declared.get("x-pairs"), max(own["n_images"] for own in (reference, *sets))
        if not held or largest <= held["most_images"]:  # else subsets alone are read
            loaded += _bytes(reference)
            pairs = held["matrices"] * largest**2 if held else 0
    return LIBRARIES_MB + round((COPIES * loaded + 8 * pairs) / 1e6)


def _bytes(own, end=""):
    return sum(file["bytes"] for name, file in own["files"].items() if name.endswith(end))
