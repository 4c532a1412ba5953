"""The table of the energy study of text models, with its column names.

trials.csv: one row per model, precision (method) and trial; each trial is a fresh process. A run is one batch of
`batch_size` inferences: latencies are per run, throughput and energy per inference. Units: s, W, J, 10^6 or 10^9
bytes. Power is over all samples in valid blocks. A value that was not measured is empty, and `reason` or
`energy_reason` says why. Memory is that of one more process, the same in all trials; it is empty on a CPU, because
torch counts the memory of GPUs only.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from quantwatt.artifacts.manifest import finite, read_json
from quantwatt.report.cells import cell_paths
from quantwatt.report.tables import write_table
from quantwatt.score import predictions

NAMES = ("trials.csv",)
TIMES = ("mean", "std", "min", "max", "median")
POWER = ("mean_power_w", "std_power_w", "min_power_w", "max_power_w", "median_power_w", "num_power_samples")
ENERGY = ("total_energy_j", "energy_per_inference_j", "energy_per_inference_mj", "inferences_per_joule")
MEMORY = {"allocated_gb": "allocated_mb", "peak_allocated_gb": "peak_mb", "reserved_gb": "reserved_mb"}
COLUMNS = (
    *("model", "precision", "sampling", "trial", "batch_size", "device", "status", "reason"),
    *("mean_latency", "std_latency", "throughput", "min_latency", "max_latency", "median_latency"),
    *POWER, *ENERGY,
    *("accuracy", "num_correct", "num_samples_accuracy"),
    *MEMORY,
    *("num_parameters", "model_size_mb", "dtype"),
    *("num_inferences_energy", "perplexity", "meter", "energy_estimated", "energy_reason", "texts"),
)  # fmt: skip


def write(folder: str | Path, results: str | Path, cells: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Write trials.csv.

    Args:
        folder: output folder; results: the experiment's folder; cells: list of {"model", "method", "sampling", "kind"}.
    Returns:
        NAMES.
    """
    rows = [row for cell in cells for row in trials_of(Path(results), cell)]
    write_table(Path(folder) / NAMES[0], pd.DataFrame(rows, columns=COLUMNS))
    return NAMES


def trials_of(results: Path, cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a cell; one row without a trial if the cell was not measured."""
    paths = cell_paths(results, cell, [])
    checkpoint, predicted, measured = (read_json(paths[part]) for part in ("checkpoint", "images", "measurement"))
    common = {
        "model": cell["model"],
        "precision": cell["method"],
        "sampling": cell["sampling"],
        "batch_size": measured["images_per_batch"],
        "device": measured["device"]["kind"],
        "status": measured["status"],
        "reason": measured["reason"],
        **quality(paths["images"], predicted),
        "num_parameters": read_json(results / "models" / cell["model"] / "manifest.json")["parameters"],
        "model_size_mb": checkpoint["size_bytes"] / 1e6 if checkpoint["status"] == "ok" else None,
        "dtype": dtype_of(checkpoint),
        "meter": measured["meter"],
        "energy_estimated": measured["estimated"],
        "energy_reason": measured["energy_reason"],
        "texts": Path(predicted["texts"]).name,
    }
    energy = energy_of_trials(paths["measurement"].parent) if measured["energy_j"] else {}
    trials = [
        {"trial": trial + 1, **latency(process["latency_s"], measured["images_per_batch"]), **energy.get(trial, {})}
        for trial, process in enumerate(measured["processes"])
    ]
    held = memory(measured["memory"]) if trials else {}
    return [common | trial | held for trial in trials or [{}]]


def latency(inference_s: Mapping[str, Any], batch_size: int) -> dict[str, float | None]:
    """Seconds per run and inferences per second, from the summary of one process's seconds per inference."""
    latencies = {f"{key}_latency": inference_s[key] and inference_s[key] * batch_size for key in TIMES}
    return {**latencies, "throughput": 1 / inference_s["mean"]}


def memory(peaks: Mapping[str, Any]) -> dict[str, float]:
    """GPU memory as counted by torch, in 10^9 bytes; {} if it was not recorded."""
    if peaks["reserved_mb"] is None:
        return {}
    return {column: peaks[key] / 1e3 for column, key in MEMORY.items()}


def energy_of_trials(folder: Path) -> dict[int, dict[str, Any]]:
    """{process: energy and power over its valid blocks of the whole}, from blocks.csv and power.csv."""
    blocks = pd.read_csv(folder / "blocks.csv", dtype={"invalid": str})
    valid = (blocks["part"] == "whole") & (blocks["invalid"] == "False")
    blocks = blocks[valid & (blocks["configuration"] == "method")]
    samples = pd.read_csv(folder / "power.csv", dtype={"block": str})
    samples = samples[samples["configuration"] == "method"].dropna(subset=["watts"])
    energy = {}
    for process, process_blocks in blocks.groupby("process"):
        inside = (samples["process"] == process) & samples["block"].isin(process_blocks["block"].astype(str))
        watts = samples.loc[inside, "watts"]
        figures = (watts.mean(), watts.std(), watts.min(), watts.max(), watts.median(), len(watts))
        joules = float((process_blocks["energy_j"] / process_blocks["images"]).mean())
        energy[process] = {
            **dict(zip(POWER, figures, strict=True)),
            "total_energy_j": process_blocks["energy_j"].sum(),
            "energy_per_inference_j": joules,
            "energy_per_inference_mj": 1000 * joules,
            "inferences_per_joule": 1 / joules if joules > 0 else None,
            "num_inferences_energy": process_blocks["images"].sum(),
        }
    return energy


def quality(path: str | Path, predicted: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy and perplexity over all items; {} without predictions, or without labels.

    Args:
        path: the manifest of the predictions; predicted: its content.
    """
    items = predictions.read(path) if predicted["status"] == "ok" else []
    if not items or any(key not in item for item in items for key in predictions.JUDGED):
        return {}
    nll, tokens, correct = (predictions.column(items, key).sum() for key in predictions.JUDGED)
    with np.errstate(over="ignore"):
        perplexity = finite(np.exp(nll / tokens))
    return {"accuracy": correct / tokens, "num_correct": int(correct), "num_samples_accuracy": int(tokens),
            "perplexity": perplexity}  # fmt: skip


def dtype_of(checkpoint: Mapping[str, Any]) -> str | None:
    """The weight format of a quantized model, else the dtype that the model is stored in; None without a checkpoint."""
    if checkpoint["status"] != "ok":
        return None
    if not checkpoint["layers"]:
        return checkpoint["model_settings"]["dtype"]
    weights = next(iter(checkpoint["layers"].values()))["weights"]
    return f"int{weights['bits']}" if weights["format"] == "integer" else weights["format"]
