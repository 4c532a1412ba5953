"""What scoring takes of a machine's memory, told from the JSON files of the features that it reads."""

import json
from pathlib import Path

LIBRARIES_MB = 1500
COPIES = 4  # of features: as they are, in float64, and drawn again
KERNELS, MOST = 3, 10_000  # float64 of every pair of images that a kernel distance's interval holds, up to MOST images


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
    sets, pairs = list(sets), 0
    loaded = sum(_bytes(own) for own in sets)
    if reference and metric == "fid":
        loaded += _bytes(reference, "-moments.safetensors")
    elif reference:
        largest = max(own["n_images"] for own in (reference, *sets))
        if largest <= MOST:  # else clean-fid's subsets alone are read
            loaded += _bytes(reference)
            pairs = largest**2
    return LIBRARIES_MB + round((COPIES * loaded + KERNELS * 8 * pairs) / 1e6)


def _bytes(own, end=""):
    return sum(file["bytes"] for name, file in own["files"].items() if name.endswith(end))
