"""The layers' errors: a table of all of them, and what it says of each method."""

import pandas as pd

COLUMNS = [
    *"model method layer weight_bits activation_bits error_before relative_error error_of".split(),
    *"damping fallback seconds energy_j".split(),
]
NUMBERS = "weight_bits activation_bits error_before relative_error damping seconds energy_j".split()
# What an error is of: outputs on the calibration inputs, outputs on the inputs from the quantized prefix against those
# of the float model, or weights. They do not compare with one another.
ERRORS = {
    "outputs": "outputs",
    "outputs on float inputs": "outputs, on the float model's inputs",
    "float outputs": "outputs against the float model's",
    "block outputs": "whole block's outputs",
    "weights": "weights",
}


def layers_table(cells):
    """Columns COLUMNS, one row per layer of each (model, method), once for all samplings."""
    checkpoints = {(cell.model, cell.method): cell.checkpoint for cell in cells}
    rows = [
        {"model": model, "method": method, "layer": name} | {key: layer.get(key) for key in COLUMNS[3:]}
        for (model, method), checkpoint in checkpoints.items()
        for name, layer in (checkpoint.get("layers") or {}).items()
    ]
    return pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(NUMBERS, float))  # so that a gap is NaN


def by_error(layers):
    """[(model, a key of ERRORS, rows)], model by model and in the order of ERRORS."""
    models = layers.groupby("model", sort=False)
    return [(m, error, own) for m, rows in models for error in ERRORS if len(own := rows[rows["error_of"] == error])]


def short_names(names):
    """Layer names without the first part where all share it."""
    heads = {name.split(".")[0] for name in names}
    return names.str.split(".", n=1).str[-1] if len(heads) == 1 else names


def error_summary(layers, worst=2):
    """One mapping per model and method, best median first within each kind of error.

    Returns:
        list of {"model", "method", "error_of", "layers", "before", "after": medians, "worst": [(layer, error)]}.
    """
    found = []
    for model, error, rows in by_error(layers[layers["relative_error"].notna()]):
        names = short_names(rows["layer"])
        medians = rows.groupby("method", sort=False)["relative_error"].median().sort_values(kind="stable")
        for method, after in medians.items():
            own = rows[rows["method"] == method]
            largest = own.nlargest(worst, "relative_error")["relative_error"]
            found.append(
                {
                    "model": model,
                    "method": method,
                    "error_of": ERRORS[error],
                    "layers": len(own),
                    "before": own["error_before"].median(),
                    "after": after,
                    "worst": [(names[index], value) for index, value in largest.items()],
                }
            )
    return found


def solving_summary(layers):
    """{(model, method): {"layers", "seconds", "energy_j", "fallbacks": {rung: layers}}}; a sum with a gap is NaN."""
    return {
        key: {
            "layers": len(rows),
            "seconds": rows["seconds"].sum(min_count=len(rows)),
            "energy_j": rows["energy_j"].sum(min_count=len(rows)),
            "fallbacks": rows["fallback"].value_counts().to_dict(),
        }
        for key, rows in layers.groupby(["model", "method"], sort=False)
    }
