"""The two tables of the sd35-large-energy study, with its column names.

intermediate_power_readings.csv: every power reading inside a run, by method, prompt and run.
quantization_results_with_energy.csv: one row per method and prompt. Time and power are means over the prompt's runs in
valid blocks, the energy is their total; all are empty if the method was not measured. A prompt without such runs (for
example without a meter) gets the mean time of all runs, which is the same for all prompts.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from quantwatt.artifacts import layout
from quantwatt.artifacts.manifest import read_json
from quantwatt.report.tables import write_table

NAMES = ("intermediate_power_readings.csv", "quantization_results_with_energy.csv")
FILES = ("images", "measurement", "power", "blocks", "runs")  # the files read for each cell
READINGS = ["Quantization Type", "Prompt Index", "Run Number", "Power (W)"]
RESULTS = [
    *("Quantization Type", "Prompt Index", "Average Memory (MB)", "Average Time (s)", "Average Power (W)"),
    *("Total Energy (J)", "Image File Names"),
]


def write(folder: str | Path, results: str | Path, cells: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Write both files.

    Args:
        folder: output folder; results: the experiment's folder; cells: list of {"model", "method", "sampling"}.
    Returns:
        NAMES.
    """
    readings, rows = [], []
    for cell in cells:
        files = {file: layout.path(results, file, cell) for file in FILES}
        images, record = read_json(files["images"]), read_json(files["measurement"])
        runs, n_prompts = runs_of(files["runs"], files["blocks"])
        latency_s = record["latency_s"] and record["latency_s"]["mean"] * record["images_per_batch"]  # per run
        names = [image["file"] for image in images["images"]]
        readings.append(power_in(runs, files["power"]).assign(method=cell["method"]))
        for prompt in range(n_prompts or len(names)):
            prompt_runs = runs[runs["prompt"] == prompt]
            seconds, joules = prompt_runs["seconds"], prompt_runs["energy_j"]
            watts = joules.sum() / seconds[joules.notna()].sum() if joules.notna().any() else None
            rows.append(
                {
                    "Quantization Type": cell["method"],
                    "Prompt Index": prompt,
                    "Average Memory (MB)": (record["memory_mb"] or {}).get("value"),
                    "Average Time (s)": seconds.mean() if len(prompt_runs) else latency_s,
                    "Average Power (W)": watts,
                    "Total Energy (J)": joules.sum(min_count=1),
                    "Image File Names": names[prompt] if prompt < len(names) else None,
                }
            )
    table = pd.concat(readings).rename(
        columns={"method": READINGS[0], "prompt": READINGS[1], "number": READINGS[2], "watts": READINGS[3]}
    )
    for name, content in zip(NAMES, (table[READINGS], pd.DataFrame(rows, columns=RESULTS)), strict=True):
        write_table(Path(folder) / name, content)
    return NAMES


def runs_of(path: str | Path, blocks: str | Path) -> tuple[pd.DataFrame, int]:
    """The method's runs in valid blocks of the whole (phases have no runs), and the number of prompts.

    Args:
        path, blocks: runs.csv, and blocks.csv, which marks the invalid blocks.
    Returns:
        (table with the columns of runs.csv and `number`, counted from 1 within each prompt; int, 0 without any run).
    """
    runs, where = pd.read_csv(path), ["configuration", "process", "block"]
    runs = runs[runs["configuration"] == "method"]
    n_prompts = int(runs["prompt"].max()) + 1 if len(runs) else 0
    judged = pd.read_csv(blocks, dtype={"invalid": str})
    runs = runs.merge(judged.loc[judged["invalid"] == "False", where], on=where)
    runs["number"] = runs.groupby("prompt").cumcount() + 1
    return runs, n_prompts


def power_in(runs: pd.DataFrame, path: str | Path) -> pd.DataFrame:
    """Power readings inside the runs: columns prompt, number, watts.

    Args:
        runs: from `runs_of`, not overlapping; path: power.csv, on the same clock.
    """
    samples = pd.read_csv(path, dtype={"block": str})
    samples = samples[samples["configuration"] == "method"].dropna(subset=["watts"])
    runs = runs.sort_values("t_s")
    index = np.searchsorted(runs["t_s"].to_numpy(), samples["t_s"].to_numpy(), side="right") - 1
    inside = index >= 0
    stops = (runs["t_s"] + runs["seconds"]).to_numpy()
    inside[inside] = samples["t_s"].to_numpy()[inside] < stops[index[inside]]
    run_of_sample = runs.iloc[index[inside]][["prompt", "number"]].reset_index(drop=True)
    return run_of_sample.assign(watts=samples["watts"].to_numpy()[inside])
