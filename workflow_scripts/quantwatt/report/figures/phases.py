"""Where time and energy go: one stacked bar per method of its phases, such as text encoder, denoiser and decoder."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from quantwatt.artifacts import layout
from quantwatt.artifacts.manifest import read_json
from quantwatt.report import labels, lanes
from quantwatt.report.figures import INK, Inputs, method_colours, sentence
from quantwatt.report.tables import first_samplings, groups, is_real

COLOURS = ("#e69f00", "#56b4e9", "#4fc29a", "#d79bc0", "#f0e442")  # light ones of Okabe and Ito, under dark text
COSTS = {"energy_j": ("energy per {unit} (J)", "J"), "latency_s": ("time per {unit} (s)", "s")}
ROOM = 0.06  # inches on both sides of a text in a bar
NOTE = "Phases are measured each alone; the upright line is the whole, measured in the same pairs."
APART = " Hatched: not part of the whole."


def draw(inputs: Inputs, narrow: bool) -> Figure:
    """A chart per model, sampling and device, the baseline on top, methods by the sum of their phases."""
    found, names, colours = [], {}, method_colours(inputs.summary)
    for title, rows in groups(first_samplings(inputs.summary)):
        cells = [(row, _phases(inputs.results, row)) for _, row in rows[is_real(rows)].iterrows()]
        cells = [(row, *of_row) for row, of_row in cells if of_row[0] and _known(of_row[0], "latency_s")]
        if cells:
            found.append((title, cells))
            names |= dict.fromkeys(name for _, phases, *_ in cells for name in phases)
    if not found:
        return sentence("No phase was measured alone.", narrow)
    inks = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    charts = [_chart(title, cells, inks, colours) for title, cells in found]
    key = [(Patch(facecolor=ink), name) for name, ink in inks.items()]
    hatched = any(apart for _, cells in found for _, _, apart, _ in cells)
    return lanes.draw(charts, narrow, NOTE + (APART if hatched else ""), key)


def _phases(results, row):
    """({phase: {"latency_s", "energy_j"}}, phases that the whole lacks, {cost: sum over whole}) of a cell."""
    measured = read_json(layout.path(results, "measurement", row))
    checks = measured.get("phases_check") or {}
    sums = {cost: 1 + check["difference"] for cost, check in checks.items() if check}
    return measured.get("phases") or {}, set(measured.get("phases_apart") or ()), sums


def _chart(title, cells, inks, colours):
    costs = [cost for cost in COSTS if all(_known(phases, cost) for _, phases, *_ in cells)]
    cells = sorted(cells, key=lambda cell: (not cell[0]["baseline"], sum(p[costs[0]] for p in cell[1].values())))
    names = [row["method"] for row, *_ in cells]
    panels = [_panel(cells, cost, inks) for cost in costs]
    return lanes.Chart(title, names, [colours[row["model"], row["method"]] for row, *_ in cells], panels)


def _known(phases, cost):
    return all(phase.get(cost) is not None for phase in phases.values())


def _whole(phases, apart, cost, over):
    """The whole as the same pairs show it, which the phases' sum is `over` times; NaN where they do not."""
    total = sum(phase[cost] for name, phase in phases.items() if name not in apart)
    return total / over if over else np.nan


def _panel(cells, cost, inks):
    rows = [row for row, *_ in cells]
    estimated = cost == "energy_j" and all(row["energy_estimated"] is True for row in rows)
    totals = np.array([sum(phase[cost] for phase in phases.values()) for _, phases, *_ in cells])
    wholes = np.array([_whole(phases, apart, cost, sums.get(cost)) for _, phases, apart, sums in cells], dtype=float)
    unit = COSTS[cost][1]

    def draw(axes):
        most = np.nanmax([*totals, *wholes]) * 1.04
        axes.set_xlim(0, most)
        inches = axes.get_position().width * axes.figure.get_figwidth() / most
        for line, (_, phases, apart, _) in enumerate(cells):
            start = 0.0
            for name, phase in phases.items():
                long = phase[cost]
                axes.barh(line, long, left=start, height=0.62, facecolor=inks[name], edgecolor="white", linewidth=0.8,
                          hatch="////" if name in apart else None, zorder=2)  # fmt: skip
                share = f"{long / totals[line]:.0%}"
                if labels.width(share, 7) + 2 * ROOM < long * inches:
                    axes.text(start + long / 2, line, share, fontsize=7, color=INK, ha="center", va="center", zorder=4)
                start += long
            if pd.notna(wholes[line]):
                axes.plot([wholes[line]] * 2, [line - 0.4, line + 0.4], color=INK, linewidth=1.2, zorder=3)

    texts = [f"{labels.digits(total)} {unit}" for total in totals]
    label = COSTS[cost][0].format(unit=rows[0]["unit"]) + (", estimated" if estimated else "")
    return lanes.Panel(draw, label, texts)
