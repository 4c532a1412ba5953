"""The paths of all files that a run of an experiment writes, defined only here.

Rules use the patterns with Snakemake's wildcards in them; scripts that read many cells fill in the names.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

FILES = {  # below results/EXPERIMENT/
    "extractor": "extractors/{extractor}.json",
    "model": "models/{model}/manifest.json",
    "calibration": "calibration/{model}/manifest.json",
    "calibration_samples": "calibration/{model}/samples.safetensors",
    "sensitivity_job": "sensitivity/{model}/{sensitivity}/job-{job}.csv",
    "sensitivity": "sensitivity/{model}/{sensitivity}.csv",
    "costs": "costs/{model}/{sensitivity}.csv",
    "candidates": "allocation/{model}/{method}/candidates.json",
    "candidates_table": "allocation/{model}/{method}/candidates.csv",
    "trials": "allocation/{model}/{method}/trials.csv",
    "allocation": "allocation/{model}/{method}.json",
    "exchange": "exchange/{model}/manifest.json",
    "solved": "solved/{backend}/{model}/{method}/manifest.json",
    "checkpoint": "checkpoints/{model}/{method}/manifest.json",
    "shared": "checkpoints/{model}/{method}/shared/manifest.json",  # for methods with a cache or steps of their own
    "source": "sources/{method}.json",  # of checkpoints that others have quantized
    "component": "components/{model}/{component}/{hash}/manifest.json",  # weights of a component beside the denoiser
    "component_allocation": "components/{model}/{component}/{hash}/allocation.json",
    "component_calibration": "components/{model}/{component}/calibration/manifest.json",
    "component_samples": "components/{model}/{component}/calibration/samples.safetensors",
    "images": "images/{model}/{method}/{sampling}/manifest.json",
    "part": "images/{model}/{method}/{sampling}/part-{first}.json",
    "predictions": "predictions/{model}/{method}/{sampling}/manifest.json",
    "measurement": "measurements/{model}/{method}/{sampling}/measurement.json",
    "power": "measurements/{model}/{method}/{sampling}/power.csv",
    "blocks": "measurements/{model}/{method}/{sampling}/blocks.csv",
    "runs": "measurements/{model}/{method}/{sampling}/runs.csv",
    "reference": "reference/manifest.json",
    "reference_features": "features/reference/{extractor}.json",
    "features": "features/{model}/{method}/{sampling}/{extractor}.json",
    "score": "scores/{model}/{method}/{sampling}/{metric}.json",
    "summary": "tables/summary.csv",
    "layers": "tables/layers.csv",
    "sensitivities": "tables/sensitivity.csv",
    "pairs": "tables/pairs.csv",
    "formats": "tables/formats.csv",
    "changes": "tables/changes.csv",
    "components": "tables/components.csv",
    "categories": "tables/categories.csv",
    "adapters": "tables/adapters.csv",
    "recommendation": "tables/recommendation.json",
    "recommendation_table": "tables/recommendation.csv",
    "gate": "tables/gate.json",
    "gate_table": "tables/gate.md",
    "comparison": "tables/comparison.json",
    "comparison_table": "tables/comparison.md",
    "figure": "figures/{figure}.png",
    "figure_svg": "figures/{figure}.svg",
    "figure_narrow": "figures/{figure}-narrow.svg",
    "report": "report.html",
    "study": "study/manifest.json",
}
FIGURES = {  # {figure: keys of FILES that it reads}; a file with wildcards is read for every cell
    "quality_vs_cost": ("summary",),
    "cost_ratios": ("summary",),
    "energy": ("summary",),
    "phases": ("summary", "measurement"),
    "seeds": ("summary",),
    "layer_error": ("summary", "layers"),
    "layer_depth": ("summary", "layers"),
    "power_trace": ("summary", "power"),
    "image_grid": ("summary", "images"),
    "steps": ("summary",),
    "budget": ("summary",),
    "sensitivity": ("summary", "layers", "sensitivities"),
}
OF_IMAGES = ("image_grid", "steps", "budget", "sensitivity")  # figures that need models that generate images
JOBS = {  # {rule: path of its log below logs/ and of its benchmark below benchmarks/, without suffix}
    "fetch": "fetch/{archive}",
    "dataset": "dataset/{file}",
    "fetch_weights": "fetch_weights/{extractor}",
    "model": "model/{model}",
    "calibrate": "calibrate/{model}",
    "sensitivity_job": "sensitivity/{model}/{sensitivity}/job-{job}",
    "sensitivity": "sensitivity/{model}/{sensitivity}",
    "layer_costs": "costs/{model}/{sensitivity}",
    "candidates": "candidates/{model}/{method}",
    "trials": "trials/{model}/{method}",
    "allocate": "allocate/{model}/{method}",
    "export_layers": "export_layers/{model}",
    "solve_layers": "{backend}/{model}/{method}",
    "quantize": "quantize/{model}/{method}",
    "quantize_apart": "quantize_apart/{model}/{method}",
    "calibrate_component": "calibrate/{model}-{component}",
    "allocate_component": "allocate/{model}-{component}/{hash}",
    "quantize_component": "quantize/{model}-{component}/{hash}",
    "share_weights": "share_weights/{model}/{method}",
    "fetch_checkpoint": "fetch_checkpoint/{method}",
    "import_checkpoint": "import_checkpoint/{model}/{method}",
    "generate": "generate/{model}/{method}/{sampling}",
    "generate_part": "generate/{model}/{method}/{sampling}/part-{first}",
    "gather_images": "gather_images/{model}/{method}/{sampling}",
    "predict": "predict/{model}/{method}/{sampling}",
    "measure": "measure/{model}/{method}/{sampling}",
    "reference": "reference",
    "features": "features/{model}/{method}/{sampling}/{extractor}",
    "reference_features": "features/reference/{extractor}",
    "score": "score/{model}/{method}/{sampling}/{metric}",
    "tables": "tables",
    "recommend": "recommend",
    "gate": "gate",
    "compare": "compare",
    "figure": "figure/{figure}",
    "report": "report",
    "study": "study",
}


_NAME = re.compile(r"\{(\w+)\}(?:\.\w+)?")  # a part of a path that is one wildcard, with or without a suffix


class _Wildcards(dict):
    """The known names of a pattern; the other names stay wildcards."""

    def __missing__(self, name):
        return f"{{{name}}}"


def path(results: str | Path, file: str, names: Mapping[str, str] | Iterable[tuple[str, str]] = ()) -> Path:
    """The Path of one file.

    Args:
        results: the experiment's folder, results/EXPERIMENT.
        file: a key of FILES.
        names: {name: value} of all names in the pattern, such as a cell; further names are ignored.
    Raises:
        KeyError: a name of the pattern is missing.
    """
    return Path(results, FILES[file].format_map(dict(names)))


def pattern(results: str | Path, file: str, names: Mapping[str, str] | Iterable[tuple[str, str]] = ()) -> str:
    """The path of one file as a string; names that are missing in `names` stay wildcards."""
    return f"{results}/{FILES[file].format_map(_Wildcards(names))}"


def names_below(folder: str) -> list[str | None]:
    """The wildcard of each part of a path below a folder of FILES; None for a part without a wildcard.

    Args:
        folder: the first part of a pattern, such as "checkpoints".
    Returns:
        list, for the folder's pattern with most wildcards: ["model", "method", None] for checkpoints.
    """
    below = [pattern.split("/")[1:] for pattern in FILES.values() if pattern.startswith(f"{folder}/")]
    named = [[match and match[1] for match in map(_NAME.fullmatch, parts)] for parts in below]
    return max(named, key=lambda names: sum(name is not None for name in names), default=[])


def figures(images: bool) -> list[str]:
    """Names of the figures of an experiment; `images`: whether its models generate images."""
    return [name for name in FIGURES if images or name not in OF_IMAGES]


def tables(results: str | Path, figure: str) -> list[Path]:
    """The Paths of the tables that a figure reads."""
    return [path(results, file) for file in FIGURES[figure] if FILES[file].startswith("tables/")]
