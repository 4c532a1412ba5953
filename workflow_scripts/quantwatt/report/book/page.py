"""The book: one page of many bundles, without a network.

Figures of cost stand beside one another only where one machine has measured them in one run: each table holds one model
and sampling of one bundle on one device, and is sorted by itself. Devices are told apart by their identifier; where a
device has none, as a CPU, each bundle's is another one.
"""

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from quantwatt.report import tables
from quantwatt.report.book import label, model_card, verdicts
from quantwatt.report.book.reading import Bundle, Entry
from quantwatt.report.page import numbers

LONGEST_SETTINGS = 6_000  # characters; they stand on the page once for each row
COSTS = {  # {column: (heading, unit where it does not depend on the row)}
    "energy_j": ("energy", "J"),
    "energy_ratio": ("energy ratio", "to unquantized"),
    "latency_s": ("time", "s"),
    "latency_ratio": ("time ratio", "to unquantized"),
    "memory_mb": ("memory", "peak MB"),
    "size_mb": ("weights", "MB"),
}


@dataclass(frozen=True)
class Line:
    """A row of a table.

    place: its number on the page; figures: {column: (value, low, high) or None}; told: {column: verdict or reason}.
    """

    place: int
    bundle: Bundle
    entry: Entry
    base: Mapping[str, Any] | None
    mark: str
    figures: Mapping[str, verdicts.Triple | None]
    told: Mapping[str, str]

    @property
    def row(self) -> Mapping[str, Any]:
        return self.entry.row

    @property
    def missing(self) -> list[tuple[str, str]]:
        """[(what, reason)] of the figures that are not known, where a reason is."""
        names = {column: title for column, (title, _) in COSTS.items()}
        names |= {metric.column: metric.title for metric in tables.METRICS.values()}
        return [
            (names[column], reason)
            for column, reason in self.told.items()
            if self.figures[column] is None and not column.endswith("_ratio")
        ]

    @property
    def snippet(self) -> str:
        return model_card.snippet(self.bundle, self.entry)

    @property
    def settings(self) -> str:
        settings = self.bundle.configuration["methods"][self.row["method"]]
        text = json.dumps(settings, indent=1, ensure_ascii=False)
        return text if len(text) <= LONGEST_SETTINGS else f"{text[:LONGEST_SETTINGS]}\n… (the rest is in the bundle)"

    @property
    def label(self) -> str | None:
        return label_of(self.bundle, self.row, self.base)


@dataclass(frozen=True)
class Table:
    """One model and sampling of one bundle on one device."""

    model: str
    sampling: str
    unit: str
    bundle: Bundle
    metrics: Sequence[tables.Metric]
    lines: Sequence[Line]

    @property
    def facts(self) -> list[tuple[str, str]]:
        """[(label, text)] of how the figures came about."""
        manifest, made = self.bundle.manifest, self.bundle.provenance
        measured = [
            line.entry.measurement for line in self.lines if line.mark in (verdicts.MEASURED, verdicts.ESTIMATED)
        ]
        together = numbers.span((line.row["n_pairs"] for line in self.lines), "pairs")
        processes = numbers.span((line.row["n_processes"] for line in self.lines), "processes")
        images = numbers.span([line.row["n_images"] for line in self.lines if line.row["n_images"]], f"{self.unit}s")
        levels = {record["level"] for record in measured if record.get("level") is not None}
        facts: list[tuple[str, str | None]] = [
            ("Scored", images),
            ("Measured", together and f"{together} with the unquantized model in {processes}"),
            ("Ratios", f"intervals drawn at {100 * min(levels):.4g} %, so that 95 % hold" if levels else None),
            ("Processor", ", ".join(made["processors"])),
            ("quantwatt", ", ".join((f"version {manifest['quantwatt']}", *(f"commit {c}" for c in made["commits"])))),
            ("Libraries", ", ".join(f"{name} {' and '.join(v)}" for name, v in made["versions"].items() if v)),
            ("Bundle", f"sha256 {self.bundle.sha256[:16]}…"),
        ]  # fmt: skip
        return [(name, text) for name, text in facts if text]

    @property
    def pictures(self) -> list[tuple[Line, list[tuple[str, str]]]]:
        """[(line, [(data URI, words for who does not see it)])] of the lines with images."""
        return [
            (line, [(_embedded(image), f"{line.row['method']}: {prompt['prompt'] or 'no prompt'}")
                    for image, prompt in zip(line.entry.images, line.entry.prompts, strict=True)])
            for line in self.lines if line.entry.images
        ]  # fmt: skip

    @property
    def prompts(self) -> list[str]:
        first = next((line.entry.prompts for line in self.lines if line.entry.prompts), ())
        return [prompt["prompt"] or "no prompt" for prompt in first]


@dataclass(frozen=True)
class Device:
    """One device and all that it measured; `title` tells it from others of its name."""

    title: str
    fake: bool
    facts: Sequence[tuple[str, str]]
    tables: Sequence[Table]


def label_of(bundle: Bundle, row: Mapping[str, Any], base: Mapping[str, Any] | None) -> str | None:
    """The energy label of a row as SVG, or None where no energy was read."""
    meter = f"{row['device'] or 'unknown device'}, meter {row['meter'] or 'none'}"
    fake = "FAKE device, for tests only. " if row["device_fake"] else ""
    return label.draw(
        row, base, f"{fake}{meter}; {bundle.manifest['experiment']}, {bundle.manifest['date']}; quantwatt"
    )


def devices(bundles: Iterable[Bundle]) -> list[Device]:
    """What each device measured, devices and tables in an order that does not depend on that of the bundles."""
    ordered = sorted(bundles, key=lambda b: (b.manifest["experiment"], b.manifest["date"], b.sha256))
    found: dict[tuple, list] = {}
    place = 0
    for bundle in ordered:
        for (model, sampling), entries in _grouped(bundle).items():
            for key, own in _by_device(bundle, entries).items():
                base = next((entry.row for entry in own if entry.row["baseline"]), None)
                lines = [_line(place + number, bundle, entry, base) for number, entry in enumerate(own)]
                place += len(own)
                metrics = [m for m in tables.METRICS.values() if any(line.figures[m.column] for line in lines)]
                table = Table(model, sampling, own[0].row["unit"] or "image", bundle, metrics, lines)
                found.setdefault(key, []).append(table)
    named: dict[str, int] = {}
    result = []
    for key in sorted(found, key=lambda key: (key[0] is None, *map(str, key))):
        name = key[0] or "not measured on any device"
        named[name] = named.get(name, 0) + 1
        title = name if named[name] == 1 else f"{name} ({named[name]})"
        measurements = [line.entry.measurement for table in found[key] for line in table.lines]
        fake = any(line.row["device_fake"] for table in found[key] for line in table.lines)
        result.append(Device(title, fake, _device_facts(measurements), found[key]))
    return result


def _grouped(bundle):
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in bundle.entries:
        groups.setdefault((entry.row["model"], entry.row["sampling"]), []).append(entry)
    return groups


def _by_device(bundle, entries):
    """{(device, identifier): entries}; a row without a device joins the others where there is one device."""
    keys = {}
    for entry in entries:
        device = entry.row["device"]
        keys[id(entry)] = device and (device, entry.row["device_id"] or f"of {bundle.sha256}")
    known = list(dict.fromkeys(key for key in keys.values() if key))
    rest = known[0] if len(known) == 1 else (None, bundle.sha256)
    grouped: dict[tuple, list[Entry]] = {}
    for entry in entries:
        grouped.setdefault(keys[id(entry)] or rest, []).append(entry)
    return grouped


def _line(place, bundle, entry, base):
    row = entry.row
    columns = [*COSTS, *(metric.column for metric in tables.METRICS.values())]
    figures = {name: verdicts.interval(row, name) for name in columns}
    told = {}
    for name, reason in (("energy_j", "energy_reason"), ("latency_s", "latency_reason"), ("memory_mb", "memory_reason"),
                         ("energy_ratio", "ratio_reason")):  # fmt: skip
        if figures[name] is None and row[reason]:
            told[name] = row[reason]
    for metric in tables.METRICS.values():
        if figures[metric.column] is None and row[f"{metric.column}_reason"]:
            told[metric.column] = row[f"{metric.column}_reason"]
    for cost in ("energy", "latency"):
        if row["baseline"]:
            figures[f"{cost}_ratio"] = verdicts.control(row, cost)
            told[f"{cost}_ratio"] = "against itself"
        elif word := verdicts.verdict(row, base, cost):
            told[f"{cost}_ratio"] = word
            if word == tables.TOO_NOISY:
                figures[f"{cost}_ratio"] = None
    return Line(place, bundle, entry, base, verdicts.mark(row), figures, told)


def _device_facts(measurements):
    """[(label, text)] of a device, each distinct value once."""
    facts: dict[str, dict[str, None]] = {}
    for record in measurements:
        device = record["device"]
        known = {
            "Kind": device.get("kind"),
            "Driver": device.get("driver"),
            "Power limit": device.get("power_limit_w") and f"{numbers.compact(device['power_limit_w'])} W",
            "Threads": device.get("threads"),
            "Energy": record["energy_j"] and _meter(record),
        }
        for name, value in known.items():
            if value:
                facts.setdefault(name, {})[str(value)] = None
    return [(name, ", ".join(values)) for name, values in facts.items()]


def _meter(record):
    how = "estimated" if record["estimated"] else "measured"
    source = record["device"].get("source")
    return f"{how}, meter {record['meter']}" + (f" ({source})" if source else "")


def _embedded(png):
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def csp_hash(text: str) -> str:
    """The source expression of a script or style in a Content-Security-Policy: nothing else may run on the page."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def sort_key(figure: verdicts.Triple | None) -> str:
    """A figure for the script that sorts a table, or nothing."""
    return "" if figure is None or math.isnan(figure[0]) else repr(float(figure[0]))


def render(template: str | Path, bundles: Sequence[Bundle], refused: int = 0) -> str:
    """The book as HTML text; equal bundles in any order give the same text.

    Args:
        template: path of book.html.
        bundles: from `reading.read_bundle`, each once.
        refused: number of bundles that were left out.
    """
    template = Path(template)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    own: dict[str, Any] = {"csp_hash": csp_hash, "sort_key": sort_key, "COSTS": COSTS, "RULE": verdicts.RULE}
    environment.globals |= own | {name: getattr(numbers, name) for name in ("number", "bounds", "DASH")}
    found = devices(bundles)
    every = [table for device in found for table in device.tables]
    columns = {metric.column: metric for table in every for metric in table.metrics}
    return environment.get_template(template.name).render(
        devices=found,
        refused=refused,
        n_bundles=len(bundles),
        n_lines=sum(len(table.lines) for table in every),
        models=sorted({table.model for table in every}),
        methods=sorted({line.row["method"] for table in every for line in table.lines}),
        metrics=[metric for metric in tables.METRICS.values() if metric.column in columns],
    )
