"""The fields of measurement.json, from the results of all processes of a cell."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from quantwatt import intervals
from quantwatt.artifacts import manifest
from quantwatt.measuring import fresh_process, protocol
from quantwatt.measuring.alternation import BASELINE, METHOD, Result
from quantwatt.measuring.settings import Measuring


def summarize(found: Mapping[str, Sequence[Result]], settings: Measuring) -> dict[str, Any]:
    """Compute the fields of measurement.json from the results of the processes."""
    method_results, images = found[METHOD], settings.images_per_batch
    first, last = method_results[0], method_results[-1]
    fields: dict[str, Any] = {**summarize_configuration(method_results, settings), "n_processes": len(method_results)}
    fields["processes"] = [
        {"latency_s": protocol.summarize_latency([result["latency_s"]], images), "memory": result["memory"]}
        for result in method_results
    ]
    blocks = [block for result in method_results for block in result["blocks"]]
    parts = {name: phase for name, phase in first["phases"].items() if name not in first["phases_apart"]}
    fields |= {
        "n_blocks": sum(not block["invalid"] for block in blocks),
        "blocks": rows_of({METHOD: method_results}, "blocks"),
        "meter": first["meter"],
        "estimated": first["estimated"],
        "device": first["device"] | {"temperature_after_c": last["device"]["temperature_after_c"]},
        "others": [result["others"] for result in method_results],
        "throttled_s": throttled([result["device"].get("throttled_s") for result in method_results]),
        "sampler": summed(result["sampler"] for result in method_results),
        "sampler_effect": sampler_effect(method_results, images),
        "crosscheck": protocol.verdict_of(*sums(result["crosscheck"] for result in method_results)),
        "warm_up": [result["warm_up"] for result in method_results],
        "phases": first["phases"],
        "phases_apart": first["phases_apart"],
        "phases_check": {
            key: protocol.check_phases(parts, (fields[key] or {}).get(centre), key)
            for key, centre in (("latency_s", "median"), ("energy_j", "value"))
        },
    }
    if BASELINE in found:
        pair = (method_results, found[BASELINE])
        fields["baseline"] = summarize_configuration(found[BASELINE], settings)
        seconds = [[np.divide(result["latency_s"], images) for result in results] for results in pair]
        ratio = {"latency_s": intervals.nested_ratio(*seconds, np.median), "energy_j": None}
        if fields["energy_j"] and fields["baseline"]["energy_j"]:
            joules = [protocol.joules_per_image(blocks_of(results)) for results in pair]
            ratio["energy_j"] = intervals.nested_ratio(joules[0], joules[1])
        fields["ratio"] = {key: value and with_bounds(value) for key, value in ratio.items()}
        reason = fields["baseline"]["energy_reason"]
        fields["ratio_reason"] = reason and f"the baseline: {reason}"
    return fields


def with_bounds(interval: Iterable[float]) -> dict[str, float | None]:
    return dict(zip(("value", "low", "high"), map(manifest.finite, interval), strict=True))


def sampler_effect(results: Sequence[Result], images: int) -> dict[str, float | None] | None:
    """Ratio of seconds per image in the blocks (with the sampler) to the latency runs (without); None without blocks.

    The blocks are the valid ones; None is returned if any process has none.
    """
    with_sampler = [[b["seconds"] / b["images"] for b in result["blocks"] if not b["invalid"]] for result in results]
    if not all(with_sampler):
        return None
    without_sampler = [np.divide(result["latency_s"], images) for result in results]
    return with_bounds(intervals.nested_ratio(with_sampler, without_sampler))


def throttled(spells: Sequence[Mapping[str, float] | None]) -> dict[str, float] | None:
    """Sum {cause: seconds of throttled clocks} over all processes; None where the driver does not report it.

    A process counts from before its blocks until after its phases.
    """
    known = [spell for spell in spells if spell is not None]
    if len(known) < len(spells):
        return None
    return {cause: sum(spell[cause] for spell in known) for cause in known[0]}


def summarize_configuration(results: Sequence[Result], settings: Measuring) -> dict[str, Any]:
    """Compute latency, energy and memory of one configuration from the results of its processes."""
    idle = [watts for result in results for watts in result["idle_w"]]
    energy, reason = None, results[0]["energy_reason"]
    if not reason:
        idle_w = sum(idle) / len(idle) if idle else None
        energy, reason = protocol.summarize_energy(blocks_of(results), settings.blocks_per_process, idle_w)
    return {
        "latency_s": protocol.summarize_latency([result["latency_s"] for result in results], settings.images_per_batch),
        "energy_j": energy,
        "energy_reason": reason,
        "secondary_energy_j": beside([block for result in results for block in result["blocks"]]),
        "memory_mb": summarize_memory([result["memory"] for result in results]),
    }


def beside(blocks: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """{device: joules per image} of the secondary meters over the valid blocks; None if a block has no reading."""
    valid = [block for block in blocks if not block["invalid"]]
    images = sum(block["images"] for block in valid)
    names = dict.fromkeys(name for block in valid for name in block["beside"])
    readings = {name: [block["beside"].get(name) for block in valid] for name in names}
    return {name: None if None in joules else sum(joules) / images for name, joules in readings.items()}


def summarize_memory(peaks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    value, low, high = intervals.student_mean([peak["peak_mb"] for peak in peaks])
    reserved = [peak["reserved_mb"] for peak in peaks]
    return {"value": value, "low": manifest.finite(low), "high": manifest.finite(high), "source": peaks[0]["source"],
            "model": peaks[0]["model_mb"],
            "reserved": None if None in reserved else sum(reserved) / len(reserved)}  # fmt: skip


def blocks_of(results: Iterable[Result]) -> list[list[protocol.Block]]:
    """Return [[protocol.Block] of each process], restored from the results, without traces."""
    fields = fresh_process.BLOCK_FIELDS
    return [
        [
            protocol.Block(**{name: row[name] for name in fields}, trace=None)  # ty: ignore[invalid-argument-type]
            for row in result["blocks"]
        ]
        for result in results
    ]


def summed(samplers: Iterable[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Sum the counts of several processes' samplers; None where there was no sampler."""
    samplers = [sampler for sampler in samplers if sampler]
    if not samplers:
        return None
    counts = {key: sum(sampler[key] for sampler in samplers) for key in samplers[0] if key != "interval_ms"}
    return {"interval_ms": samplers[0]["interval_ms"], **counts}


def sums(checks: Iterable[Mapping[str, float] | None]) -> tuple[float, float]:
    checks = [check for check in checks if check]
    return sum(check["counter_j"] for check in checks), sum(check["integral_j"] for check in checks)


def rows_of(found: Mapping[str, Sequence[Result]], key: str) -> list[dict[str, Any]]:
    return [
        {"configuration": name, "process": process, **row}
        for name, results in found.items()
        for process, result in enumerate(results)
        for row in result.get(key, [])
    ]
