"""What the report tells of methods that draw with a cache, or in steps of their own: columns of the summary, and words.

cache: the cache's name; method_steps: the method's own number of steps; skipped: share of the calls of blocks or layers
that the cache has skipped in the image set, else while the method was measured. All empty where there is none.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from quantwatt.report.cells import Cell

COLUMNS = ("cache", "method_steps", "skipped")


def columns(cell: Cell) -> dict[str, Any]:
    """The summary's COLUMNS of a cell."""
    settings = cell.checkpoint.get("settings") or {}
    calls = cell.images.get("calls") or cell.measurement.get("calls") or {}
    return {
        "cache": settings["cache"]["name"] if settings.get("cache") else None,
        "method_steps": settings.get("steps"),
        "skipped": calls["skipped"] / calls["asked"] if calls.get("asked") else None,
    }


def words(row: Mapping[str, Any] | pd.Series) -> str:
    """How a row of the summary draws: "first-block cache (33 % skipped), 5 steps"; empty as its sampling says."""
    told = []
    if has_cache(row):
        skipped = "" if pd.isna(row["skipped"]) else f" ({row['skipped']:.0%} skipped)".replace("%", " %")
        told.append(f"{row['cache']} cache{skipped}")
    if has_steps(row):
        told.append(f"{row['method_steps']:.0f} {'step' if row['method_steps'] == 1 else 'steps'}")
    return ", ".join(told)


def has_cache(row: Mapping[str, Any] | pd.Series) -> bool:
    return pd.notna(row["cache"])


def has_steps(row: Mapping[str, Any] | pd.Series) -> bool:
    return pd.notna(row["method_steps"])


def skipped_text(cells: list[Cell]) -> str:
    """What each method's cache has skipped: "w8a8-cached: 20 of 60 calls of blocks"."""
    found = {cell.method: calls for cell in cells if (calls := cell.images.get("calls"))}
    return "; ".join(f"{name}: {c['skipped']} of {c['asked']} calls of {c['unit']}" for name, c in found.items())
