"""What the page's script draws and compares, as JSON: figures of every method with their intervals."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from quantwatt.report import drawing, tables
from quantwatt.report.figures import family
from quantwatt.report.layer_table import ERRORS, by_error
from quantwatt.report.page.numbers import missing, rounded

COSTS = {  # {column of the summary: title, of which {unit} is "image" or "inference"}
    "energy_ratio": "energy, ratio to {baseline}",
    "latency_ratio": "time, ratio to {baseline}",
    "energy_j": "energy per {unit} (J)",
    "latency_s": "time per {unit} (s)",
    "size_mb": "weights (MB)",
    "memory_mb": "peak memory (MB)",
}
VERDICTS = {"energy_ratio": "verdict", "latency_ratio": "latency_verdict"}


def chart_groups(
    summary: pd.DataFrame, answers: Sequence[Mapping[str, Any]], pairs: pd.DataFrame | None = None
) -> list[dict[str, Any]]:
    r"""One mapping per model, sampling and device.

    Args:
        answers: as of `answer.answers`, which say what is taken.
        pairs: as of `method_pairs.pairs_table`, or None.
    Returns:
        list of {"title", "baseline", "unit", "estimated": whether energy is, "costs": [{"key", "title"}],
        "metrics": [{"key", "title", "unit", "higher"}], "controls": {key of a cost: [low, high]}, "methods":
        [{"name", "solver", "bits", "note", "real": whether it was measured, "taken", "base", "values": {key:
        [value, low, high]}, "changes": {key of a metric: the same of its difference from the baseline's},
        "verdicts": {key: word}}], "pairs": {"METHOD\nOTHER": {key: [[value, low, high], word]}}}; a pair's
        value is the difference of a metric, or a ratio. Only keys with values are listed; a metric of each image has
        no value for the baseline.
    """
    found = []
    groups = {key: one["group"] for one in answers if one["group"] for key in one["rows"].index}
    for title, rows in tables.groups(tables.first_seeds(summary)):
        group = groups.get(rows.index[0])
        base = rows[rows["baseline"].astype(bool)]
        baseline = str(base["method"].iloc[0]) if len(base) else ""
        unit = str(rows["unit"].iloc[0])
        metrics = [metric for metric in tables.METRICS.values() if rows[metric.column].notna().any()]
        costs = [key for key in COSTS if rows[key].notna().any()]
        keys = [*costs, *(metric.column for metric in metrics)]
        estimated = any(not missing(told) and bool(told) for told in rows["energy_estimated"])
        taken = {method["method"]: method["taken"] for method in group["methods"]} if group else {}
        found.append(
            {
                "title": title,
                "baseline": baseline,
                "unit": unit,
                "estimated": estimated,
                "costs": [
                    {
                        "key": key,
                        "title": COSTS[key].format(unit=unit, baseline=baseline)
                        + (", estimated" if estimated and key.startswith("energy") else ""),
                    }
                    for key in costs
                ],
                "metrics": [
                    {"key": m.column, "title": m.title, "unit": m.unit, "higher": m.higher_is_better} for m in metrics
                ],
                "controls": _controls(rows),
                "methods": [_method(row, keys, taken) for row in rows.to_dict("records")],
                "pairs": {} if pairs is None else _pairs(pairs, rows.iloc[0], [metric.column for metric in metrics]),
            }
        )
    return found


def _method(row, keys, taken):
    estimated = not missing(row["energy_estimated"]) and bool(row["energy_estimated"])
    note = {"ok": "energy estimated" if estimated else ""}.get(row["status"], row["status"])
    bits = [row[key] for key in ("weight_bits", "activation_bits")]
    told = "" if any(map(missing, bits)) else f"{bits[0]:.4g} / {bits[1]:.4g} bits"
    return {
        "name": str(row["method"]),
        "solver": "unquantized" if row["baseline"] else _text(family(row)) or "none",
        "bits": ", ".join(filter(None, [told, drawing.words(row)])),
        "note": note,
        "real": row["status"] == "ok" and row["compute"] != "simulated",
        "taken": taken.get(row["method"]),
        "base": bool(row["baseline"]),
        "values": {key: values for key in keys if (values := _values(row, key))},
        "changes": {
            key: values for key in keys if f"{key}_change" in row and (values := _values(row, f"{key}_change"))
        },
        "verdicts": {key: row[name] for key, name in VERDICTS.items() if isinstance(row[name], str)}
        | {m.column: told for m in tables.METRICS.values() if not m.paired and (told := _change_told(row, m))},
    }


def _change_told(row, metric):
    """The verdict on a metric's change from the baseline, by its interval; None without one."""
    low, high = (row.get(f"{metric.column}_change{end}") for end in ("_low", "_high"))
    if missing(low) or missing(high):
        return None
    if low <= 0 <= high:
        return tables.UNDECIDED
    return tables.BETTER if (low > 0) == metric.higher_is_better else tables.WORSE


def _values(row, key):
    if missing(row[key]):
        return None
    return [rounded(row.get(f"{key}{end}")) for end in ("", "_low", "_high")]


def _pairs(pairs, first, metrics):
    """The pairs of the first row's model and sampling; ratios only of pairs that were measured on one device."""
    columns = {column: (f"{column}_difference", f"{column}_verdict") for column in metrics}
    columns |= {key: (key, f"{key.removesuffix('_ratio')}_verdict") for key in VERDICTS}
    chosen = pairs[(pairs["model"] == first["model"]) & (pairs["sampling"] == first["sampling"])]
    return {
        f"{row['method']}\n{row['other']}": {
            key: [values, _text(row[verdict])]
            for key, (column, verdict) in columns.items()
            if column in row and (values := _values(row, column))
        }
        for row in chosen.to_dict("records")
    }


def _controls(rows):
    found = {}
    for key in VERDICTS:
        name = key.replace("_ratio", "_control")
        known = rows[rows[f"{name}_low"].notna()]
        if len(known):
            found[key] = [rounded(known.iloc[0][f"{name}{end}"]) for end in ("_low", "_high")]
    return found


def layer_groups(layers: pd.DataFrame) -> list[dict[str, Any]]:
    """The errors and bits of every layer, one mapping per model and kind of error, which do not compare.

    Returns:
        list of {"title", "layers": names in the model's order, "methods": [{"name", "layers": numbers of its layers,
        "after", "before": relative errors by the method and rounded to nearest, "bits"}]}.
    """
    found, order = [], {}
    for model, rows in layers.groupby("model", sort=False):
        order[model] = {layer: place for place, layer in enumerate(dict.fromkeys(rows["layer"]))}
    for model, error, rows in by_error(layers[layers["relative_error"].notna()]):
        names = list(order[model])
        methods = [
            {
                "name": str(method),
                "layers": [order[model][layer] for layer in own["layer"]],
                **{
                    key: [rounded(value) for value in own[column]]
                    for key, column in {
                        "after": "relative_error",
                        "before": "error_before",
                        "bits": "weight_bits",
                    }.items()
                },
            }
            for method, own in rows.groupby("method", sort=False)
        ]
        found.append({"title": f"{model}: {ERRORS[error]}", "layers": names, "methods": methods})
    return found


def _text(value):
    return None if missing(value) else str(value)


def as_script(content: Any) -> str:
    """JSON that can stand in a <script> element: no text in it can end the element or start another."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
