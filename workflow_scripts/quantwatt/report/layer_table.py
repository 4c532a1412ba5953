"""Tables of the layers' errors and sensitivities, and summaries per method and per layer."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from quantwatt.artifacts import layer_variants, step_ranges
from quantwatt.artifacts.errors import DataError
from quantwatt.report.cells import Cell

COLUMNS = [
    *"model method layer weight_bits activation_bits error_before relative_error error_of".split(),
    *"damping fallback seconds energy_j value_bits".split(),  # value_bits: bits of a weight, without scales
    # Calibration tokens that the solver used, the layer's input size, and errors on tokens held out of the fit.
    *"tokens in_features held_out_error held_out_rounding".split(),
    "ranges",  # numbers of the ranges of steps in which the layer has these formats, from 0; empty: all
]
NUMBERS = [
    *"weight_bits value_bits activation_bits error_before relative_error damping seconds energy_j".split(),
    *"tokens in_features held_out_error held_out_rounding".split(),
]
# What an error refers to: outputs on the calibration inputs, outputs on the inputs from the quantized prefix against
# the float model's outputs, or weights. Errors of different kinds are not comparable.
ERRORS = {
    "outputs": "outputs",
    "outputs on float inputs": "outputs, on the float model's inputs",
    "float outputs": "outputs against the float model's",
    "block outputs": "whole block's outputs",
    "weights": "weights",
}
# steps: those of a range, in words, in which alone the layer was quantized; range: its number.
SENSITIVITY_COLUMNS = "model sensitivity layer group candidate metric value ssim psnr sqnr noise range steps".split()
SENSITIVITIES = {  # effect of quantizing one layer, on images or the denoiser's output; less is better for noise only
    "ssim": "SSIM of images",
    "psnr": "PSNR of images (dB)",
    "sqnr": "SQNR of the denoiser's output (dB)",
    "noise": "relative error of the denoiser's output",
}


def layers_table(cells: Iterable[Cell]) -> pd.DataFrame:
    """Table with columns COLUMNS: one row per layer of each (model, method), shared by all samplings.

    A layer with other formats in other steps has a row for each.
    """
    checkpoints = {(cell.model, cell.method): cell.checkpoint for cell in cells}
    rows = [  # value_bits: without scales; a library's format states only the bits that it stores
        {"model": model, "method": method, "layer": name}
        | {key: layer.get(key) for key in COLUMNS[3:]}
        | {"value_bits": (layer.get("weights") or {}).get("bits"), "ranges": ranges}
        for (model, method), checkpoint in checkpoints.items()
        for name, layer, ranges in _variants(checkpoint.get("layers") or {})
    ]
    return pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(NUMBERS, float))  # a missing value is NaN


def _variants(layers):
    """(layer, entry, numbers of the ranges in which it computes as text or None) of every variant of every layer."""
    for name, layer in layers.items():
        for number, variant in enumerate(layer_variants.variants(layer)):
            ranges = layer_variants.ranges_of(layer, number)
            yield name, variant, None if ranges is None else " ".join(map(str, ranges))


def by_error(layers: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """[(model, key of ERRORS, rows)] by model, then in the order of ERRORS."""
    models = layers.groupby("model", sort=False)
    return [
        (str(m), error, part) for m, rows in models for error in ERRORS if len(part := rows[rows["error_of"] == error])
    ]


def short_names(names: pd.Series) -> pd.Series:
    """Layer names without their first part if it is the same in all."""
    heads = {name.split(".")[0] for name in names}
    return names.str.split(".", n=1).str[-1] if len(heads) == 1 else names


def error_summary(layers: pd.DataFrame, worst: int = 2) -> list[dict[str, Any]]:
    """One mapping per model and method; within each kind of error, the lowest median comes first.

    Returns:
        list of {"model", "method", "error_of", "layers", "before", "after": medians, "worst": [(layer, error)]}.
    """
    summaries = []
    for model, error, rows in by_error(layers[layers["relative_error"].notna()]):
        names = short_names(rows["layer"])
        medians = rows.groupby("method", sort=False)["relative_error"].median().sort_values(kind="stable")  # ty: ignore
        for method, after in medians.items():
            method_rows = rows[rows["method"] == method]
            largest = method_rows.nlargest(worst, "relative_error")["relative_error"]
            summaries.append(
                {
                    "model": model,
                    "method": method,
                    "error_of": ERRORS[error],
                    "layers": len(method_rows),
                    "before": method_rows["error_before"].median(),
                    "after": after,
                    "worst": [(names[index], value) for index, value in largest.items()],
                }
            )
    return summaries


def solving_summary(layers: pd.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    """Time and energy of solving, per model and method; a sum with a missing value is NaN.

    Returns:
        {(model, method): {"layers", "seconds", "energy_j", "fallbacks": {fallback: layers}, "few_tokens": layers
        with fewer calibration tokens than inputs}}.
    """
    return {  # ty: ignore[invalid-explicit-return]  (each key is a pair)
        key: {
            "layers": len(rows),
            "seconds": rows["seconds"].sum(min_count=len(rows)),
            "energy_j": rows["energy_j"].sum(min_count=len(rows)),
            "fallbacks": rows["fallback"].value_counts().to_dict(),
            "few_tokens": int((rows["tokens"] < rows["in_features"]).sum()),
        }
        for key, rows in layers.groupby(["model", "method"], sort=False)
    }


def sensitivity_table(
    cells: Iterable[Cell], tried: Iterable[tuple[str, str, pd.DataFrame, Mapping[str, str | None]]]
) -> pd.DataFrame:
    """Table with columns SENSITIVITY_COLUMNS: a row per layer, candidate and objective of a mixed method.

    `metric` is the metric that the objective uses for that layer.

    Args:
        cells: list of cells.Cell.
        tried: [(model, sensitivity, its table, {layer: "content" or "quality"; None where the family has no such
            groups})].
    Raises:
        DataError: no mixed method uses one of the sensitivities.
    """
    cells, tables = list(cells), [pd.DataFrame(columns=SENSITIVITY_COLUMNS)]
    objectives, steps = _objectives(cells), _steps(cells)
    for model, sensitivity, table, groups in tried:
        if (model, sensitivity) not in objectives:
            raise DataError(f"{model}: no mixed method among the cells chooses by the sensitivity {sensitivity!r}.")
        for objective in objectives[model, sensitivity]:
            if isinstance(objective, dict):
                group = table["layer"].map(groups)
                metric = group.map(objective)
            else:
                group, metric = None, pd.Series(objective, table.index)
            value = [row[name] for name, (_, row) in zip(metric, table.iterrows(), strict=True)]
            part = table.assign(model=model, sensitivity=sensitivity, group=group, metric=metric, value=value)
            part["steps"] = part["range"].map(dict(enumerate(steps.get((model, sensitivity), ()))))
            tables.append(part[SENSITIVITY_COLUMNS])
    return pd.concat([part for part in tables if len(part)] or tables, ignore_index=True)


def _objectives(cells):
    """{(model, sensitivity): [metric, or {group: metric} if each group has its own]}, each objective once."""
    objectives = {}
    for cell in cells:
        allocation = (cell.checkpoint.get("settings") or {}).get("allocation") or {}
        for program in allocation.get("programs", []):
            known = objectives.setdefault((cell.model, allocation["sensitivity"]), [])
            if program["objective"] not in known:
                known.append(program["objective"])
    return objectives


def _steps(cells):
    """{(model, sensitivity): the steps of each range in words} of the sensitivities with ranges of steps."""
    named = {}
    for cell in cells:
        settings = cell.checkpoint.get("settings") or {}
        sensitivity = (settings.get("allocation") or {}).get("sensitivity")
        if sensitivity and settings.get("schedule"):
            named[cell.model, sensitivity] = step_ranges.words([entry["steps"] for entry in settings["schedule"]])
    return named


def by_group(sensitivity: pd.DataFrame) -> list[tuple[str, str, str | None, str, pd.DataFrame]]:
    """[(model, sensitivity, group or None, metric, rows)] of layers compared by one metric, in the table's order.

    Where layers were tried in ranges of steps, the sensitivity is named with the steps of each. A candidate whose score
    is the same for every layer is left out: it leaves the layers in 16 bit.
    """
    steps = [None if pd.isna(steps) else f", {steps}" for steps in sensitivity["steps"]]
    named = [name + (steps or "") for name, steps in zip(sensitivity["sensitivity"], steps, strict=True)]
    columns = [sensitivity["model"], named, sensitivity["group"], sensitivity["metric"]]
    keys = [tuple(None if pd.isna(part) else part for part in key) for key in zip(*columns, strict=True)]
    keys = pd.Series(keys, sensitivity.index, dtype=object)
    return [(*key, _differing(sensitivity[keys == key])) for key in dict.fromkeys(keys)]


def _differing(rows):
    scores = rows.groupby("candidate")["value"]
    same = scores.transform("nunique").eq(1) & scores.transform("count").eq(scores.transform("size"))
    return rows[~same | (rows["layer"].nunique() == 1)]


def most_sensitive(sensitivity: pd.DataFrame, count: int = 5) -> list[dict[str, Any]]:
    """The layers with the largest loss in their worst candidate format, the largest loss first.

    Returns:
        list of {"model", "sensitivity", "group", "metric": in words, "layers": number tried, "candidates",
        "rows": [(layer, [value per candidate, or NaN])]}.
    """
    summaries = []
    for model, name, group, metric, rows in by_group(sensitivity):
        candidates = list(dict.fromkeys(rows["candidate"]))
        values = rows.pivot(index="layer", columns="candidate", values="value")[candidates]
        loss = (rows["value"] if metric == "noise" else -rows["value"]).fillna(math.inf)  # a broken model: no value
        worst = loss.groupby(rows["layer"], sort=False).max().sort_values(ascending=False, kind="stable")
        chosen = values.loc[worst.index[:count]]
        summaries.append(
            {
                "model": model,
                "sensitivity": name,
                "group": group,
                "metric": SENSITIVITIES[metric],
                "layers": len(values),
                "candidates": candidates,
                "rows": list(zip(chosen.index, chosen.to_numpy().tolist(), strict=True)),
            }
        )
    return summaries
