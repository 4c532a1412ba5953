"""Numbers as text: significant digits, intervals, and an em dash for a missing value."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

DASH, MINUS = "\u2014", "\u2212"


def number(
    value: float | str | None, digits: int = 3, signed: bool = False, interval: Iterable[float | None] = ()
) -> str:
    """`value` with `digits` significant digits, more if its interval is narrow; an em dash if it is missing."""
    if missing(value):
        return DASH
    if isinstance(value, str):
        return value
    text = f"{value:{'+' if signed else ''}.{_decimals(value, digits, interval)}f}"
    return text.replace("-", MINUS) if float(text) else text.lstrip("-+")


def _decimals(value, digits, interval):
    known = [v for v in (value, *interval) if not missing(v)]
    largest = max(abs(v) for v in known)
    decimals = digits - 1 - math.floor(math.log10(largest)) if largest else 0
    half = (max(known) - min(known)) / 2
    if half:
        decimals = min(max(decimals, math.ceil(-math.log10(half))), decimals + 2)
    return min(max(decimals, 0), 7)


def bounds(low: float | None, high: float | None, value: float | None = None, signed: bool = False) -> str:
    """An interval as "[low, high]" with as many decimals as its value; an empty text if a bound is missing."""
    if missing(low) or missing(high):
        return ""
    interval = (value, low, high)
    return f"[{number(low, 3, signed, interval)}, {number(high, 3, signed, interval)}]"


def with_bounds(
    value: float | None, low: float | None, high: float | None, signed: bool = False, unit: str = ""
) -> str:
    """The text "value unit [low, high]"."""
    head = number(value, 3, signed, (low, high)) + (f" {unit}" if unit else "")
    return f"{head} {bounds(low, high, value, signed)}".strip()


def compact(value: float | None) -> str:
    """A setting such as a bit width, without trailing zeros; an em dash if it is missing."""
    return DASH if missing(value) else f"{value:.4g}"


def percent(share: float) -> str:
    """A share as percent, with two significant digits at most: "4.2 %", "5 %", "120 %"."""
    return f"{float(f'{100 * share:.2g}'):g} %"


def megabytes(value: float) -> str:
    """A size in MB, or in GB from 1000 MB on."""
    return f"{number(value / 1000)} GB" if abs(value) >= 1000 else f"{number(value)} MB"


def listed(names: Sequence[str]) -> str:
    """Names joined for a sentence: "a", "a and b", "a, b and c"."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or value is pd.NA


def rounded(value: float | None, digits: int = 6) -> float | None:
    """`value` with `digits` significant digits, for JSON; None if it is missing."""
    return None if value is None or missing(float(value)) else float(f"{value:.{digits}g}")


def span(values: Iterable[float | None], unit: str) -> str | None:
    """The text "low to high unit" of the values that are not missing; None if all are."""
    known = [v for v in values if v is not None and not missing(v)]
    if not known:
        return None
    low, high = compact(min(known)), compact(max(known))
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"
