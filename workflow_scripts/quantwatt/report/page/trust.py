"""How the figures were measured: device, meter, pairs of blocks, images, scores and versions."""

from collections.abc import Iterable
from typing import Any

from quantwatt.measuring.protocol import STEADY_SLOPE
from quantwatt.report import drawing
from quantwatt.report.cells import Cell
from quantwatt.report.page.numbers import compact, listed, number, percent, span, with_bounds
from quantwatt.report.tables import TOO_NOISY, control_of, device_key, floor_of, is_noisy, metric_of

PROTOCOL = {"block_s": 10, "blocks": 8, "processes": 4, "idle_s": 30}  # minimum for published figures, on a GPU
COSTS = {"energy_j": "energy", "latency_s": "time"}


def trust(cells: Iterable[Cell], baseline: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """The facts about the measurements, [(device, [(label, text)])], from the stages' JSON files.

    Args:
        baseline: name of the method whose measurement is the A/A control.
    """
    devices = {}
    for cell in cells:
        if (cell.measurement.get("device") or {}).get("name"):
            devices.setdefault(device_key(cell.measurement), []).append(cell)
    return [(name, _device_facts(group, baseline) + _study_facts(group)) for (name, _), group in devices.items()]


def _device_facts(cells, baseline):
    records = [c.measurement for c in cells]
    timed = [m for m in records if m["status"] == "ok"]
    devices = [m["device"] for m in records]
    energy = [m["energy_j"] for m in timed if m.get("energy_j")]
    facts = [
        ("Device", _distinct(_device_text(d) for d in devices)),
        ("Processor", _distinct(provenance(c, "cpu") for c in cells)),
        ("Kernels", _kernels_text(cells)),
        ("Meter", _distinct(_meter_text(m) for m in timed)),
        ("Pairs", _pairs_text(timed)),
        ("Took turns by process", _apart_text(timed)),
        ("Other programs", _others_text(timed)),
        ("Ended by", _ended_text(timed)),
        ("Intervals of ratios", _distinct(_ratios_text(m) for m in timed)),
        ("Baseline against itself", _control_text([c for c in cells if c.method == baseline])),
        ("Invalid blocks", _invalid_blocks_text(timed)),
        ("Below the protocol", _shortfalls_text(timed)),
        ("Warm-up", _warm_up_text(timed)),
        ("Phases", _phases_text(timed)),
        ("Idle power", span((e.get("idle_w") for e in energy), "W")),
        ("Counter against integral", _crosscheck_text(timed)),
        ("Sampler", _sampler_text(timed)),
        ("Secondary meters", _secondary_text(timed)),
        ("Clock throttling", _throttling_text(timed)),
        ("Latency", _latency_text(timed)),
        ("Memory", _memory_text(timed)),
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


def _kernels_text(cells):
    """The methods that each kernel computes, in the cells' order."""
    methods = {}
    for cell in cells:
        if cell.measurement.get("compute") == "real" and cell.measurement.get("kernel"):
            methods.setdefault(cell.measurement["kernel"], {})[cell.method] = None
    return _distinct(f"{kernel}: {', '.join(names)}" for kernel, names in methods.items())


def _meter_text(record):
    if record.get("energy_j") is None:
        return f"{record['meter']}: no energy ({record.get('energy_reason') or 'no reason recorded'})"
    how = "estimated, not measured" if record["estimated"] else "measured"
    source = record["device"].get("source")
    return f"{record['meter']}: energy is {how}" + (f" ({source})" if source else "")


def _pairs_text(records):
    """Pairs and processes of a method, and how long a block was."""
    pairs = _whole_numbers(m["pairs"]["n"] for m in records if m.get("pairs"))
    processes = _whole_numbers(m["n_processes"] for m in records if m.get("pairs"))
    if pairs is None:
        return None
    both = " that hold both" if any(m.get("in_pairs") for m in records) else ""
    lengths = {m["measuring"]["block_s"] for m in records if m.get("measuring")}
    length = _distinct("as long as the meter needs" if own is None else f"at least {compact(own)} s" for own in lengths)
    return (
        f"{pairs} of each method in {processes} processes{both}: a block of the method next to one of the baseline, "
        f"each {length}"
    )


def _apart_text(records):
    """The methods whose processes took turns with the baseline's, and why."""
    apart = [m["method"] for m in records if m.get("in_pairs") is False]
    if not apart:
        return None
    return f"{listed(list(dict.fromkeys(apart)))}: memory did not hold the method and the baseline together"


def _others_text(records):
    """Pairs that other programs disturbed, and how much of the machine other programs took."""
    parts = []
    counted = [m["pairs"] for m in records if m.get("pairs")]
    if counted:
        disturbed, total = (sum(pairs[key] for pairs in counted) for key in ("disturbed", "n"))
        used = " (they count only where fewer than four processes have others)" if disturbed else ""
        parts.append(f"disturbed {disturbed} of {total} pairs{used}")
    shares = [round(100 * m["others_share"], 1) for m in records if m.get("others_share") is not None]
    if shares:
        parts.append(f"took {span(shares, '%')} of the CPU time that the measured one took")
    gpu = [other["gpu_processes"] for m in records for other in m.get("others") or [] if other.get("gpu_processes")]
    if gpu:
        parts.append(f"up to {max(gpu)} computed on the GPU")
    return ", ".join(parts)


def _ended_text(records):
    """The methods that were measured to the precision, and those that the limit ended first."""
    parts = []
    asked = [m for m in records if m.get("known") is not None and m.get("ratio")]
    for known in (True, False):
        names = list(dict.fromkeys(m["method"] for m in asked if m["known"] is known))
        ends = [m["measuring"] for m in asked if m["known"] is known]
        if names and known:
            half = _distinct(f"±{compact(100 * own['precision'])} %" for own in ends)
            parts.append(f"the precision of {half}: {', '.join(names)}")
        elif names:
            limits = _distinct(f"{compact(own['limit_s'])} s or {own['processes']} processes" for own in ends)
            parts.append(f"the limit of {limits}: {', '.join(names)}")
    return _distinct(parts)


def _ratios_text(record):
    if not record.get("level") or not record.get("ratio"):
        return None
    looks = ", so that 95 % hold although measuring ends at a width" if record["level"] > 0.95 else ""
    if record["n_processes"] == 1:
        return f"{compact(100 * record['level'])} %{looks}: Student's t over the pairs of one process"
    return f"{compact(100 * record['level'])} %{looks}: Student's t over the Hodges-Lehmann estimates of the processes"


def _control_text(cells):
    """The A/A control of each baseline cell, and the difference up to which better and worse are qualified."""
    texts = []
    for cell in cells:
        for key, name in COSTS.items():
            control = control_of(cell.measurement, key)
            if control and is_noisy(*control[1:]):
                texts.append(f"{name}: {TOO_NOISY}")
            elif control:
                texts.append(f"{name} {with_bounds(*control)}, up to {percent(floor_of(control))} from 1")
    return _distinct(texts) or "no control was measured, so better and worse stand without one"


def _shortfalls_text(records):
    """The settings below PROTOCOL, of energy that was measured (not estimated) on a GPU."""
    used = [
        m["measuring"]
        for m in records
        if m.get("energy_j") and not m["estimated"] and m["device"].get("kind") == "cuda"
    ]
    short = []
    for key, least in PROTOCOL.items():
        values = {settings[key] for settings in used}
        if None in values:
            short.append(f"{key}: what the meter needs (at least {least})")
        elif values and min(values) < least:
            short.append(f"{key} {compact(min(values))} (at least {least})")
    return _distinct(short)


def _warm_up_text(records):
    warm_ups = [w for m in records for w in m.get("warm_up") or []]
    slopes = [w["slope_c_per_min"] for w in warm_ups if w["slope_c_per_min"] is not None]
    if not slopes:
        return None
    unsteady = sum(abs(slope) >= STEADY_SLOPE for slope in slopes)
    late = f"; {unsteady} of {len(warm_ups)} processes were not steady at the time limit" if unsteady else ""
    return f"slope at the end {span(slopes, '°C per minute')}{late}"


def _throttling_text(records):
    """Seconds of clock throttling by cause, as reported by the driver; else the reasons read between the runs."""
    spells = [m["throttled_s"] for m in records if m.get("throttled_s")]
    if spells:
        seconds = {cause: sum(spell[cause] for spell in spells) for cause in spells[0]}
        return ", ".join(f"{cause} {compact(value)} s" for cause, value in seconds.items())
    reasons_of_runs = [m["device"].get("throttle_reasons") for m in records]
    reported = _distinct(reason for reasons in reasons_of_runs for reason in reasons or [])
    return f"between the runs: {reported or 'no'}" if any(reasons is not None for reasons in reasons_of_runs) else None


def _phases_text(records):
    """How closely the phases, each run alone, add up to the whole in the same pairs."""
    parts = []
    for key, name in COSTS.items():
        checks = [(m["method"], m["phases_check"][key]) for m in records if (m.get("phases_check") or {}).get(key)]
        found = span((round(100 * check["difference"], 1) for _, check in checks), "%")
        apart = dict.fromkeys(method for method, check in checks if check["verdict"] == "apart")
        if found:
            worst = f" (more than 5 % apart: {', '.join(apart)})" if apart else ""
            parts.append(f"{name} {found} from the whole{worst}")
    lost = dict.fromkeys(m["method"] for m in records if m.get("phases") and not m["phases_check"].get("latency_s"))
    texts = [f"run alone, they add up to: {', '.join(parts)}"] if parts else []
    return _distinct(texts + ([f"other programs disturbed all pairs of {listed(list(lost))}"] if lost else []))


def _invalid_blocks_text(records):
    invalid, valid = (sum(m.get(key) or 0 for m in records) for key in ("n_invalid", "n_blocks"))
    reasons = _distinct(reason for m in records for reason in m.get("invalid_reasons") or ())
    return f"{invalid} of {invalid + valid}" + (f" ({reasons})" if reasons else "") if invalid + valid else None


def _crosscheck_text(records):
    checks = [m["crosscheck"] for m in records if m.get("crosscheck")]
    spread = span((100 * c["difference"] for c in checks if c.get("difference") is not None), "%")
    return f"{spread} apart ({_distinct(c.get('verdict') for c in checks)})" if spread else None


def _sampler_text(records):
    samplers = [m["sampler"] for m in records if m.get("sampler")]
    if not samplers:
        return None
    total, missed, zero = (sum(s.get(key) or 0 for s in samplers) for key in ("n_samples", "n_missed", "n_zero"))
    every = _distinct(compact(s.get("interval_ms")) for s in samplers)
    cost = sum(s.get("cpu_s") or 0 for s in samplers), sum(s.get("wall_s") or 0 for s in samplers)
    share = f", {number(100 * cost[0] / cost[1], 2)} % of one processor" if cost[1] else ""
    return f"every {every} ms: {total} samples, {missed} missed, {zero} zero{share}"


def _secondary_text(records):
    joules_by_meter = {}
    for record in records:
        for name, joules in (record.get("secondary_energy_j") or {}).items():
            joules_by_meter.setdefault(name, []).append(joules)
    return "; ".join(f"{name} {text}" for name, values in joules_by_meter.items() if (text := span(values, "J each")))


def _latency_text(records):
    runs = _whole_numbers(m["latency_s"]["n"] for m in records if m.get("latency_s"))
    batch = _distinct(m.get("images_per_batch") for m in records)
    return f"median of {runs} timed runs of {batch} in the pairs' blocks" if runs else None


def _memory_text(records):
    sources = _distinct((m.get("memory_mb") or {}).get("source") for m in records)
    return f"{sources} of each method, in which nothing is timed: one value, without interval" if sources else None


def _whole_numbers(counts):
    """The text "fewest to most" of some counts; None without any."""
    known = list(counts)
    if not known:
        return None
    return str(known[0]) if len(set(known)) == 1 else f"{min(known)} to {max(known)}"


def _temperature_text(devices):
    items = [value for d in devices for key, value in d.items() if key.startswith("temperature") and value is not None]
    values = [v for item in items for v in (item.values() if isinstance(item, dict) else [item])]
    return span((v for v in values if isinstance(v, (int, float))), "°C")


def _study_facts(cells):
    sets = [c.images for c in cells if c.images["status"] == "ok"]
    scores = [s for c in cells for s in c.scores.values() if s.get("value") is not None]
    facts = [
        ("Images", _distinct(_images_text(s) for s in sets if "prompts_sha256" in s)),
        ("Prompts", _distinct(f"sha256 {s['prompts_sha256'][:12]}" for s in sets if "prompts_sha256" in s)),
        ("Texts", _distinct(_texts_text(s) for s in sets if "texts_sha256" in s)),
        ("Left out in reading", _distinct(note for s in sets for note in s.get("reading") or ())),
        ("Seeds", _seeds_text(sets)),
        ("Skipped by caches", drawing.skipped_text(cells)),
        ("Drawn twice", _distinct(_repeat_text(s) for s in sets if "repeat_psnr" in s)),
        ("Safety checker", _distinct(s.get("safety_checker") for s in sets)),
        *((metric_of(name).title, _distinct(_score_text(s) for s in scores if s["metric"] == name))
          for name in dict.fromkeys(s["metric"] for s in scores)),
        ("Intervals", _intervals_text(scores)),
        ("Commit", _distinct(provenance(c, "commit") for c in cells)),
        ("Versions", _distinct(_versions_text(c) for c in cells)),
    ]  # fmt: skip
    return [(label, text) for label, text in facts if text]


def _seeds_text(sets):
    seeds = _distinct(s["seed"] for s in sets)
    return f"{seeds}, one per image and the same in every method" if seeds else None


def _texts_text(record):
    return (
        f"{record['n_items']} of {record['texts']}, up to {record['max_length']} tokens, sha256 "
        + (record["texts_sha256"][:12])
    )


def _repeat_text(record):
    """The difference between two generations of the unquantized model's first batch."""
    psnr = record["repeat_psnr"]
    return "the same images" if psnr is None else f"images of a PSNR of {psnr:.1f} dB to the first"


def _images_text(record):
    text = f"{record['n_images']} of {record['width']} × {record['height']} pixels"
    return text + f", {record['steps']} {'step' if record['steps'] == 1 else 'steps'}, guidance {record['guidance']}"


def _score_text(score):
    parts = [score.get("library")]
    if score.get("features"):
        parts.append(f"{score['features']} features")
        metric = metric_of(score["metric"])
        if metric.published_features and score["features"] != metric.published_features:
            parts.append(f"not comparable with {metric.published_features.capitalize()} {metric.title}")
    if score.get("resize") and score["resize"] != "none":
        parts.append(f"resize {score['resize']}")
    if score.get("reference"):
        parts.append(f"against {score['reference']}")
    return ", ".join(part for part in parts if part)


def _intervals_text(scores):
    level = _distinct(compact(100 * s["level"]) for s in scores if s.get("level"))
    drawn = _distinct(
        f"{metric_of(s['metric']).title} {s['resamples']} resamples" if s.get("resamples")
        else f"{metric_of(s['metric']).title} {s.get('reason') or 'without interval'}"
        for s in scores
    )  # fmt: skip
    return f"{level} %, by the bootstrap: {drawn}" if level else None


def provenance(cell: Cell, key: str) -> Any:
    return (cell.measurement.get("provenance") or {}).get(key)


def _versions_text(cell):
    versions = provenance(cell, "versions") or {}
    python = provenance(cell, "python")
    named = [f"Python {python}"] if python else []
    return ", ".join(named + [f"{name} {version}" for name, version in versions.items() if version])


def _distinct(values):
    return "; ".join(dict.fromkeys(str(value) for value in values if value not in (None, "")))
