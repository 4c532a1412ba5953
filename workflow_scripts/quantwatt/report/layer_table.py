"""The layers' errors and sensitivities: a table of all of each, and what they say of methods and layers."""

import math

import pandas as pd

from quantwatt.artifacts.errors import DataError

COLUMNS = [
    *"model method layer weight_bits activation_bits error_before relative_error error_of".split(),
    *"damping fallback seconds energy_j value_bits".split(),  # value_bits: of a weight, without scales
    # Calibration tokens that the solver saw, the layer's inputs, and errors on tokens held out of the fit.
    *"tokens in_features held_out_error held_out_rounding".split(),
]
NUMBERS = [
    *"weight_bits value_bits activation_bits error_before relative_error damping seconds energy_j".split(),
    *"tokens in_features held_out_error held_out_rounding".split(),
]
# What an error is of: outputs on the calibration inputs, outputs on the inputs from the quantized prefix against those
# of the float model, or weights. They do not compare with one another.
ERRORS = {
    "outputs": "outputs",
    "outputs on float inputs": "outputs, on the float model's inputs",
    "float outputs": "outputs against the float model's",
    "block outputs": "whole block's outputs",
    "weights": "weights",
}
SENSITIVITY_COLUMNS = "model sensitivity layer group candidate metric value ssim psnr sqnr noise".split()
SENSITIVITIES = {  # what a layer alone does to images or to the denoiser's output; the larger the better, but for noise
    "ssim": "SSIM of images",
    "psnr": "PSNR of images (dB)",
    "sqnr": "SQNR of the denoiser's output (dB)",
    "noise": "relative error of the denoiser's output",
}


def layers_table(cells):
    """Columns COLUMNS, one row per layer of each (model, method), once for all samplings."""
    checkpoints = {(cell.model, cell.method): cell.checkpoint for cell in cells}
    rows = [  # bits of a value alone: a library's format says no more than what is stored
        {"model": model, "method": method, "layer": name}
        | {key: layer.get(key) for key in COLUMNS[3:]}
        | {"value_bits": (layer.get("weights") or {}).get("bits")}
        for (model, method), checkpoint in checkpoints.items()
        for name, layer in (checkpoint.get("layers") or {}).items()
    ]
    return pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(NUMBERS, float))  # so that a gap is NaN


def by_error(layers):
    """[(model, a key of ERRORS, rows)], model by model and in the order of ERRORS."""
    models = layers.groupby("model", sort=False)
    return [(m, error, part) for m, rows in models for error in ERRORS if len(part := rows[rows["error_of"] == error])]


def short_names(names):
    """Layer names without the first part where all share it."""
    heads = {name.split(".")[0] for name in names}
    return names.str.split(".", n=1).str[-1] if len(heads) == 1 else names


def error_summary(layers, worst=2):
    """One mapping per model and method, best median first within each kind of error.

    Returns:
        list of {"model", "method", "error_of", "layers", "before", "after": medians, "worst": [(layer, error)]}.
    """
    summaries = []
    for model, error, rows in by_error(layers[layers["relative_error"].notna()]):
        names = short_names(rows["layer"])
        medians = rows.groupby("method", sort=False)["relative_error"].median().sort_values(kind="stable")
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


def solving_summary(layers):
    """What solving took of each model and method; a sum with a gap is NaN.

    Returns:
        {(model, method): {"layers", "seconds", "energy_j", "fallbacks": {rung: layers}, "few_tokens": layers that saw
        fewer calibration tokens than they have inputs}}.
    """
    return {
        key: {
            "layers": len(rows),
            "seconds": rows["seconds"].sum(min_count=len(rows)),
            "energy_j": rows["energy_j"].sum(min_count=len(rows)),
            "fallbacks": rows["fallback"].value_counts().to_dict(),
            "few_tokens": int((rows["tokens"] < rows["in_features"]).sum()),
        }
        for key, rows in layers.groupby(["model", "method"], sort=False)
    }


def sensitivity_table(cells, tried):
    """Columns SENSITIVITY_COLUMNS, one row per layer and candidate, for each objective that a mixed method chooses by.

    `metric` is what the objective is for that layer.

    Args:
        cells: list of cells.Cell.
        tried: [(model, sensitivity, its table, {layer: "content" or "quality", or nothing where a family has no such
            groups})].
    Raises:
        DataError: no method chooses by a sensitivity.
    """
    objectives, tables = _objectives(cells), [pd.DataFrame(columns=SENSITIVITY_COLUMNS)]
    for model, sensitivity, table, groups in tried:
        if (model, sensitivity) not in objectives:
            raise DataError(f"{model}: no mixed method among the cells chooses by the sensitivity {sensitivity!r}.")
        for objective in objectives[model, sensitivity]:
            apart = isinstance(objective, dict)
            group = table["layer"].map(groups) if apart else None
            metric = group.map(objective) if apart else pd.Series(objective, table.index)
            value = [row[name] for name, (_, row) in zip(metric, table.iterrows(), strict=True)]
            part = table.assign(model=model, sensitivity=sensitivity, group=group, metric=metric, value=value)
            tables.append(part[SENSITIVITY_COLUMNS])
    return pd.concat([part for part in tables if len(part)] or tables, ignore_index=True)


def _objectives(cells):
    """{(model, sensitivity): [metric, or {group: metric} where the groups are apart]}, each objective once."""
    objectives = {}
    for cell in cells:
        allocation = (cell.checkpoint.get("settings") or {}).get("allocation") or {}
        for program in allocation.get("programs", []):
            known = objectives.setdefault((cell.model, allocation["sensitivity"]), [])
            if program["objective"] not in known:
                known.append(program["objective"])
    return objectives


def by_group(sensitivity):
    """[(model, sensitivity, group or None, metric, rows)] of layers that one metric compares, in the table's order.

    Without a candidate that scores the same whatever the layer: it leaves layers in 16 bit.
    """
    columns = [sensitivity[key] for key in ("model", "sensitivity", "group", "metric")]
    keys = [tuple(None if pd.isna(part) else part for part in key) for key in zip(*columns, strict=True)]
    keys = pd.Series(keys, sensitivity.index, dtype=object)
    return [(*key, _differing(sensitivity[keys == key])) for key in dict.fromkeys(keys)]


def _differing(rows):
    scores = rows.groupby("candidate")["value"]
    same = scores.transform("nunique").eq(1) & scores.transform("count").eq(scores.transform("size"))
    return rows[~same | (rows["layer"].nunique() == 1)]


def most_sensitive(sensitivity, count=5):
    """The layers that lose most in their worst candidate, the worst first.

    Returns:
        list of {"model", "sensitivity", "group", "metric": in words, "layers": how many were tried, "candidates",
        "rows": [(layer, [value per candidate, or NaN])]}.
    """
    summaries = []
    for model, name, group, metric, rows in by_group(sensitivity):
        candidates = list(dict.fromkeys(rows["candidate"]))
        values = rows.pivot(index="layer", columns="candidate", values="value")[candidates]
        loss = (rows["value"] if metric == "noise" else -rows["value"]).fillna(math.inf)  # what broke is not finite
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
