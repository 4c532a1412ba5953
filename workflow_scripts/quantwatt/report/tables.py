"""The summary table: one row per cell from the stages' JSON files, with ratios and verdicts against the baseline.

A value that does not exist is an empty field, never 0; the reason is in a column of its own (`*_reason`).

The verdict on a ratio of time or energy (less is better) is the first of these that holds:

TOO_NOISY        its interval is wider than NOISY_FACTOR; the ratio is then left out
EQUAL            its interval lies between 1 - margin and 1 + margin
BETTER, WORSE    its interval excludes 1
UNDECIDED        its interval includes 1

Better and worse are qualified by the A/A control, which is the baseline measured against itself by the same protocol:
", within the control" if the ratio is no farther from 1 than a bound of the control's interval, or if that interval
excludes 1; ", without a control" if there is none.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from quantwatt.artifacts import component_files, csv_files, layer_variants, step_ranges
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import canonical_json
from quantwatt.config import metric_entries
from quantwatt.config.metric_entries import Metric
from quantwatt.report import component_table, drawing
from quantwatt.report.cells import Cell

METRICS = metric_entries.shown()  # the first with values is drawn against cost and compared over seeds
BETTER, WORSE, EQUAL, UNDECIDED, BASELINE = "better", "worse", "equal", "not told apart", "baseline"
WITHIN_CONTROL, UNCONTROLLED = ", within the control", ", without a control"  # qualify BETTER and WORSE
TOO_NOISY = "not measured: the machine was too noisy"
# High over low of an interval from half to twice its value. Few methods halve a cost or double it, so that a wider
# interval tells nothing of what quantizing does.
UNMEASURED = "unmeasured"  # status of a cell that `measuring` leaves out
NOISY_FACTOR = 4
MARGIN = 0.05  # of EQUAL, as config.yaml's default
# Columns that are read as text.
TEXTS = """model method other best best_of_solver before after sampling replicate_of steps_of layer candidate
sensitivity device_id ranges cache""".split()


def _with_bounds(name):
    return [name, f"{name}_low", f"{name}_high"]


def _columns_of(metric):
    """The columns of the summary that one metric has."""
    change = [] if metric.paired else _with_bounds(f"{metric.column}_change")
    return [*_with_bounds(metric.column), f"{metric.column}_reason", *change]


SUMMARY_COLUMNS = [
    *"model method sampling status reason compute weight_bits activation_bits size_mb".split(),
    *(column for metric in METRICS.values() for column in _with_bounds(metric.column)),
    *_with_bounds("latency_s"),
    *_with_bounds("energy_j"),
    *_with_bounds("memory_mb"),
    *"meter energy_estimated device unit n_images solver features".split(),
    *"baseline kernel device_id device_fake latency_p10_s latency_p90_s mean_w idle_w energy_net_j".split(),
    *"n_blocks n_processes memory_source model_mb latency_reason energy_reason memory_reason".split(),
    *(f"{metric.column}_reason" for metric in METRICS.values()),
    *_with_bounds("energy_ratio"),
    "verdict",
    *_with_bounds("latency_ratio"),
    "latency_verdict",
    "ratio_reason",
    *_with_bounds("energy_control"),
    *_with_bounds("latency_control"),
    *"margin n_pairs n_disturbed in_pairs known energy_cpu_package_j energy_dram_j".split(),
    *"tokens_per_s energy_per_token_j".split(),
    *(column for metric in METRICS.values() if not metric.paired for column in _with_bounds(f"{metric.column}_change")),
    *"carbon_g seed replicate_of steps steps_of allocation sensitivity".split(),
    *"quantize_s quantize_energy_j quantize_energy_estimated quantize_energy_reason break_even_images".split(),
    "weight_format",
    *drawing.COLUMNS,
]


def summary_table(
    cells: Sequence[Cell],
    baseline: str,
    samplings: Mapping[str, Mapping[str, Any]] | None = None,
    carbon_g_per_kwh: float | None = None,
    margin: float = MARGIN,
) -> pd.DataFrame:
    """The summary table: one row per cell in the given order, columns SUMMARY_COLUMNS, also of metrics not scored.

    Args:
        cells: list of cells.Cell.
        baseline: name of the unquantized method that ratios and changes refer to.
        samplings: {name: settings}, to detect samplings that differ only by their seed or their number of steps.
        carbon_g_per_kwh: grams of CO2 equivalent per kWh, for the column carbon_g (per image or inference); or None.
        margin: largest difference from 1 of a ratio that is called EQUAL.
    """
    references = {(c.model, c.sampling): c for c in cells if c.method == baseline}
    replicates, sweeps = (_differing_by(key, samplings or {}) for key in ("seed", "steps"))
    compared = component_table.compared(cells)
    rows = [
        _row(cell, references.get((cell.model, cell.sampling)), margin)
        | {"size_mb": _scaled(component_files.size_bytes(cell.checkpoint, compared), 1e-6)}
        | {"replicate_of": replicates.get(cell.sampling), "steps_of": sweeps.get(cell.sampling)}
        for cell in cells
    ]
    table = pd.DataFrame(rows, columns=SUMMARY_COLUMNS)
    if carbon_g_per_kwh is not None:
        table["carbon_g"] = table["energy_j"].astype(float) / 3.6e6 * carbon_g_per_kwh
    return table


def _differing_by(setting, samplings):
    """{sampling: first sampling that equals it in all other settings}; that first sampling is not a key."""
    first, copies = {}, {}
    for name, settings in samplings.items():
        same = canonical_json({key: value for key, value in settings.items() if key != setting})
        if first.setdefault(same, name) != name:
            copies[name] = first[same]
    return copies


def _row(cell, reference, margin):
    measured, checkpoint = cell.measurement, cell.checkpoint
    status, reason = cell.failure
    device = measured.get("device") or {}
    quantized = checkpoint["status"] == "ok"
    row = {
        "model": cell.model,
        "method": cell.method,
        "sampling": cell.sampling,
        "status": status,
        "reason": reason,
        "compute": measured.get("compute") or cell.images.get("compute"),
        "kernel": measured.get("kernel"),
        "weight_bits": _bits(cell, "weight_bits") if quantized else None,
        "activation_bits": _bits(cell, "activation_bits") if quantized else None,
        "solver": _solver(checkpoint),
        "seed": cell.images.get("seed"),
        "steps": cell.images.get("steps"),
        **_allocation(checkpoint),
        "weight_format": _weight_format(checkpoint.get("settings") or {}),
        **drawing.columns(cell),
        "unit": "inference" if "texts" in cell.images else "image",
        "n_images": cell.images.get("n_images", cell.images.get("n_items")),
        "baseline": cell is reference,
        "device": device.get("name"),
        "device_id": device.get("uuid_hash"),
        "device_fake": bool(device.get("fake", False)),
        **_quality(cell),
        **_cost(measured),
        **_changes(cell),
        **_ratios(cell, reference, margin),
    }
    row.update(_quantizing(cell, row))
    return row


def _bits(cell, key):
    """Average bits of a checkpoint; where they depend on the step, over the steps of the cell's drawings."""
    checkpoint, steps = cell.checkpoint, cell.images.get("steps")
    schedule = checkpoint.get("schedule")
    if not schedule or not steps:
        return checkpoint.get(key)
    taken = step_ranges.counts([entry["steps"] for entry in schedule], steps)
    return round(step_ranges.average([entry[key] for entry in schedule], taken), 4)


def _solver(checkpoint):
    """The solver, or the library if it quantized all layers itself."""
    libraries = {layer.get("library") for _, layer in layer_variants.flat(checkpoint.get("layers") or {})}
    return libraries.pop() if len(libraries) == 1 and None not in libraries else checkpoint.get("solver")


def _allocation(checkpoint):
    """The allocation, "uniform" or "mixed", and the sensitivity of a mixed one; None where not quantized.

    A method whose formats depend on the step is mixed, too, and one that quantizes more than the denoiser.
    """
    settings = checkpoint.get("settings") or {}
    chosen = settings.get("allocation") if settings.get("solver") else None
    several = settings.get("components") or (chosen and settings.get("schedule"))
    name = "mixed" if several else chosen and chosen["name"]
    return {"allocation": name, "sensitivity": chosen and chosen.get("sensitivity")}


def _weight_format(settings):
    """The weights' format: int4, nf4, torchao; None where not quantized, or where layers or steps have their own."""
    weights, allocation = settings.get("weights"), settings.get("allocation") or {}
    if not weights or allocation.get("name") == "mixed" or settings.get("schedule") or settings.get("components"):
        return None
    return f"int{weights['bits']}" if weights["format"] == "integer" else weights["format"]


def _quality(cell):
    distances = [score for metric, score in cell.scores.items() if metric_of(metric).published_features]
    row = {"features": next((score["features"] for score in distances if score.get("features")), None)}
    for metric, score in cell.scores.items():
        column = metric_of(metric).column
        row |= _interval(column, score.get("value"), score.get("low"), score.get("high"))
        if score.get("value") is None or score.get("low") is None:
            row[f"{column}_reason"] = score.get("reason") or score["status"]
    return row


def metric_of(name: str) -> Metric:
    """The Metric with this name.

    Raises:
        DataError: the metric is unknown.
    """
    try:
        return METRICS[name]
    except KeyError:
        raise DataError(f"metric {name!r} has no column; one of {', '.join(METRICS)}.") from None


def _cost(measured):
    latency, energy, memory = (_unless_noisy(measured.get(key)) for key in ("latency_s", "energy_j", "memory_mb"))
    counted, timed = measured.get("pairs") or {}, bool(measured.get("latency_s") or measured.get("energy_j"))
    why = measured.get("reason") or measured["status"]
    row = {
        **_interval("latency_s", latency.get("median"), latency.get("low"), latency.get("high")),
        **_interval("energy_j", energy.get("value"), energy.get("low"), energy.get("high")),
        **_interval("memory_mb", memory.get("value"), memory.get("low"), memory.get("high")),
        "latency_p10_s": latency.get("p10"),
        "latency_p90_s": latency.get("p90"),
        "mean_w": energy.get("mean_w"),
        "idle_w": energy.get("idle_w"),
        "energy_net_j": energy.get("net"),
        "memory_source": memory.get("source"),
        "model_mb": memory.get("model"),
        "meter": measured.get("meter"),
        "n_blocks": measured.get("n_blocks") if timed else None,
        "n_processes": measured.get("n_processes") if timed else None,
        "n_pairs": counted.get("n"),
        "n_disturbed": counted.get("disturbed"),
        "in_pairs": measured.get("in_pairs"),
        "known": measured.get("known"),
    }
    secondary, decode = measured.get("secondary_energy_j") or {}, (measured.get("phases") or {}).get("decode") or {}
    if decode.get("tokens"):  # only text models have it
        row["tokens_per_s"] = decode["tokens"] / decode["latency_s"]
        row["energy_per_token_j"] = _scaled(decode["energy_j"], 1 / decode["tokens"])
    row |= {"energy_cpu_package_j": secondary.get("cpu package"), "energy_dram_j": secondary.get("dram")}
    if row["energy_j"] is None:
        row["energy_reason"] = measured.get("energy_reason") or (TOO_NOISY if measured.get("energy_j") else why)
    if measured.get("energy_j"):  # its ratio may be shown where it is too noisy itself
        row["energy_estimated"] = bool(measured.get("estimated"))
    if row["latency_s"] is None:
        row["latency_reason"] = TOO_NOISY if measured.get("latency_s") else why
    if row["memory_mb"] is None:
        row["memory_reason"] = why
    return row


def _unless_noisy(figure):
    """A figure of a measurement; {} if there is none or it is too noisy."""
    return {} if not figure or is_noisy(figure.get("low"), figure.get("high")) else figure


def is_noisy(low: float | None, high: float | None) -> bool:
    """Whether an interval of a positive figure is too wide to be shown.

    Args:
        low, high: None or NaN where missing; one alone is infinitely far, without both there is no interval.
    """
    bounds = [bound for bound in (low, high) if bound is not None and not math.isnan(bound)]
    return bounds[1] > NOISY_FACTOR * bounds[0] if len(bounds) == 2 else bool(bounds)


def _changes(cell):
    """Difference of each metric from the baseline's; the interval is from a paired bootstrap."""
    row = {}
    for metric, score in cell.scores.items():
        if score.get("change"):
            row |= _interval(f"{metric_of(metric).column}_change", *triple(score["change"]))
    return row


COSTS = {"energy_j": ("energy", "verdict"), "latency_s": ("latency", "latency_verdict")}


def _ratios(cell, reference, margin):
    """Cost ratios to the baseline measured in turns with the method, the A/A controls, and verdicts."""
    row: dict[str, Any] = {"margin": margin}
    for key, (name, verdict) in COSTS.items():
        control = control_of(reference.measurement, key) if reference else None
        if control and not is_noisy(*control[1:]):
            row |= _interval(f"{name}_control", *control)
        ratio = (cell.measurement.get("ratio") or {}).get(key)
        if cell is reference:
            row[verdict] = BASELINE if cell.measurement["status"] == "ok" else None
        elif ratio:
            row[verdict] = judge(*triple(ratio), control, margin)
            if row[verdict] != TOO_NOISY:
                row |= _interval(f"{name}_ratio", *triple(ratio))
    if cell is not reference and row.get("energy_ratio") is None:
        measured = cell.measurement
        noisy = TOO_NOISY if row.get("verdict") == TOO_NOISY else None
        reasons = (measured.get("ratio_reason"), measured.get("energy_reason"), measured.get("reason"), noisy)
        row["ratio_reason"] = next((reason for reason in reasons if reason), "no energy was read")
    return row


Interval = tuple[float, float, float]  # value, low, high


def control_of(measurement: Mapping[str, Any], key: str) -> Interval | None:
    """The A/A control, the ratio of the baseline to itself; None without an interval.

    Args:
        measurement: of the baseline's cell; key: "energy_j" or "latency_s".
    """
    ratio = (measurement.get("ratio") or {}).get(key)
    if not ratio or None in ratio.values():
        return None
    return triple(ratio)


def floor_of(control: Interval) -> float:
    """The largest relative difference, up or down, in the interval of an A/A control; infinite down to 0."""
    _, low, high = control
    return max(high, 1 / low if low > 0 else math.inf) - 1


def judge(ratio: float, low: float, high: float, control: Interval | None, margin: float = MARGIN) -> str | None:
    """Verdict on a cost ratio, as the module says; None without an interval."""
    if is_noisy(low, high):
        return TOO_NOISY
    if math.isnan(low):
        return None
    if 1 - margin <= low and high <= 1 + margin:
        return EQUAL
    if low <= 1 <= high:
        return UNDECIDED
    verdict = BETTER if ratio < 1 else WORSE
    if control is None:
        return verdict + UNCONTROLLED
    includes_1 = control[1] <= 1 <= control[2]
    return verdict if includes_1 and max(ratio, 1 / ratio) - 1 > floor_of(control) else verdict + WITHIN_CONTROL


def device_key(measurement: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """(name, UUID hash) of the device; only rows with the same key are grouped."""
    device = measurement.get("device") or {}
    return device.get("name"), device.get("uuid_hash")


def _quantizing(cell, row):
    """Time and energy of calibration and quantization, and the number of images whose saving repays the energy."""
    cost = cell.checkpoint.get("quantize") or {}
    parts = [part for part in (cost, cell.checkpoint.get("calibration")) if part]
    joules = [part["energy_j"] for part in parts if part.get("energy_j") is not None]
    fields = {
        "quantize_s": sum(part["seconds"] for part in parts) if parts else None,
        "quantize_energy_j": sum(joules) if parts and len(joules) == len(parts) else None,
        "quantize_energy_estimated": any(part.get("estimated") for part in parts) if parts else None,
        "quantize_energy_reason": next((part["reason"] for part in parts if part.get("reason")), None),
    }
    if fields["quantize_energy_j"] is not None and row.get("verdict") == BETTER and row["energy_j"] is not None:
        saving = cell.measurement["baseline"]["energy_j"]["value"] - row["energy_j"]
        if saving > 0 and cost.get("meter") == cell.measurement.get("meter"):
            fields["break_even_images"] = math.ceil(fields["quantize_energy_j"] / saving)
    return fields


def compare(row: pd.Series, other: pd.Series, metric: Metric) -> str | None:
    """Verdict on a row's metric against another row's; None if either has no interval.

    BETTER or WORSE if the intervals are disjoint (stricter than a test of the difference); else UNDECIDED.
    """
    low, high, least, most = (r[f"{metric.column}_{end}"] for r in (row, other) for end in ("low", "high"))
    if any(pd.isna(bound) for bound in (low, high, least, most)):
        return None
    if low <= most and least <= high:
        return UNDECIDED
    return BETTER if (low > most) == metric.higher_is_better else WORSE


def triple(score: Mapping[str, Any]) -> tuple[float, float, float]:
    """(value, low, high) of a score or a ratio, with NaN for a missing bound."""
    value, low, high = (math.nan if score.get(key) is None else score[key] for key in ("value", "low", "high"))
    return value, low, high


def _interval(name, value, low, high):
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _scaled(value, factor):
    return None if value is None else value * factor


def is_real(summary: pd.DataFrame) -> pd.Series:
    """Boolean column: rows that were measured and computed in their format, not simulated (fake-quantized)."""
    return (summary["status"] == "ok") & (summary["compute"] != "simulated")


def first_seeds(summary: pd.DataFrame) -> pd.DataFrame:
    """The rows, except those whose sampling differs from an earlier sampling only by its seed."""
    return summary[summary["replicate_of"].isna()]


def first_samplings(summary: pd.DataFrame) -> pd.DataFrame:
    """The rows of `first_seeds`, except those whose sampling differs from an earlier one only by its steps."""
    rows = first_seeds(summary)
    return rows[rows["steps_of"].isna()]


def first_metric(rows: pd.DataFrame) -> Metric | None:
    """The first of METRICS with a value in any row, or None."""
    return next((metric for metric in METRICS.values() if rows[metric.column].notna().any()), None)


def paired_with_value(row: pd.Series) -> list[Metric]:
    """The metrics that compare each image with the baseline's and have a value in this row."""
    return [metric for metric in METRICS.values() if metric.paired and pd.notna(row[metric.column])]


def by_steps(summary: pd.DataFrame) -> list[tuple[str, str, list[Metric], pd.DataFrame]]:
    """[(model, sampling, metrics, rows)] of samplings that differ only by their number of steps; first seeds only.

    Returns:
        sampling: the first of them; metrics: those with values, ordered for plots over steps; rows: by rising steps,
        methods in the given order.
    """
    rows = first_seeds(summary)
    rows = rows[rows["method_steps"].isna()]  # a method's own steps are the same in all samplings
    sweeps, first = [], rows["steps_of"].fillna(rows["sampling"])
    order = metric_entries.shown(first="place_across_steps").values()
    for (model, sampling), sweep in rows.groupby(["model", first], sort=False):
        sweep = sweep[sweep["steps"].notna()].sort_values("steps", kind="stable")
        metrics = [metric for metric in order if sweep[metric.column].notna().any()]
        if sweep["steps"].nunique() > 1 and metrics:
            sweeps.append((model, sampling, metrics, sweep))
    return sweeps


def by_seed(summary: pd.DataFrame) -> list[tuple[str, str, Metric, pd.DataFrame]]:
    """[(model, sampling, metric, rows)] of samplings that differ only by their seed.

    Returns:
        sampling: the first of them; metric: the first Metric with values; rows: those with a value, methods ordered by
        their mean over the seeds, the best first.
    """
    comparisons, first = [], summary["replicate_of"].fillna(summary["sampling"])
    for (model, sampling), rows in summary.groupby(["model", first], sort=False):  # ty: ignore[not-iterable]
        metric = first_metric(rows)
        if rows["sampling"].nunique() < 2 or metric is None:
            continue
        rows = rows[rows[metric.column].notna()]
        means = rows.groupby("method", sort=False)[metric.column].transform("mean")
        order = np.argsort(-means if metric.higher_is_better else means, kind="stable")
        comparisons.append((model, sampling, metric, rows.iloc[order]))
    return comparisons


def groups(summary: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """[(title, rows)] of rows that may share a plot or a part of a table: same model, sampling and device.

    A row without a device (it failed before it was measured) joins its model's group if there is only one.
    """
    titled_rows = []
    for (model, sampling), rows in summary.groupby(["model", "sampling"], sort=False):  # ty: ignore[not-iterable]
        parts = rows[["device", "device_id"]].astype(object).fillna("").astype(str)
        keys = (parts["device"] + " " + parts["device_id"]).str.strip()
        known = list(dict.fromkeys(key for key in keys if key))
        if len(known) == 1:
            keys[:] = known[0]
        for key in known or [""]:
            titled_rows.append((f"{model} · {sampling}" + (f" · {key}" if key else ""), rows[keys == key]))
        if len(known) > 1 and (keys == "").any():
            titled_rows.append((f"{model} · {sampling} · no device", rows[keys == ""]))
    return titled_rows


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as CSV: missing values as empty fields, booleans as true and false, floats with eight digits."""
    rows = (map(_field, row) for row in table.itertuples(index=False, name=None))
    csv_files.write(path, list(table.columns), (dict(zip(table.columns, row, strict=True)) for row in rows))


def _field(value):
    if pd.isna(value):
        return None
    if isinstance(value, (bool, np.bool_)):
        return str(value).lower()
    return f"{value:.8g}" if isinstance(value, float) else value


def write_summary(path: str | Path, summary: pd.DataFrame) -> None:
    """Write a summary without the columns of metrics that were not scored, so that a new metric changes no old file."""
    unscored = [metric for metric in METRICS.values() if summary[_columns_of(metric)].isna().to_numpy().all()]
    write_table(path, summary.drop(columns=[column for metric in unscored for column in _columns_of(metric)]))


def read_summary(path: str | Path) -> pd.DataFrame:
    """Read a table written by `write_summary`; metrics that it does not have get empty columns.

    Raises:
        DataError: as `read_table`.
    """
    table = read_table(path)
    missing = [name for metric in METRICS.values() for name in _columns_of(metric) if name not in table]
    return table.join(pd.DataFrame(index=table.index, columns=missing, dtype=float))


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a table written by `write_table`: empty fields as NaN, booleans as bool, names as text.

    Raises:
        DataError: the file is missing or is not a table.
    """
    try:
        return pd.read_csv(path, dtype={name: str for name in TEXTS}, keep_default_na=False, na_values=[""])
    except FileNotFoundError as error:
        raise DataError(f"{path}: the file does not exist.") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a table ({error}); delete it and run again.") from error
