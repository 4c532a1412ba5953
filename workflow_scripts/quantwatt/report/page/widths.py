"""From which width on 8-bit layers are faster: what the answer adds where nothing pays.

The rows are of `make bench-kernels`: whole transformer blocks of several widths, W8A8 beside float32 and bfloat16.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from quantwatt.artifacts.manifest import read_json
from quantwatt.report.cells import Cell
from quantwatt.report.page.numbers import listed, with_bounds

QUANTIZED = "W8A8"
RATIOS = {"float32": "ratio_to_fp32", "bfloat16": "ratio_to_bf16"}  # speed-ups over blocks in this type
Blocks = Mapping[str, Any]


def gains(rows: Iterable[Mapping[str, Any]], dtype: str) -> list[tuple[int, int | None, tuple[float, float, float]]]:
    """[(image tokens, width, (speed-up, low, high) at it)]: of the least width from which on all are told faster.

    The width is None, and the speed-up that of the widest block, where even that is not told faster.

    Args:
        rows: of pipeline.json of `make bench-kernels`.
        dtype: of the unquantized blocks, one of RATIOS.
    """
    key, found = RATIOS[dtype], []
    timed = [
        (row["tokens"], row["width"], (row[key], row[f"{key}_low"], row[f"{key}_high"]))
        for row in rows
        if row["part"] == "block" and row["configuration"] == QUANTIZED and row[key] is not None
    ]
    for tokens in sorted({tokens for tokens, _, _ in timed}):
        widest_first = sorted(((width, ratio) for count, width, ratio in timed if count == tokens), reverse=True)
        width, shown = None, widest_first[0][1]
        for narrower, ratio in widest_first:
            if ratio[1] is None or ratio[1] <= 1:
                break
            width, shown = narrower, ratio
        found.append((tokens, width, shown))
    return found


def read(folder: str | Path) -> Blocks:
    """{"rows": of pipeline.json, "machine": of kernels.machine.json} of a folder that `make bench-kernels` wrote."""
    names = {"rows": "pipeline.json", "machine": "kernels.machine.json"}
    return {key: read_json(Path(folder, name)) for key, name in names.items()}


def by_device(cells: Iterable[Cell], baseline: str, blocks: Blocks | None) -> dict[str, str]:
    """{name of a measured device: where 8 bits pay on such a device, in a sentence}; others have none."""
    if blocks is None:
        return {}
    found = {}
    for cell in cells:
        device, model = cell.measurement.get("device") or {}, cell.checkpoint.get("model_settings")
        if cell.method == baseline and model and device.get("kind") == blocks["machine"]["kind"]:
            found[device["name"]] = _words(blocks, model["dtype"], device["name"])
    return found


def _words(blocks, dtype, device):
    of, texts, machine = dtype if dtype in RATIOS else "bfloat16", [], blocks["machine"]
    for tokens, width, ratio in gains(blocks["rows"], of):
        shown = f"{with_bounds(*ratio)} times as fast as in {of}{'' if width else ' at the widest'}"
        told = f"from a width of {width:,} on" if width else "at no measured width"
        texts.append(f"{told} at {tokens:,} image tokens ({shown})")
    here = "on such a processor" if machine["name"] == device else f"on another processor, {machine['name']}"
    return (
        f"Whole transformer blocks in {QUANTIZED} are faster {listed(texts)}, {here} with {machine['threads']} threads."
    )
