"""Joules of one image or inference by each method, with intervals; seconds where no energy was read."""

import numpy as np
from matplotlib.figure import Figure

from quantwatt.report import labels, lanes
from quantwatt.report.figures import Inputs, method_colours, sentence
from quantwatt.report.tables import first_samplings, groups, is_real

J_PER_WH = SECONDS_PER_HOUR = 3600
NOTE = (
    "The line on a bar is its 95 % interval. These are the costs themselves; methods are compared by their ratios, "
    "which are measured in turns with the unquantized model."
)


def draw(inputs: Inputs, narrow: bool) -> Figure:
    """A chart per model, sampling and device with a measured cost, the cheapest method on top."""
    charts, colours = [], method_colours(inputs.summary)
    for title, rows in groups(first_samplings(inputs.summary)):
        rows = rows[is_real(rows)]
        cost = next((column for column in ("energy_j", "latency_s") if rows[column].notna().any()), None)
        if cost:
            rows = rows[rows[cost].notna()].sort_values(cost, kind="stable")
            inks = [colours[key] for key in rows[["model", "method"]].itertuples(index=False, name=None)]
            charts.append(lanes.Chart(title, list(rows["method"]), inks, [_panel(rows, cost, inks)]))
    return lanes.draw(charts, narrow, NOTE) if charts else sentence("No method was measured here.", narrow)


def _panel(rows, cost, inks):
    values, low, high = (rows[name].to_numpy(float) for name in (cost, f"{cost}_low", f"{cost}_high"))
    unit, estimated = rows["unit"].iloc[0], rows["energy_estimated"].eq(True)
    if cost == "energy_j":
        figures = [
            (f"{labels.digits(value)} J", f"{labels.digits(1000 * J_PER_WH / value)} {unit}s per kWh")
            for value in values
        ]
        label, other = f"energy per {unit} (J)", (f"Wh per 1,000 {unit}s", 1000 / J_PER_WH)
    else:
        figures = [
            (f"{labels.digits(value)} s", f"{labels.digits(SECONDS_PER_HOUR / value)} {unit}s per hour")
            for value in values
        ]
        label, other, estimated = f"time per {unit} (s)", None, estimated & False
    marks = ["" if not one or estimated.all() else ", estimated" for one in estimated]
    ends = None if np.isnan(low).all() else (low, high)
    brackets = [_bracket(*bounds) for bounds in zip(low, high, strict=True)]
    return lanes.bars(
        values,
        ends,
        inks,
        [f"{value}{more}, {many}{mark}" for (value, many), more, mark in zip(figures, brackets, marks, strict=True)],
        label + (", estimated" if estimated.all() else ""),
        np.flatnonzero(rows["baseline"]),
        short=[f"{value}{mark}" for (value, _), mark in zip(figures, marks, strict=True)],
        other=other,
    )


def _bracket(low, high):
    return "" if np.isnan(low) else f" [{labels.digits(low)}, {labels.digits(high)}]"
