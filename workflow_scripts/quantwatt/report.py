"""One self-contained HTML page from the tables, the figures and the stages' JSON.

Every picture is embedded and nothing is fetched, so the page can be mailed, archived and printed.
"""

import base64
import math
from pathlib import Path

import jinja2
import pandas as pd

from quantwatt import tables
from quantwatt.manifest import DataError
from quantwatt.tables import BETTER, HIGHER_IS_BETTER, METRIC_COLUMNS, WORSE, is_real

DASH, MINUS = "\u2014", "\u2212"
FIGURES = ("quality_vs_cost", "image_grid", "layer_error", "power_trace")
METRIC_TITLES = {
    "psnr_db": ("PSNR", "dB"),
    "fid": ("FID", ""),
    "clip_score": ("CLIP score", ""),
    "kid": ("KID", ""),
    "ssim": ("SSIM", ""),
}
EVALUATION_TITLES = {  # of the sections of evaluation.json
    "classifier_right_on_renders": "Attribute classifier: share of unseen renders whose every attribute it reads right",
    "generated_right": "The 16-bit model: share of its images with every attribute of the prompt right",
    "generated_with": "Those images were generated with",
    "judge_ranks_right_caption_first": "Judge: unseen renders whose caption beats one with this attribute wrong",
    "clip_score": "CLIP score by the judge",
    "size_mb": "Size (MB)",
    "training": "Training",
}
SHARES = {"classifier_right_on_renders", "generated_right", "judge_ranks_right_caption_first"}  # shown in per cent
EVALUATION_LABELS = {  # of its figures
    "autoencoder_psnr_db": "autoencoder's reconstruction (dB)",
    "psnr_db": "PSNR (dB)",
    "clip_score": "CLIP score",
    "frechet_distance": "Fréchet distance",
    "vae": "autoencoder",
    "flow": "image model",
    "cpu_s": "CPU seconds",
}


# --- numbers as text ------------------------------------------------------------------------------------------------


def number(value, digits=3, signed=False, interval=()):
    """`value` with `digits` significant digits, or more where its interval is narrower; an em dash where missing."""
    if _missing(value):
        return DASH
    if isinstance(value, str):
        return value
    text = f"{value:{'+' if signed else ''}.{_decimals(value, digits, interval)}f}"
    return text.replace("-", MINUS) if float(text) else text.lstrip("-+")


def _decimals(value, digits, interval):
    known = [v for v in (value, *interval) if not _missing(v)]
    largest = max(abs(v) for v in known)
    decimals = digits - 1 - math.floor(math.log10(largest)) if largest else 0
    half = (max(known) - min(known)) / 2
    if half:
        decimals = min(max(decimals, math.ceil(-math.log10(half))), decimals + 2)
    return min(max(decimals, 0), 7)


def bounds(low, high, value=None, signed=False):
    """An interval as "[low, high]" with as many decimals as its value; empty where missing."""
    if _missing(low) or _missing(high):
        return ""
    interval = (value, low, high)
    return f"[{number(low, 3, signed, interval)}, {number(high, 3, signed, interval)}]"


def with_bounds(value, low, high, signed=False, unit=""):
    """ "value unit [low, high]"."""
    head = number(value, 3, signed, (low, high)) + (f" {unit}" if unit else "")
    return f"{head} {bounds(low, high, value, signed)}".strip()


def compact(value):
    """A setting such as a bit width, without trailing zeros; an em dash where missing."""
    return DASH if _missing(value) else f"{value:.4g}"


def megabytes(value):
    """Megabytes, or gigabytes from 1000 MB."""
    return f"{number(value / 1000)} GB" if abs(value) >= 1000 else f"{number(value)} MB"


def _missing(value):
    return value is None or (isinstance(value, float) and math.isnan(value)) or value is pd.NA


# --- the answer in one sentence -------------------------------------------------------------------------------------


def answers(summary):
    """One sentence per model that says what quantizing saved, as segments for the template.

    Returns:
        list of (model, segments); segments is a list of (text, style), style "strong", "em" or "".
    """
    return [(model, answer(rows)) for model, rows in summary.groupby("model", sort=False)]


def answer(rows):
    """The sentence of one model, from its rows of the summary: honest about what was not measured."""
    base = rows[rows["baseline"].astype(bool)]
    measured_base = base[is_real(base)]
    if measured_base.empty:
        why = base["reason"].dropna().iloc[0] if base["reason"].notna().any() else "it was not measured"
        return [("The 16-bit baseline has no measurement", "strong"), (f" ({why}), so nothing can be compared.", "")]
    others = rows[~rows["baseline"].astype(bool)]
    real = others[is_real(others)]
    if real.empty:
        return _only_simulated(others, measured_base.iloc[0])
    compared = real[real["energy_ratio"].notna()]
    if compared.empty:
        return _without_energy(real, measured_base)
    best = compared.loc[compared["energy_ratio"].idxmin()]
    return _cost_segments(best, "energy", compared) + _ending(best, rows, measured_base)


def _only_simulated(others, base):
    segments = [("Nothing was saved or measured here", "strong")]
    simulated = others[others["status"] == "simulated"]
    if simulated.empty:
        return [*segments, (f": every quantized method failed on {base['device']}.", "")]
    segments.append((f": every quantized method was only simulated on {base['device']}", ""))
    column = next((c for c in METRIC_TITLES if simulated[c].notna().any()), None)
    if column is None:
        return [*segments, (".", "")]
    order = simulated[column].idxmax() if HIGHER_IS_BETTER[column] else simulated[column].idxmin()
    best = simulated.loc[order]
    segments += [("; the closest in quality, ", ""), (best["method"], "strong"), (_quality(best) or ".", "")]
    if not _missing(best["size_mb"]) and not _missing(base["size_mb"]):
        text = f", with weights that would take {megabytes(best['size_mb'])} instead of {megabytes(base['size_mb'])}."
        segments.append((text, ""))
    return segments


def _without_energy(real, measured_base):
    why = pd.concat([measured_base, real])["energy_reason"].dropna()
    why = f" ({str(why.iloc[0]).rstrip('.')})" if len(why) else ""
    timed = real[real["latency_ratio"].notna()]
    if timed.empty:
        return [("No energy could be compared", "strong"), (f"{why}.", "")]
    best = timed.loc[timed["latency_ratio"].idxmin()]
    return [("No energy could be read", "strong"), (f"{why}. ", ""), *_cost_segments(best, "latency", timed),
            *_ending(best, real, measured_base)]  # fmt: skip


def _cost_segments(best, kind, compared):
    """What the best method costs against 16 bit: less, more, or not distinguishable."""
    noun, verdict = ("energy", best["verdict"]) if kind == "energy" else ("time", best["latency_verdict"])
    ratio, low, high = (best[f"{kind}_ratio{end}"] for end in ("", "_low", "_high"))
    estimated = kind == "energy" and best["energy_estimated"] is True
    verb = "uses" if kind == "energy" else "takes"
    if verdict == BETTER:
        saved = _percent(1 - ratio, 1 - high, 1 - low)
        start = [(best["method"], "strong"), (f" {verb} ", "")]
    elif verdict == WORSE:
        saved = _percent(ratio - 1, low - 1, high - 1)
        lead = "No measured method saves " + noun if len(compared) > 1 else "Quantizing saves no " + noun
        start = [(lead, "strong"), (": the cheapest, " if len(compared) > 1 else ": ", ""), (best["method"], "strong"),
                 (f", {verb} " if len(compared) > 1 else f" {verb} ", "")]  # fmt: skip
    elif _missing(verdict):
        change = with_bounds(100 * (ratio - 1), math.nan, math.nan, signed=True, unit="%")
        return [(best["method"], "strong"), (f"'s {noun} per image differs from 16 bit's by ", ""),
                ("an estimated " if estimated else "", "em"), (f"{change}, without an interval", "")]  # fmt: skip
    else:
        change = with_bounds(100 * (ratio - 1), 100 * (low - 1), 100 * (high - 1), signed=True, unit="%")
        return [(best["method"], "strong"), (f"'s {noun} per image is ", ""), ("not distinguishable", "strong"),
                (" from 16 bit's (", ""), ("estimated " if estimated else "", "em"), (f"{change})", "")]  # fmt: skip
    if estimated:
        start += [("an ", ""), ("estimated", "em"), (" ", "")]
    size = "less" if verdict == BETTER else "more"
    return [*start, (saved, "strong"), (f" {size} {noun} per image than 16 bit", "")]


def _percent(value, low, high):
    return with_bounds(100 * value, 100 * low, 100 * high, unit="%")


def _ending(best, rows, measured_base):
    base = measured_base[measured_base["sampling"] == best["sampling"]]
    base = base.iloc[0] if len(base) else measured_base.iloc[0]
    text = _quality(best)
    text += _memory(best, base)
    if rows["sampling"].nunique() > 1:
        text += f" ({best['sampling']})"
    return [(text + ".", "")]


def _quality(row):
    """ ", at ..." with the change of quality, from whichever metrics there are."""
    parts = []
    if not _missing(row["fid_change"]):
        bounds_ = (row["fid_change_low"], row["fid_change_high"])
        parts.append(f"a change of the Fréchet distance of {with_bounds(row['fid_change'], *bounds_, signed=True)}")
    elif not _missing(row["clip_score_change"]):
        bounds_ = (row["clip_score_change_low"], row["clip_score_change_high"])
        parts.append(f"a change of the CLIP score of {with_bounds(row['clip_score_change'], *bounds_, signed=True)}")
    if not _missing(row["psnr_db"]):
        text = with_bounds(row["psnr_db"], row["psnr_db_low"], row["psnr_db_high"], unit="dB")
        parts.append(f"a PSNR to the 16-bit images of {text}")
    return ", at " + " and ".join(parts) if parts else ", at a quality that was not scored"


def _memory(row, base):
    """ ", and y GB less memory", where the two intervals lie apart."""
    if _missing(row["memory_mb"]) or _missing(base["memory_mb"]):
        text = ", with no memory figure"
    elif _missing(row["memory_mb_low"]) or _missing(base["memory_mb_low"]):
        saved = base["memory_mb"] - row["memory_mb"]
        text = f", and {megabytes(abs(saved))} {'less' if saved > 0 else 'more'} memory (no interval)"
    elif row["memory_mb_high"] < base["memory_mb_low"] or row["memory_mb_low"] > base["memory_mb_high"]:
        saved = base["memory_mb"] - row["memory_mb"]
        text = f", and {megabytes(abs(saved))} {'less' if saved > 0 else 'more'} memory"
    else:
        text = ", and no distinguishable change in memory"
    if not _missing(row["size_mb"]) and not _missing(base["size_mb"]):
        text += f" (weights: {megabytes(row['size_mb'])} instead of {megabytes(base['size_mb'])})"
    return text


# --- the parts of the page ------------------------------------------------------------------------------------------


def table_groups(summary):
    """[(title, [row dict])] of Table 1, one block of rows per model, sampling and device."""
    return [(title, rows.to_dict("records")) for title, rows in tables.groups(summary)]


def trust(cells):
    """What the figures rest on: [(device, [(label, text)])], one list per device, from the stages' own JSON."""
    devices = {}
    for cell in cells:
        if (cell.measurement.get("device") or {}).get("name"):
            devices.setdefault(tables.device_key(cell.measurement), []).append(cell)
    return [(name, _device_facts(group) + _study_facts(group)) for (name, _), group in devices.items()]


def _device_facts(cells):
    records = [c.measurement for c in cells]
    timed = [m for m in records if m["status"] == "ok"]
    devices = [m["device"] for m in records]
    energy = [m["energy_j"] for m in timed if m.get("energy_j")]
    blocks = [b for m in timed for b in m.get("blocks") or []]
    facts = [
        ("Device", _distinct(_device_text(d) for d in devices)),
        ("Processor", _distinct(_provenance(c, "cpu") for c in cells)),
        ("Meter", _distinct(_meter_text(m) for m in timed)),
        ("Blocks", _distinct(_blocks_text(m) for m in timed)),
        ("Blocks left out", _void_text(blocks)),
        ("Idle power", _span((e.get("idle_w") for e in energy), "W")),
        ("Counter against integral", _crosscheck_text(timed)),
        ("Sampler", _sampler_text(timed)),
        ("Latency", _distinct(_latency_text(m) for m in timed)),
        ("Memory", _distinct((m.get("memory_mb") or {}).get("source") for m in timed)),
        ("Temperature", _temperature_text(devices)),
    ]
    names = {device["name"] for device in devices}
    return [(label, text) for label, text in facts if text and not (label == "Processor" and text in names)]


def _device_text(device):
    parts = [device["name"], device.get("kind")]
    if device.get("uuid_hash"):
        parts.append(f"id {device['uuid_hash'][:12]}")
    if device.get("driver"):
        parts.append(f"driver {device['driver']}")
    if device.get("power_limit_w"):
        parts.append(f"power limit {compact(device['power_limit_w'])} W")
    return ", ".join(str(part) for part in parts if part)


def _meter_text(record):
    if record.get("energy_j") is None:
        return f"{record['meter']}: no energy ({record.get('energy_reason') or 'no reason recorded'})"
    return f"{record['meter']}: energy is {'estimated, not measured' if record['estimated'] else 'measured'}"


def _blocks_text(record):
    processes = {block.get("process") for block in record.get("blocks") or []}
    if not processes:
        return None
    where = "one process" if len(processes) == 1 else f"{len(processes)} processes"
    return f"{len(record['blocks'])} blocks of at least {compact(record['block_s'])} s in {where}"


def _void_text(blocks):
    void = [block for block in blocks if block.get("void")]
    if not blocks:
        return None
    reasons = _distinct(block.get("reason") for block in void)
    return f"{len(void)} of {len(blocks)}" + (f" ({reasons})" if reasons else "")


def _crosscheck_text(records):
    checks = [m["crosscheck"] for m in records if m.get("crosscheck")]
    spread = _span((100 * c["difference"] for c in checks if c.get("difference") is not None), "%")
    return f"{spread} apart ({_distinct(c.get('verdict') for c in checks)})" if spread else None


def _sampler_text(records):
    samplers = [m["sampler"] for m in records if m.get("sampler")]
    if not samplers:
        return None
    total, missed, zero = (sum(s.get(key) or 0 for s in samplers) for key in ("n_samples", "n_missed", "n_zero"))
    every = _distinct(compact(s.get("interval_ms")) for s in samplers)
    return f"every {every} ms: {total} samples, {missed} missed, {zero} zero"


def _latency_text(record):
    latency = record.get("latency_s")
    if not latency or not latency.get("n"):
        return None
    return f"median of {latency['n']} timings, {record.get('images_per_batch')} images per batch"


def _temperature_text(devices):
    found = [value for d in devices for key, value in d.items() if key.startswith("temperature") and value is not None]
    values = [v for item in found for v in (item.values() if isinstance(item, dict) else [item])]
    return _span((v for v in values if isinstance(v, (int, float))), "°C")


def _study_facts(cells):
    sets = [c.images for c in cells if c.images["status"] == "ok"]
    scores = [s for c in cells for s in c.scores.values() if s.get("value") is not None]
    facts = [
        ("Images", _distinct(_images_text(s) for s in sets)),
        ("Prompts", _distinct(f"sha256 {s['prompts_sha256'][:12]}" for s in sets)),
        ("Seeds", _distinct(f"{s['seed']}, one per image and the same in every method" for s in sets)),
        *((title, _distinct(_score_text(s) for s in scores if metric_title(s["metric"]) == title))
          for title in dict.fromkeys(metric_title(s["metric"]) for s in scores)),
        ("Intervals", _intervals_text(scores)),
        ("Commit", _distinct(_provenance(c, "commit") for c in cells)),
        ("Versions", _distinct(_versions_text(c) for c in cells)),
    ]  # fmt: skip
    return [(label, text) for label, text in facts if text]


def metric_title(metric):
    """Short heading of a metric, as in Table 1."""
    return METRIC_TITLES[METRIC_COLUMNS[metric]][0]


def _images_text(record):
    text = f"{record['n_images']} of {record['width']} × {record['height']} pixels"
    return text + f", {record['steps']} steps, guidance {record['guidance']}"


def _score_text(score):
    parts = [score.get("library")]
    if score.get("features"):
        parts.append(f"{score['features']} features")
        if score["metric"] in ("fid", "kid") and score["features"] != "inception":
            parts.append(f"not comparable with Inception {metric_title(score['metric'])}")
    if score.get("resize") and score["resize"] != "none":
        parts.append(f"resize {score['resize']}")
    if score.get("reference"):
        parts.append(f"against {score['reference']}")
    return ", ".join(part for part in parts if part)


def _intervals_text(scores):
    level = _distinct(compact(100 * s["level"]) for s in scores if s.get("level"))
    drawn = _distinct(
        f"{metric_title(s['metric'])} {s['resamples']} resamples" if s.get("resamples")
        else f"{metric_title(s['metric'])} {s.get('reason') or 'without interval'}"
        for s in scores
    )  # fmt: skip
    return f"{level} %, by the bootstrap: {drawn}" if level else None


def _provenance(cell, key):
    return (cell.measurement.get("provenance") or {}).get(key)


def _versions_text(cell):
    versions = _provenance(cell, "versions") or {}
    python = _provenance(cell, "python")
    named = [f"Python {python}"] if python else []
    return ", ".join(named + [f"{name} {version}" for name, version in versions.items() if version])


def _distinct(values):
    return "; ".join(dict.fromkeys(str(value) for value in values if value))


def _span(values, unit):
    values = [v for v in values if not _missing(v)]
    if not values:
        return None
    low, high = compact(min(values)), compact(max(values))
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"


def failures(cells):
    """[(model, method, sampling, what, status, reason)] of everything that is missing for a reason."""
    found = []
    for cell in cells:
        status, reason = cell.failure
        name = (cell.model, cell.method, cell.sampling)
        if status not in ("ok", "simulated"):
            found.append((*name, "the method", status, reason))
            continue
        for metric, score in cell.scores.items():
            if score.get("value") is None and score["status"] != "reference":
                found.append((*name, metric_title(metric), score["status"], score.get("reason")))
        if status == "ok" and cell.measurement.get("energy_j") is None:
            found.append((*name, "energy", "not read", cell.measurement.get("energy_reason")))
    return found


def fallbacks(layers):
    """[(model, method, fallback, count)] of layers whose solver had to take a lower rung."""
    fallen = layers[layers["fallback"].notna()]
    return [(*key, len(rows)) for key, rows in fallen.groupby(["model", "method", "fallback"], sort=False)]


def worst_layers(layers, n=3):
    """[(model, method, error of what, median, [(layer, error)])], the `n` layers with each method's largest error."""
    layers = layers[layers["relative_error"].notna()]
    found = []
    for (model, method), rows in layers.groupby(["model", "method"], sort=False):
        worst = rows.nlargest(n, "relative_error")
        errors = list(zip(worst["layer"], worst["relative_error"], strict=True))
        found.append((model, method, rows["error_of"].iloc[0], rows["relative_error"].median(), errors))
    return found


def evaluation_sections(evaluation):
    """Any JSON mapping as sections for the page; known keys get plain words.

    Returns:
        list of {"title", "rows": [(label, text)], "columns": [label], "table": [(label, [text])]}. The single
        figures come first under the title None; a mapping of like mappings becomes a table.
    """
    single = {key: value for key, value in evaluation.items() if not isinstance(value, dict)}
    nested = [(key, value) for key, value in evaluation.items() if isinstance(value, dict) and value]
    nested.sort(key=lambda item: item[0] == "training")  # the recipes interest few readers: last
    return ([_section(None, single)] if single else []) + [_section(key, value) for key, value in nested]


def _section(key, values):
    section = {"title": key and EVALUATION_TITLES.get(key, _label(key)), "rows": [], "columns": [], "table": []}
    keys = [tuple(value) if isinstance(value, dict) else None for value in values.values()]
    if len(keys) > 1 and keys[0] and len(set(keys)) == 1 and len(keys[0]) <= 6:
        section["columns"] = [_label(name) for name in keys[0]]
        section["table"] = [(_label(name), [_plain(v) for v in row.values()]) for name, row in values.items()]
    else:
        plain = _per_cent if key in SHARES else _plain
        section["rows"] = [(_label(name), plain(value)) for name, value in values.items()]
    return section


def _per_cent(value):
    return f"{100 * value:.1f} %"


def _label(key):
    return EVALUATION_LABELS.get(key, str(key).replace("_", " "))


def _plain(value):
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return compact(value)
    if isinstance(value, dict):
        return ", ".join(f"{_label(key)} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        if len(value) == 3 and all(isinstance(v, (int, float)) for v in value):
            return with_bounds(*value)
        return ", ".join(_plain(item) for item in value)
    return str(value)


# --- the page -------------------------------------------------------------------------------------------------------


def embed(path):
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


def embed_figures(folder):
    """`{name: {"wide", "narrow"}}` of data URIs, for every figure of the report."""
    folder = Path(folder)
    return {
        name: {"wide": embed(folder / f"{name}.svg"), "narrow": embed(folder / f"{name}-narrow.svg")}
        for name in FIGURES
    }


def render(template, *, experiment, cells, metrics, baseline, summary, layers, figures, evaluation=None):
    """The report as HTML text.

    Args:
        template: path of template.html.
        experiment: its name.
        cells: list of tables.Cell; summary, layers: the tables made from them.
        metrics: names of the metrics, which choose the columns of Table 1.
        figures: from `embed_figures`.
        evaluation: the embedded models' own quality figures, or None.
    """
    template = Path(template)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals |= {"number": number, "compact": compact, "bounds": bounds, "missing": _missing, "DASH": DASH}
    columns = [c for c in METRIC_TITLES if c in {tables.metric_column(m) for m in metrics}]
    commits = list(dict.fromkeys(_provenance(c, "commit") for c in cells if _provenance(c, "commit")))
    commit = str(commits[0]).removesuffix("-dirty") if commits else None
    return environment.get_template(template.name).render(
        experiment=experiment,
        baseline=baseline,
        fake=bool(summary["device_fake"].any()),
        estimated=any(value is True for value in summary["energy_estimated"]),
        answers=answers(summary),
        columns=[(c, *METRIC_TITLES[c]) for c in columns],
        groups=table_groups(summary),
        features=[f for f in summary["features"].dropna().unique() if f != "inception"],
        n_images=_span(summary.loc[summary["n_images"] > 0, "n_images"], "images"),
        trust=trust(cells),
        evaluation=evaluation_sections(evaluation or {}),
        worst=worst_layers(layers),
        fallbacks=fallbacks(layers),
        failures=failures(cells),
        figures=figures,
        commit=commit,
        dirty=any(str(c).endswith("-dirty") for c in commits),
    )
