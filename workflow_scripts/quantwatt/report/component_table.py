"""The table of components: what each network of a pipeline stores, holds in memory and takes, by method.

A checkpoint says under "component_bytes" what every network of the pipeline takes unquantized, the denoiser too, under
its name; what a method quantizes has its own size instead.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from quantwatt.report.cells import Cell

COLUMNS = [
    *"model method sampling component quantized weight_bits activation_bits layers size_mb unquantized_mb".split(),
    *"memory_mb quantize_s quantize_energy_j phase phase_s phase_energy_j".split(),
]
NUMBERS = [name for name in COLUMNS if name.endswith(("_mb", "_s", "_j", "_bits")) or name == "layers"]


def components_table(cells: Iterable[Cell]) -> pd.DataFrame:
    """Table with columns COLUMNS: one row per cell and network of its pipeline; none of models of one network.

    `memory_mb` is what the measured process held of it; `phase` the measured phase that it computes in, which text
    encoders share.
    """
    rows = [row for cell in cells for row in _rows(cell)]
    return pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(NUMBERS, float))


def _rows(cell):
    checkpoint, measured = cell.checkpoint, cell.measurement
    sizes, made = checkpoint.get("component_bytes") or {}, checkpoint.get("components") or {}
    held = (measured.get("memory") or {}).get("components_mb") or {}
    for name, unquantized in sizes.items() if checkpoint["status"] == "ok" else ():
        is_denoiser = name == checkpoint.get("denoiser")
        part = _denoiser(checkpoint) if is_denoiser else made.get(name)
        phase = "denoise" if is_denoiser else "text" if name.startswith("text_encoder") else "decode"
        taken = (measured.get("phases") or {}).get(phase) or {}
        cost = (part or {}).get("quantize") or {}
        yield {
            "model": cell.model,
            "method": cell.method,
            "sampling": cell.sampling,
            "component": name,
            "quantized": bool(part),
            "weight_bits": part and part["weight_bits"],
            "activation_bits": part and part["activation_bits"],
            "layers": len(part["layers"]) if part else 0,
            "size_mb": (part["size_bytes"] if part else unquantized) / 1e6,
            "unquantized_mb": unquantized / 1e6,
            "memory_mb": held.get(name),
            "quantize_s": cost.get("seconds"),
            "quantize_energy_j": cost.get("energy_j"),
            "phase": phase,
            "phase_s": taken.get("latency_s"),
            "phase_energy_j": taken.get("energy_j"),
        }


def _denoiser(checkpoint):
    """What a checkpoint stores of its denoiser, as of a component; None where it is not quantized."""
    if not checkpoint.get("layers"):
        return None
    others = (checkpoint.get("components") or {}).values()
    return {
        **{key: checkpoint.get(key) for key in ("layers", "size_bytes", "weight_bits", "activation_bits")},
        "quantize": None if others else checkpoint.get("quantize"),
    }


def compared(cells: Iterable[Cell]) -> set[str]:
    """The components beside the denoiser that some method quantizes: sizes of all methods include them."""
    settings = (cell.checkpoint.get("settings") or {} for cell in cells)
    return {name for entry in settings for name in entry.get("components") or ()}


def shown(table: pd.DataFrame) -> Sequence[Mapping[str, Any]]:
    """Rows for the page, of the models of which some component beside the denoiser is quantized."""
    first = table.drop_duplicates(["model", "method", "component"])
    several = first[first["quantized"] & (first["phase"] != "denoise")]["model"].unique()
    return first[first["model"].isin(several)].to_dict("records")
