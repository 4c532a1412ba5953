"""A snippet for a model card on the Hugging Face Hub: its metadata (model-index) in YAML, and a table in Markdown.

The format of the metadata is huggingface_hub's own: https://github.com/huggingface/hub-docs/blob/main/modelcard.md.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from quantwatt.report import tables
from quantwatt.report.book import verdicts
from quantwatt.report.book.reading import Bundle, Entry
from quantwatt.report.page.numbers import number

TASKS = {
    "gpt2": "text-generation",
    "distilbert": "text-classification",
    "consistency": "unconditional-image-generation",
}
SOURCE = "quantwatt"
# Characters that Markdown or HTML read as more than themselves; a dash, a dot and digits stay as they are.
_MARKUP = re.compile(r"([\\`*_{}\[\]<>|&~#!$])")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def snippet(bundle: Bundle, entry: Entry) -> str:
    """The front matter and a section of a model card for one method; nothing in it is more than text to a renderer."""
    from huggingface_hub import ModelCardData

    row = entry.row
    settings = bundle.configuration["models"][row["model"]]
    hub = settings.get("hub")
    known = isinstance(hub, str) and _REPOSITORY.fullmatch(hub) and not row["baseline"]
    base = hub if known else None
    data = ModelCardData(
        model_name=f"{row['model']} {row['method']}",
        tags=["quantwatt"],
        eval_results=_results(bundle, row, settings) or None,
        base_model=base,
        base_model_relation="quantized" if base else None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{_section(bundle, entry)}"


def _results(bundle, row, settings):
    from huggingface_hub import EvalResult

    sampling = bundle.configuration["samplings"].get(row["sampling"], {})
    asked = {key: value for key in ("seed", "steps", "guidance", "prompts_sha256", "texts_sha256")
             if (value := sampling.get(key)) is not None and isinstance(value, int | float | str)}  # fmt: skip
    return [
        EvalResult(
            task_type=TASKS.get(str(settings.get("family")), "text-to-image"),
            dataset_type="prompts" if row["unit"] != "inference" else "texts",
            dataset_name=f"{row['n_images'] or 0:.0f} {row['unit'] or 'image'}s, sampling {row['sampling']}",
            dataset_args=asked or None,
            metric_type=kind,
            metric_name=name,
            metric_value=figure[0],
            metric_args=None if math.isnan(figure[1] + figure[2]) else {"low": figure[1], "high": figure[2]},
        )
        for kind, name, figure in figures(row)
    ]


def figures(row: Mapping[str, Any]) -> list[tuple[str, str, verdicts.Triple]]:
    """[(type, name with unit and how it is known, (value, low, high))] of all that is known of a row."""
    found = []
    for kind, metric in tables.METRICS.items():
        name = f"{metric.title}{f' ({metric.unit})' if metric.unit else ''}"
        found.append((kind, name, verdicts.interval(row, metric.column)))
    unit, how = row["unit"] or "image", verdicts.mark(row)
    meter = f", {how} by {row['meter']}" if row["meter"] else ""
    found += [
        (f"energy-per-{unit}", f"Energy per {unit} (J{meter})", verdicts.interval(row, "energy_j")),
        ("energy-ratio", "Energy, ratio to the unquantized model", verdicts.interval(row, "energy_ratio")),
        (f"latency-per-{unit}", f"Time per {unit} (s)", verdicts.interval(row, "latency_s")),
        ("latency-ratio", "Time, ratio to the unquantized model", verdicts.interval(row, "latency_ratio")),
        ("memory", "Peak memory (MB)", verdicts.interval(row, "memory_mb")),
        ("size", "Size of the weights (MB)", verdicts.interval(row, "size_mb")),
    ]
    return [(kind, name, figure) for kind, name, figure in found if figure is not None]


def _section(bundle, entry):
    row, manifest = entry.row, bundle.manifest
    how = verdicts.mark(row)
    where = f" on {escaped(row['device'])}" if row["device"] else ""
    lines = [
        f"## {'Not quantized:' if row['baseline'] else 'Quantized with'} {escaped(row['method'])}",
        "",
        f"Cost: {escaped(how)}{where}, experiment {escaped(manifest['experiment'])}, {manifest['date']}.",
        "",
        "| | value | interval |",
        "| --- | --- | --- |",
    ]
    for _, name, (value, low, high) in figures(row):
        figure, *ends = (number(v, 3, False, (value, low, high)) for v in (value, low, high))
        lines.append(f"| {escaped(name)} | {figure} | {'' if math.isnan(low + high) else ' to '.join(ends)} |")
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """A text that Markdown shows as it is, on one line."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split())).replace("\\<", "&lt;").replace("\\>", "&gt;")
