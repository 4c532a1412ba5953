"""One self-contained HTML page from the tables, the figures and the stages' JSON files.

Every picture is embedded and the page loads nothing else, so it can be mailed, archived and printed.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from quantwatt.artifacts import layout
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import read_json
from quantwatt.report import drawing, tables
from quantwatt.report.cells import Cell
from quantwatt.report.equal_bits import BEST
from quantwatt.report.layer_table import error_summary, most_sensitive, solving_summary
from quantwatt.report.page import equal_bits, gallery, methods, numbers, published, widths
from quantwatt.report.page.answer import answers
from quantwatt.report.page.budget import budget_comparisons
from quantwatt.report.page.cards import cards
from quantwatt.report.page.chart_data import as_script, chart_groups, layer_groups
from quantwatt.report.page.evaluation import evaluation_sections
from quantwatt.report.page.failures import failures
from quantwatt.report.page.phases import phase_groups, phase_rows
from quantwatt.report.page.power import power_curves
from quantwatt.report.page.steps import step_tables
from quantwatt.report.page.trust import COSTS, provenance, trust

NOISE_LIMIT = 0.1  # an A/A control that reaches farther from 1 is told on the first screen


def table_groups(summary: pd.DataFrame) -> list[tuple[str, list[dict[str, Any]]]]:
    """[(title, [row dict])] for Table 1, one group of rows per model, sampling and device."""
    return [(title, rows.to_dict("records")) for title, rows in tables.groups(summary)]


def seed_tables(summary: pd.DataFrame) -> list[dict[str, Any]]:
    """The scores of samplings that differ only by their seed, in one table.

    Returns:
        list of {"title", "metric": Metric, "seeds", "rows": [(method, [(value, low, high) or None per seed])]}.
    """
    comparisons = []
    for model, sampling, metric, rows in tables.by_seed(summary):
        names = [f"{metric.column}{end}" for end in ("", "_low", "_high")]
        seeds = list(dict.fromkeys(rows["seed"]))
        lines = []
        for method, method_rows in rows.groupby("method", sort=False):
            scores = {seed: values for seed, *values in method_rows[["seed", *names]].itertuples(index=False)}
            lines.append((method, [scores.get(seed) for seed in seeds]))
        comparisons.append({"title": f"{model} · {sampling}", "metric": metric, "seeds": seeds, "rows": lines})
    return comparisons


def noise(cells: Iterable[Cell], baseline: str) -> list[str]:
    """What each A/A control that reaches beyond NOISE_LIMIT shows: "energy by up to 47 %", the worst first."""
    floors: dict[str, float] = {}
    for cell in cells:
        for key, name in COSTS.items():
            control = tables.control_of(cell.measurement, key) if cell.method == baseline else None
            if control:
                floors[name] = max(floors.get(name, 0), tables.floor_of(control))
    return [
        f"{name} by up to {numbers.percent(floor)}" if floor < tables.NOISY_FACTOR - 1 else f"{name} by any amount"
        for name, floor in sorted(floors.items(), key=lambda item: -item[1])
        if floor > NOISE_LIMIT
    ]


def disturbance(summary: pd.DataFrame) -> tuple[int, int, list[str]]:
    """(pairs that other programs disturbed, all pairs, the methods with disturbed pairs)."""
    counted = summary[summary["n_pairs"].notna()]
    touched = counted[counted["n_disturbed"] > 0]
    return int(counted["n_disturbed"].sum()), int(counted["n_pairs"].sum()), list(dict.fromkeys(touched["method"]))


def quantizing_rows(summary: pd.DataFrame, layers: pd.DataFrame) -> list[dict[str, Any]]:
    """Time and energy of quantization, and fallbacks: one mapping per model and quantized method.

    Keys are the summary's columns, "solving" (from `layer_table.solving_summary`) and "repaid": [(sampling, images)].
    """
    solving, records = solving_summary(layers), []
    chosen = summary[summary["quantize_s"].notna() & ~summary["baseline"].astype(bool)]
    for key, rows in tables.first_samplings(chosen).groupby(["model", "method"], sort=False):
        repaid = rows[["sampling", "break_even_images"]].dropna().itertuples(index=False, name=None)
        records.append(rows.iloc[0].to_dict() | {"solving": solving.get(key), "repaid": list(repaid)})
    return records


def embed(path: str | Path) -> str:
    """A picture as a data URI.

    Raises:
        DataError: the file is missing.
    """
    path = Path(path)
    kind = {".svg": "image/svg+xml", ".png": "image/png"}[path.suffix]
    try:
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    except FileNotFoundError as error:
        raise DataError(f"{path}: the figure does not exist.") from error


def embed_figures(folder: str | Path, images: bool = True) -> dict[str, dict[str, str]]:
    """`{name: {"wide", "narrow"}}` of data URIs, for every figure of the report; `images`: the models draw images."""
    folder = Path(folder)
    return {
        name: {"wide": embed(folder / f"{name}.svg"), "narrow": embed(folder / f"{name}-narrow.svg")}
        for name in layout.figures(images)
    }


def answer_parts(
    summary: pd.DataFrame,
    recommended: Sequence[Mapping[str, Any]] | None,
    cells: Sequence[Cell],
    pictures: Sequence[Mapping[str, Any]],
    paying: Mapping[str, str],
) -> list[dict[str, Any]]:
    """What `answers` says, with the row of the baseline ("base", or None) and the "cards" with their pictures."""
    settings = {cell.method: cell.checkpoint.get("settings") for cell in cells}
    parts = []
    for one in answers(summary, recommended, paying):
        rows = one["rows"]
        base = rows[rows["baseline"].astype(bool)].to_dict("records")
        shown = [
            card
            | {"settings": methods.short(settings.get(card["row"]["method"])),
               "pictures": gallery.samples(pictures, card["row"], base[0]["method"] if base else ""),
               "worst": gallery.worst_value(pictures, card["row"])}
            for card in cards(rows, one["group"])
        ]  # fmt: skip
        parts.append(one | {"base": base[0] if base else None, "cards": shown})
    return parts


def _titles(shown, parts):
    """Of the group of rows that each answer is about, as the page's script names it."""
    titles = {rows.index[0]: title for title, rows in tables.groups(shown)}
    return [titles[part["rows"].index[0]] for part in parts]


def machine(cells: Iterable[Cell]) -> str:
    """When and on what the study was measured: "Measured 2026-11-30 13:20 UTC (8 min) on ..."; empty without."""
    records = [cell.measurement for cell in cells if (cell.measurement.get("device") or {}).get("name")]
    when = sorted(record["measured"]["at"] for record in records if record.get("measured"))
    if not records:
        return ""
    seconds = sum(record["measured"]["seconds"] for record in records if record.get("measured"))
    days = list(dict.fromkeys(moment.split(" ")[0] for moment in when))
    took = f" ({numbers.number(seconds / 60, 2)} min of measuring)" if seconds else ""
    where = []
    for device in {record["device"]["name"]: record for record in records}.values():
        name, known = device["device"]["name"], device.get("provenance") or {}
        cores = device["device"].get("n_cpus")
        ram = f", {numbers.number(known['ram_mb'] / 1000, 2)} GB of memory" if known.get("ram_mb") else ""
        where.append(name + (f" ({cores} cores{ram})" if cores else ram))
    date = f" {days[0]}{f' to {days[-1]}' if len(days) > 1 else ''}" if days else ""
    drawn = {(c.images["n_images"], c.images["width"], c.images["height"]) for c in cells if c.images.get("n_images")}
    images = "; ".join(f"{n} images of {width} × {height} pixels by each method" for n, width, height in sorted(drawn))
    return f"Measured{date}{took} on {numbers.listed(where)}{f', with {images}' if len(drawn) == 1 else ''}."


def wattages(cells: Iterable[Cell]) -> str:
    """Those of an estimate: " (10 and 65 W)"; empty where nothing was estimated or machines differ."""
    devices = [cell.measurement.get("device") or {} for cell in cells if cell.measurement.get("estimated")]
    found = {(device.get("idle_w"), device.get("full_w")) for device in devices}
    idle, full = found.pop() if len(found) == 1 else (None, None)
    return f" ({numbers.compact(idle)} and {numbers.compact(full)} W)" if idle is not None and full is not None else ""


def render(
    template: str | Path,
    *,
    experiment: str,
    cells: Sequence[Cell],
    metrics: Iterable[str],
    baseline: str,
    summary: pd.DataFrame,
    layers: pd.DataFrame,
    figures: Mapping[str, Mapping[str, str]],
    sensitivity: pd.DataFrame | None = None,
    evaluations: Mapping[str, Mapping[str, Any]] | None = None,
    recommended: Sequence[Mapping[str, Any]] | None = None,
    pairs: pd.DataFrame | None = None,
    formats: pd.DataFrame | None = None,
    changes: pd.DataFrame | None = None,
    results: str | Path | None = None,
    blocks: widths.Blocks | None = None,
    protocol: Mapping[str, Any] | None = None,
) -> str:
    """The report as HTML text.

    Args:
        template: path of template.html; its pieces, style and scripts lie in the same folder.
        experiment: the experiment's name.
        cells: list of cells.Cell; summary, layers, sensitivity: the tables made from the cells; sensitivity may be
            None.
        metrics: names of the metrics shown as columns of Table 1.
        figures: from `embed_figures`.
        evaluations: {name: the recorded quality of an embedded model}, or None.
        recommended: as of recommendation.recommend; None: under no limits but those of its own.
        pairs: of every two methods, as of method_pairs.pairs_table; None: methods are compared with the baseline alone.
        formats, changes: as of equal_bits.formats_table and changes_table; None: there is no section on equal bits.
        results: the experiment's folder with the images; None: no images are shown.
        blocks: speeds of whole blocks by their width, as of `widths.read`; None: unknown.
        protocol: as of `config.protocols.published`, whose figures stand beside this page's; None or {}: none.
    """
    folder, name = Path(template).parent, Path(template).name
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals |= {
        name: getattr(numbers, name)
        for name in ("number", "compact", "percent", "bounds", "with_bounds", "listed", "missing", "DASH")
    }
    shown, seeds = tables.first_samplings(summary), tables.first_seeds(summary)
    pictures = [] if results is None else gallery.galleries(results, cells, list(dict.fromkeys(shown["sampling"])))
    parts = answer_parts(summary, recommended, cells, pictures, widths.by_device(cells, baseline, blocks))
    scored = {tables.metric_of(name) for name in metrics}
    columns = [metric for metric in tables.METRICS.values() if metric in scored]
    compared = [metric for metric in columns if metric.published_features]  # the extractor is a setting
    extractors = {metric.published_features for metric in compared}
    commits = list(dict.fromkeys(provenance(c, "commit") for c in cells if provenance(c, "commit")))
    commit = str(commits[0]).removesuffix("-dirty") if commits else None
    by_layer = layer_groups(layers)
    phases = phase_rows(cells, set(shown["sampling"]))
    curves = [] if results is None else power_curves(results, shown)
    is_text = summary["unit"].iloc[0] != "image"
    return environment.get_template(name).render(
        source=lambda name: (folder / name).read_text(encoding="utf-8"),
        experiment=experiment,
        baseline=baseline,
        machine=machine(cells),
        data=as_script(
            {
                "groups": chart_groups(summary, parts, pairs),
                "images": pictures,
                "answers": _titles(shown, parts),
                "layers": by_layer,
                "phases": phase_groups(phases),
                "power": curves,
            }
        ),
        costs=bool((summary["status"] == "ok").any()),
        first_worst=gallery.FIRST_WORST,
        fake=bool(summary["device_fake"].any()),
        wattages=wattages(cells),
        estimated=any(value is True for value in summary["energy_estimated"]),
        answers=parts,
        galleries=[one | {"worst": gallery.worst(one, baseline)} for one in pictures],
        methods=methods.method_rows(cells),
        anchors=[] if is_text else read_json(folder / "anchors.json"),
        protocol=protocol and {**protocol, "rows": published.beside(protocol["published"], summary)},
        columns=columns,
        first_metric=tables.first_metric(summary),
        paired=[metric.title for metric in columns if metric.paired],
        compared=compared,
        groups=table_groups(shown),
        more_steps=table_groups(seeds[seeds["steps_of"].notna()]),
        seeds=seed_tables(summary),
        steps=step_tables(summary),
        budgets=budget_comparisons(summary),
        equal_bits=[] if formats is None else equal_bits.equal_bits(formats, list(shown["sampling"])),
        changes={} if changes is None else equal_bits.changes(changes, list(shown["sampling"])),
        level=equal_bits.LEVEL,
        best_verdict=BEST,
        sensitivity=[] if sensitivity is None else most_sensitive(sensitivity),
        drawn=drawing.words,
        features=[f for f in summary["features"].dropna().unique() if {f} != extractors],
        unit=summary["unit"].iloc[0],
        n_images=numbers.span(summary.loc[summary["n_images"] > 0, "n_images"], f"{summary['unit'].iloc[0]}s"),
        noise=noise(cells, baseline),
        disturbance=disturbance(shown),
        margin=summary["margin"].iloc[0],
        too_noisy=tables.TOO_NOISY,
        noisy_factor=tables.NOISY_FACTOR,
        phases=phases,
        power=curves,
        trust=trust(cells, baseline),
        evaluation=evaluation_sections(evaluations or {}),
        errors=error_summary(layers),
        layer_groups=by_layer,
        quantizing=quantizing_rows(summary, layers),
        failures=failures(cells),
        figures=figures,
        commit=commit,
        dirty=any(str(c).endswith("-dirty") for c in commits),
    )
