"""Estimate an experiment's number of jobs before its graph is built: Snakemake is silent while it plans millions."""

from collections.abc import Mapping
from typing import Any

from quantwatt.artifacts import image_parts
from quantwatt.config.schemas import ConfigurationError

MOST_CELLS = 100_000  # largest number of cells (model, method, sampling); each cell takes several jobs


def check_cells(experiment: Mapping[str, Any], file: str) -> None:
    """Refuse a grid with too many cells to list.

    Raises:
        ConfigurationError: there are more than MOST_CELLS; names the number.
    """
    counts = [len(experiment[kind]) for kind in ("models", "methods", "samplings")]
    cells = counts[0] * counts[1] * counts[2]
    if cells > MOST_CELLS:
        raise ConfigurationError(
            f"{file}: {counts[0]:,} models x {counts[1]:,} methods x {counts[2]:,} samplings are {cells:,} cells, and "
            f"no more than {MOST_CELLS:,} can be planned; divide them among several experiments."
        )


def check_jobs(experiment: Mapping[str, Any], config: Mapping[str, Any], file: str) -> None:
    """Refuse a grid of more jobs than `max_jobs`.

    Args:
        experiment, config: complete.
        file: the experiment's, for messages.
    Raises:
        ConfigurationError: there are more; names their number and the entry with most of them.
    """
    numbers = jobs(experiment, config["images_per_job"])
    total, limit = sum(numbers.values()), config["max_jobs"]
    if total <= limit:
        return
    where = max(numbers, key=numbers.__getitem__)
    kind, _, name = where.partition(".")
    largest, way_out = where, "use fewer methods or samplings"
    if kind == "sensitivities":
        way_out = "lower its 'jobs'"
    elif kind == "samplings" and experiment["kind"] == "image":
        images, part = experiment[kind][name]["images"], config["images_per_job"]
        largest = f"{where} ({images:,} images in parts of {part:,}, for each model and method)"
        way_out = "lower 'images', raise images_per_job"
    raise ConfigurationError(
        f"{file}: this would be {total:,} jobs, {numbers[where]:,} of them for {largest}; no more than config.yaml's "
        f"max_jobs, {limit:,}, are planned: {way_out}, or raise max_jobs."
    )


def jobs(experiment: Mapping[str, Any], images_per_job: int) -> dict[str, int]:
    """Estimate the number of jobs of a complete run: {entry: number}."""
    models, methods = len(experiment["models"]), len(experiment["methods"])
    numbers = {"methods": 2 * models * methods + 2 * models}  # allocation and checkpoint; fetching and calibrating
    for name, sampling in experiment["samplings"].items():
        parts = image_parts.count(sampling, images_per_job) if experiment["kind"] == "image" else 1
        each = parts + (parts > 1) + 2 + len(experiment["metrics"])  # plus gathering; features, measuring; scores
        numbers[f"samplings.{name}"] = models * methods * each
    for name, sensitivity in experiment["sensitivities"].items():
        numbers[f"sensitivities.{name}"] = models * (sensitivity["jobs"] + 2)
    return numbers
