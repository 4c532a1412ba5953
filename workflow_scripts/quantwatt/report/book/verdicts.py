"""What a row of a bundle says of cost: its mark, verdicts judged anew, and its energy class."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantwatt.report import tables

MEASURED, ESTIMATED, SIMULATED, NOT_MEASURED = "measured", "estimated", "simulated", "not measured"
SURELY_LESS = {"A": 0.5, "B": 0.7, "C": 0.9}  # {class: most that the whole interval of the ratio may reach}
ABOUT = 1.1  # of D; E is above it for sure
RULE = (
    f"A, B or C: the whole interval of the ratio lies at or below {SURELY_LESS['A']:.2f}, {SURELY_LESS['B']:.2f} or "
    f"{SURELY_LESS['C']:.2f}, and farther from 1 than the unquantized model from itself. D: at or below {ABOUT:.2f}. "
    f"E: all above {ABOUT:.2f}. No class: estimated joules, an interval that reaches from below to above {ABOUT:.2f}, "
    "or a machine too noisy to tell."
)

Row = Mapping[str, Any]
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class EnergyClass:
    """A class from A to E, or None, and then why."""

    letter: str | None
    why: str = ""


def mark(row: Row) -> str:
    """How the cost of a row is known: one of the words above, or the status of a failure."""
    if row["compute"] == "simulated" or row["status"] == "simulated":
        return SIMULATED
    if row["status"] != "ok":
        return NOT_MEASURED if row["status"] == "unmeasured" else row["status"]
    return ESTIMATED if row["energy_j"] is not None and row["energy_estimated"] else MEASURED


def interval(row: Row, name: str) -> Triple | None:
    """(value, low, high) of a column, NaN for a missing bound; None without a value."""
    values = (row.get(f"{name}{end}") for end in ("", "_low", "_high"))
    value, low, high = (math.nan if figure is None else figure for figure in values)
    return None if math.isnan(value) else (value, low, high)


def control(base: Row | None, cost: str) -> Triple | None:
    """The baseline's ratio to itself, "energy" or "latency", if its interval is known."""
    found = interval(base, f"{cost}_control") if base else None
    return None if found is None or math.isnan(found[1] + found[2]) else found


def verdict(row: Row, base: Row | None, cost: str) -> str | None:
    """The verdict on a row's ratio, "energy" or "latency", as tables.judge gives it; None without a ratio."""
    ratio = interval(row, f"{cost}_ratio")
    if ratio is None or row["baseline"]:
        return None
    return tables.judge(*ratio, control(base, cost), tables.MARGIN)  # one margin for all bundles


def energy_class(row: Row, base: Row | None) -> EnergyClass:
    """The class of a row by RULE: from the interval of its ratio and the control, never from the ratio alone.

    Args:
        base: the unquantized model's row of the same model and sampling, or None.
    """
    ratio, against_itself = interval(row, "energy_ratio"), control(base, "energy")
    if row["baseline"]:
        return EnergyClass(None, "this is the unquantized model")
    if row["energy_estimated"]:
        return EnergyClass(None, "the joules are estimated")
    if ratio is None or math.isnan(ratio[1] + ratio[2]):
        return EnergyClass(None, "the ratio has no interval")
    if against_itself is None:
        return EnergyClass(None, "the unquantized model was not measured against itself")
    _, low, high = ratio
    told = verdict(row, base, "energy")
    if high <= SURELY_LESS["C"]:
        letter = next(letter for letter, most in SURELY_LESS.items() if high <= most)
        return EnergyClass(letter) if told == tables.BETTER else EnergyClass(None, "the machine was too noisy to tell")
    if high <= ABOUT:
        quiet = tables.floor_of(against_itself) <= ABOUT - 1
        return EnergyClass("D") if quiet else EnergyClass(None, "the machine was too noisy to tell")
    if low > ABOUT:
        return EnergyClass("E") if told == tables.WORSE else EnergyClass(None, "the machine was too noisy to tell")
    return EnergyClass(None, f"the interval reaches from below to above {ABOUT:.2f}")
