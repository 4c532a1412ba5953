"""The fields of measurement.json, from the results of all processes of a cell."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from quantwatt.artifacts import manifest
from quantwatt.measuring import fresh_process, pairs, protocol
from quantwatt.measuring.pairs import BASELINE, METHOD, WHOLE, Placed
from quantwatt.measuring.processes import Result
from quantwatt.measuring.settings import Measuring

KEYS = {"energy_j": True, "latency_s": False}  # {field: whether it needs energy}


def ratios(processes: Sequence[Sequence[Placed]], level: float, part: str = WHOLE) -> dict[str, Any]:
    """{"energy_j", "latency_s": (ratio, low, high) or None} of method over baseline."""
    return {key: pairs.ratio(processes, part, energy, level) for key, energy in KEYS.items()}


def is_known(rounds: Sequence[Result], settings: Measuring) -> bool:
    """Whether measuring may stop: both ratios are known to the precision, or will not be known at all."""
    if not settings.precision or len(rounds) < settings.least_processes:
        return False
    found = ratios([placed_in(result) for result in rounds], settings.level)
    wanted = [found["latency_s"], *([found["energy_j"]] if rounds[-1]["meter"] != "none" else [])]
    return all(interval is None or pairs.half_width(interval) <= settings.precision for interval in wanted)


def summarize(rounds: Sequence[Result], peak: Mapping[str, Any], settings: Measuring) -> dict[str, Any]:
    """Compute the fields of measurement.json.

    Args:
        rounds: the result of each process; where both sides did not fit into one, what `joined` makes of two. Without a
            baseline they have the method's blocks only.
        peak: of the method's process that measured memory.
    """
    first, last = rounds[0], rounds[-1]
    processes = [placed_in(result) for result in rounds]
    methods = side_of(processes, METHOD)
    fields: dict[str, Any] = {
        **summarize_side(methods, rounds, settings),
        "memory": peak,
        "memory_mb": {
            "value": peak["peak_mb"], "low": None, "high": None, "source": peak["source"], "model": peak["model_mb"],
            "reserved": peak["reserved_mb"],
        },
        "n_processes": len(rounds),
        "n_blocks": sum(not b.block.invalid for placed in methods for b in whole_of(placed)),
        "n_invalid": sum(b.block.invalid for placed in methods for b in whole_of(placed)),
        "invalid_reasons": sorted({b.block.reason for placed in methods for b in placed if b.block.reason}),
        "processes": [
            {"latency_s": protocol.summarize_latency([seconds], settings.images_per_batch)}
            for seconds in run_seconds(rounds, METHOD)
        ],
        "level": settings.level,
        "pairs": {key: sum(pairs.counts(placed)[key] for placed in processes) for key in ("n", "disturbed")},
        "known": is_known(rounds, settings),
        "meter": first["meter"],
        "estimated": first["estimated"],
        "device": first["device"] | {"temperature_after_c": last["device"]["temperature_after_c"]},
        "others": [result["others"] for result in rounds],
        "others_share": others_share(processes),
        "throttled_s": throttled([result["device"].get("throttled_s") for result in rounds]),
        "sampler": summed(result["sampler"] for result in rounds),
        "crosscheck": protocol.verdict_of(*sums(result["crosscheck"] for result in rounds)),
        "warm_up": [result["warm_up"] for result in rounds],
        "phases": phases_of(processes, first["tokens"], settings),
        "phases_apart": first["phases_apart"],
        "phases_check": {
            key: pairs.add_up(processes, first["phases_apart"], energy) for key, energy in KEYS.items()
        },
    }  # fmt: skip
    baselines = side_of(processes, BASELINE)
    if any(baselines):
        fields["baseline"] = summarize_side(baselines, rounds, settings, BASELINE)
        fields["ratio"] = {
            key: interval and with_bounds(interval) for key, interval in ratios(processes, settings.level).items()
        }
        reason = fields["baseline"]["energy_reason"]
        fields["ratio_reason"] = reason and f"the baseline: {reason}"
    return fields


def placed_in(result: Result) -> list[Placed]:
    return [fresh_process.placed_of(row) for row in result["blocks"]]


def side_of(processes: Sequence[Sequence[Placed]], side: str) -> list[list[Placed]]:
    return [[block for block in placed if block.side == side] for placed in processes]


def whole_of(placed: Iterable[Placed]) -> list[Placed]:
    return [block for block in placed if block.part == WHOLE]


def run_seconds(rounds: Sequence[Result], side: str) -> list[list[float]]:
    """[seconds of each run of the whole] of each process."""
    return [[run["seconds"] for run in result["runs"] if run["side"] == side] for result in rounds]


def summarize_side(
    processes: Sequence[Sequence[Placed]], rounds: Sequence[Result], settings: Measuring, side: str = METHOD
) -> dict[str, Any]:
    """Compute latency and energy of one side.

    Args:
        processes: its blocks in each process.
    """
    idle = [watts for result in rounds for watts in result["idle_w"]]
    blocks = [[b.block for b in whole_of(placed)] for placed in processes]
    energy, reason = None, next((result["energy_reason"] for result in rounds if result["energy_reason"]), None)
    if not reason:
        energy, reason = protocol.summarize_energy(blocks, sum(idle) / len(idle) if idle else None)
    return {
        "latency_s": protocol.summarize_latency(run_seconds(rounds, side), settings.images_per_batch),
        "energy_j": energy,
        "energy_reason": reason,
        "secondary_energy_j": beside(
            row for result in rounds for row in result["blocks"] if row["side"] == side and row["part"] == WHOLE
        ),
    }


def phases_of(
    processes: Sequence[Sequence[Placed]], tokens: Mapping[str, float], settings: Measuring
) -> dict[str, dict[str, Any]]:
    """{phase: {"latency_s", "energy_j", "mean_w", "runs", "ratio"}} of the method, per image; "tokens" of text models.

    "ratio" is {"energy_j", "latency_s": with bounds or None} to the baseline.
    """
    found = {}
    for part in dict.fromkeys(block.part for placed in processes for block in placed if block.part != WHOLE):
        blocks = [
            b.block for placed in processes for b in placed if b.part == part and b.side == METHOD and not b.disturbed
        ] or [b.block for placed in processes for b in placed if b.part == part and b.side == METHOD]
        joules = protocol.joules_per_image([blocks])[0]
        seconds = float(np.median([block.seconds / block.images for block in blocks]))
        energy = float(np.median(joules)) if len(joules) else None
        intervals_of = ratios(processes, settings.level, part)
        found[part] = {
            "latency_s": seconds,
            "energy_j": energy,
            "mean_w": energy and energy / seconds,
            "runs": sum(block.images for block in blocks) // settings.images_per_batch,
            "ratio": {key: interval and with_bounds(interval) for key, interval in intervals_of.items()},
        } | ({"tokens": tokens[part]} if part in tokens else {})
    return found


def joined(method: Result, baseline: Result) -> Result:
    """Make one result of two processes that ran next to each other, for sides that do not fit into one.

    Their blocks make pairs in order: what changes during a process does not cancel, what changes between rounds does.
    """
    both = {key: method[key] + baseline[key] for key in ("blocks", "runs", "traces")}
    return {**method, **both, "energy_reason": method["energy_reason"]}


def with_bounds(interval: Iterable[float]) -> dict[str, float | None]:
    return dict(zip(("value", "low", "high"), map(manifest.finite, interval), strict=True))


def others_share(processes: Sequence[Sequence[Placed]]) -> float | None:
    """CPU time that other programs and other machines took, over that of this program; None where it is unknown."""
    around = [block.block.around for placed in processes for block in placed]
    if not around or any(seen.get("others_s") is None for seen in around):
        return None
    taken, own = (sum(seen[key] for seen in around) for key in ("others_s", "cpu_s"))
    return (taken + sum(seen["steal_s"] for seen in around)) / own if own else None


def throttled(spells: Sequence[Mapping[str, float] | None]) -> dict[str, float] | None:
    """Sum {cause: seconds of throttled clocks} over all processes; None where the driver does not report it."""
    known = [spell for spell in spells if spell is not None]
    if len(known) < len(spells):
        return None
    return {cause: sum(spell[cause] for spell in known) for cause in known[0]}


def beside(blocks: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """{device: joules per image} of the secondary meters over the valid blocks; None if a block has no reading."""
    valid = [block for block in blocks if not block["invalid"]]
    images = sum(block["images"] for block in valid)
    names = dict.fromkeys(name for block in valid for name in block["beside"])
    readings = {name: [block["beside"].get(name) for block in valid] for name in names}
    return {name: None if None in joules else sum(joules) / images for name, joules in readings.items()}


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
