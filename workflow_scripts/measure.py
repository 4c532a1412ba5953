"""Measure latency, energy and memory of one cell: a model under a method and a sampling, against the baseline.

A few fresh processes each hold the quantized model and the unquantized baseline, which run in turns: what changes for
both within seconds (temperature, other programs) cancels in the ratio of a pair. Measuring ends when the ratios are
known to a precision, or at a limit of time. Where both do not fit into memory, processes of each take turns. The
baseline's cell measures the baseline against itself: this A/A control shows what is told apart without a difference.

Writes measurement.json, all blocks (blocks.csv), all runs in the blocks (runs.csv) and the power samples (power.csv). A
method that is simulated (fake-quantized) on this device is not measured. Running out of memory is a result, not a
failure.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from quantwatt.artifacts import component_files, csv_files, manifest
from quantwatt.artifacts.provenance import provenance, this_minute
from quantwatt.config import methods
from quantwatt.jobs import command, gpus
from quantwatt.measuring import fresh_process, summary
from quantwatt.measuring.meters import neighbours
from quantwatt.measuring.pairs import BASELINE, METHOD
from quantwatt.measuring.processes import Bar, Processes, Result
from quantwatt.measuring.settings import Measuring
from quantwatt.models import sampling as samplings

WHERE = ("configuration", "process")
AROUND = ("cpu_s", "others_s", "steal_s", "running", "disturbed", *neighbours.STATE)
BLOCK_COLUMNS = (*WHERE, "pair", "part", *fresh_process.BLOCK_FIELDS, *AROUND, "beside")
RUN_COLUMNS = (*WHERE, "block", "run", "prompt", "t_s", "seconds", "energy_j")
LOADED = 1.3  # memory of a loaded model over its weights, including computing
POWER_COLUMNS = ("t_s", "watts", "sensor_s", *WHERE, "block")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    gpus.claim(args.device, every=args.measuring.metering.gpus == "all")  # the fresh processes inherit it
    record, rounds = measure_cell(args)
    blocks, runs, traces = (rows_of(rounds, key) for key in ("blocks", "runs", "traces"))
    for row in blocks:
        row |= dict.fromkeys(AROUND, "") | row.pop("around")
        row["beside"] = json.dumps(row["beside"]) if row["beside"] else ""
    csv_files.write(args.blocks, BLOCK_COLUMNS, blocks)
    traces = sorted((row for row in traces if row["t_s"]), key=lambda row: row["t_s"][0])
    start = traces[0]["t_s"][0] if traces else 0
    csv_files.write(args.runs, RUN_COLUMNS, [{**row, "t_s": row["t_s"] - start} for row in runs])
    csv_files.write(args.power, POWER_COLUMNS, power_rows(traces, start))
    manifest.write_json(args.output, record)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, type=Path, help="the checkpoint's manifest.json")
    parser.add_argument("--baseline", required=True, type=Path, help="the unquantized checkpoint's manifest.json")
    parser.add_argument("--sampling", required=True, type=samplings.of_json, metavar="JSON")
    parser.add_argument(
        "--measuring",
        required=True,
        type=json.loads,
        metavar="JSON",
        help='the keys of config.yaml\'s `measuring`, and "meter"',
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads of torch; default: all")
    parser.add_argument(
        "--not-measured",
        type=Path,
        metavar="MANIFEST",
        help="record the cell as unmeasured, computed as this manifest of its images or predictions says",
    )
    parser.add_argument("--names", required=True, nargs=3, metavar=("MODEL", "METHOD", "SAMPLING"))
    parser.add_argument("--output", required=True, type=Path, help="measurement.json")
    parser.add_argument("--power", required=True, type=Path, help=f"power.csv: {', '.join(POWER_COLUMNS)}")
    parser.add_argument("--blocks", required=True, type=Path, help=f"blocks.csv: {', '.join(BLOCK_COLUMNS)}")
    parser.add_argument("--runs", required=True, type=Path, help=f"runs.csv: {', '.join(RUN_COLUMNS)}")
    args = parser.parse_args(argv)
    args.measuring = Measuring.from_settings(args.measuring, args.sampling.batch_size)
    return args


def measure_cell(args: argparse.Namespace) -> tuple[dict[str, Any], list[Result]]:
    """Return (content of measurement.json, [result of each round]) of one cell."""
    model, method, sampling = args.names
    settings = args.measuring
    record = {
        "status": "ok",
        "reason": None,
        "model": model,
        "method": method,
        "sampling": sampling,
        "compute": None,
        "kernel": None,
        "images_per_batch": settings.images_per_batch,
        "calls": None,
        "latency_s": None,
        "energy_j": None,
        "energy_reason": None,
        "memory_mb": None,
        "phases": {},
        "processes": [],
        "baseline": None,
        "ratio": {"energy_j": None, "latency_s": None},
        "ratio_reason": None,
        "in_pairs": None,
        "pairs": None,
        "meter": settings.metering.meter,
        "estimated": False,
        "measuring": settings.to_settings(),
        "n_blocks": 0,
        "n_processes": 0,
        "sampler": None,
        "device": {"name": None, "kind": args.device, "fake": False},
        "crosscheck": None,
    }
    rounds: list[Result] = []
    began, start = this_minute(), time.monotonic()
    details = manifest.read_json(args.checkpoint)
    drawn = details.get("settings", {})
    record |= {key: drawn[key] for key in methods.DRAWING if key in drawn}
    if details["status"] != "ok":
        record.update(status=details["status"], reason=details["reason"])
    elif args.not_measured:
        record.update(computed_as(manifest.read_json(args.not_measured)))
    else:
        with tempfile.TemporaryDirectory() as folder, Bar(method, settings) as bar, Processes(folder, bar) as run:
            peak, rounds, fields = measure_rounds(args, run)
        record.update(fields)
        if record["status"] == "ok":
            record.update(summary.summarize(rounds, peak, settings) | fields)
    if record["status"] != "ok":
        record["energy_reason"] = record["reason"]
    record["measured"] = {"at": began, "seconds": round(time.monotonic() - start, 1)}
    packages = ("torch", "diffusers", "transformers", "nvidia-ml-py")
    record["provenance"] = {
        **provenance(packages),
        "ram_mb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6),
        "seed": args.sampling.seed,
        "checkpoint_sha256": manifest.sha256(args.checkpoint),
    }
    return record, rounds


def computed_as(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of measurement.json of a cell that is not measured: what computed its images or predictions."""
    fields = {key: outputs.get(key) for key in ("compute", "kernel")}
    if fields["compute"] == "simulated":
        return fields | {"status": "simulated", "reason": outputs["compute_reason"]}
    return fields | {"status": "unmeasured", "reason": "`measuring` leaves it out"}


def measure_rounds(args: argparse.Namespace, run: Processes) -> tuple[Mapping[str, Any], list[Result], dict[str, Any]]:
    """Measure the memory of the method, then rounds of pairs until the ratios are known.

    Returns:
        (peak memory, [result of each round], fields of measurement.json: "compute", "kernel" and "calls", status and
        reason of a method that is not measured, "in_pairs", and "ratio_reason" of a baseline that cannot run).
    """
    settings = args.measuring
    task = {
        "sampling": args.sampling.to_settings(),
        "measuring": settings.to_settings(),
        "device": args.device,
        "threads": args.threads,
    }
    paths = {METHOD: str(args.checkpoint.resolve()), BASELINE: str(args.baseline.resolve())}
    peak = run.fresh({**task, "memory": True, "checkpoints": {METHOD: paths[METHOD]}})
    fields: dict[str, Any] = {key: peak.get(key) for key in ("compute", "kernel", "calls")}
    if peak["status"] != "ok":
        return {}, [], fields | {"status": peak["status"], "reason": peak["reason"]}
    rounds: list[Result] = []
    fields |= {"in_pairs": fit_together(peak["memory"], args.checkpoint, args.baseline)}
    while len(rounds) < settings.processes and not summary.is_known(rounds, settings):
        number = len(rounds)
        task |= {"memory": False, "first": number == 0, "last": number == settings.least_processes - 1}
        if fields["in_pairs"]:
            result = run.forked({**task, "checkpoints": paths})
            if result["status"] != "ok":  # they do not fit together
                rounds, fields["in_pairs"] = [], False
                continue
        else:
            sides = [METHOD, BASELINE][:: 1 if number % 2 == 0 else -1]
            found = {
                side: run.forked({**task, "checkpoints": {side: paths[side]}})
                for side in sides
                if not (side == BASELINE and "ratio_reason" in fields)
            }
            result = found[METHOD]
            if result["status"] != "ok":
                return {}, [], fields | {"status": result["status"], "reason": result["reason"]}
            if BASELINE in found and found[BASELINE]["status"] != "ok":
                fields["ratio_reason"] = f"the baseline: {found.pop(BASELINE)['reason']}"
            if BASELINE in found:
                result = summary.joined(result, found[BASELINE])
        rounds.append(result)
    return peak["memory"], rounds, fields


def fit_together(peak: Mapping[str, Any], method: Path, baseline: Path) -> bool:
    """Whether a method with this peak memory and its baseline fit into one process.

    The baseline takes a third more than its weights: the method's, but for those that were quantized.

    Args:
        peak: of `fresh_process.memory`; method, baseline: their checkpoints' manifests.
    """
    checkpoints = [manifest.read_json(path) for path in (method, baseline)]
    parts = checkpoints[0].get("components") or ()
    sizes = [(component_files.size_bytes(made, parts) or 0) / 1e6 for made in checkpoints]
    needed = peak["peak_mb"] + LOADED * (peak["model_mb"] - sizes[0] + sizes[1])
    return peak["available_mb"] is None or needed <= peak["available_mb"]


def rows_of(rounds: Iterable[Result], key: str) -> list[dict[str, Any]]:
    """The rows of all rounds, in order of configuration and process."""
    rows = [
        {"configuration": row["side"], "process": process, **{name: row[name] for name in row if name != "side"}}
        for process, result in enumerate(rounds)
        for row in result[key]
    ]
    return sorted(rows, key=lambda row: (row["configuration"] != METHOD, row["process"]))


def power_rows(traces: Iterable[Mapping[str, Any]], start: float) -> Iterator[dict[str, Any]]:
    """Yield the samples in order of time, in seconds since `start`; watts are empty where a reading failed."""
    for trace in traces:
        where = {key: trace[key] for key in (*WHERE, "block")}
        for t, watts, sensor_s in zip(trace["t_s"], trace["watts"], trace["sensor_s"], strict=True):
            yield {"t_s": f"{t - start:.6f}", "watts": "" if watts is None else f"{watts:.4f}", "sensor_s": sensor_s,
                   **where}  # fmt: skip


if __name__ == "__main__":
    command.run(main)
