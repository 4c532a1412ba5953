"""Measure latency, energy and memory of one cell: a model under a method and a sampling, against the baseline.

The quantized model and the unquantized baseline are measured in fresh processes that alternate. Drift (temperature,
other load) then affects both in the same way, and the ratio compares processes that ran next to each other. The
baseline's cell measures the baseline twice: this A/A control shows the noise floor.

Writes measurement.json, all energy blocks (blocks.csv), all runs in the blocks (runs.csv) and the power samples
(power.csv). A method that is simulated (fake-quantized) on this device is not measured. Running out of memory is a
result, not a failure.
"""

import argparse
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from quantwatt.artifacts import csv_files, manifest
from quantwatt.artifacts.provenance import provenance
from quantwatt.jobs import command, gpus
from quantwatt.measuring import alternation, fresh_process, summary
from quantwatt.measuring.alternation import BASELINE, METHOD, Result
from quantwatt.measuring.settings import Measuring
from quantwatt.models import sampling as samplings

WHERE = ("configuration", "process")
BLOCK_COLUMNS = (*WHERE, *fresh_process.BLOCK_FIELDS, "beside")
RUN_COLUMNS = (*WHERE, "block", "run", "prompt", "t_s", "seconds", "energy_j")
POWER_COLUMNS = ("t_s", "watts", "sensor_s", *WHERE, "block")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    gpus.claim(args.device, every=args.measuring.metering.gpus == "all")  # the fresh processes inherit it
    record, results = measure_cell(args)
    blocks, runs, traces = (summary.rows_of(results, key) for key in ("blocks", "runs", "traces"))
    for row in blocks:
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
    parser.add_argument("--not-asked", action="store_true", help="record the cell as unmeasured")
    parser.add_argument("--names", required=True, nargs=3, metavar=("MODEL", "METHOD", "SAMPLING"))
    parser.add_argument("--output", required=True, type=Path, help="measurement.json")
    parser.add_argument("--power", required=True, type=Path, help=f"power.csv: {', '.join(POWER_COLUMNS)}")
    parser.add_argument("--blocks", required=True, type=Path, help=f"blocks.csv: {', '.join(BLOCK_COLUMNS)}")
    parser.add_argument("--runs", required=True, type=Path, help=f"runs.csv: {', '.join(RUN_COLUMNS)}")
    args = parser.parse_args(argv)
    args.measuring = Measuring.from_settings(args.measuring, args.sampling.batch_size)
    return args


def measure_cell(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, list[Result]]]:
    """Return (content of measurement.json, {configuration: [result of each process]}) of one cell."""
    from quantwatt.inference import checkpoint

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
        "latency_s": None,
        "energy_j": None,
        "energy_reason": None,
        "memory_mb": None,
        "phases": {},
        "processes": [],
        "baseline": None,
        "ratio": {"energy_j": None, "latency_s": None},
        "ratio_reason": None,
        "meter": settings.metering.meter,
        "estimated": False,
        "block_s": settings.block_s,
        "measuring": settings.to_settings(),
        "n_blocks": 0,
        "n_processes": 0,
        "sampler": None,
        "device": {"name": None, "kind": args.device, "fake": False},
        "crosscheck": None,
    }
    results = {}
    details = manifest.read_json(args.checkpoint)
    if details["status"] != "ok":
        record.update(status=details["status"], reason=details["reason"])
    else:
        compute, kernel, reason = checkpoint.compute_of(args.checkpoint, args.device)
        record.update(compute=compute, kernel=kernel)
        if compute != "real":
            record.update(status=compute, reason=reason)
        elif args.not_asked:
            record.update(status="unmeasured", reason="measuring.samplings leaves it out")
        else:
            results, baseline_failure = take_turns(args)
            [failed] = [result for result in results[METHOD] if result["status"] != "ok"][:1] or [None]
            if failed:
                record.update(status=failed["status"], reason=failed["reason"])
                results = {}
            else:
                record.update(summary.summarize(results, settings))
                record["ratio_reason"] = baseline_failure or record["ratio_reason"]
    if record["status"] != "ok":
        record["energy_reason"] = record["reason"]
    packages = ("torch", "diffusers", "transformers", "nvidia-ml-py")
    record["provenance"] = {
        **provenance(packages),
        "seed": args.sampling.seed,
        "checkpoint_sha256": manifest.sha256(args.checkpoint),
    }
    return record, results


def take_turns(args: argparse.Namespace) -> tuple[dict[str, list[Result]], str | None]:
    """Return ({configuration: [result of each process]}, why there is no baseline or None).

    A configuration that fails is not run again. If the method fails, no further process is started.
    """
    settings = args.measuring
    n = settings.processes
    shared = {
        "sampling": args.sampling.to_settings(),
        "measuring": settings.to_settings(),
        "device": args.device,
        "threads": args.threads,
    }
    paths = {METHOD: args.checkpoint, BASELINE: args.baseline}
    results, baseline_failure = {METHOD: [], BASELINE: []}, None
    with tempfile.TemporaryDirectory() as folder, alternation.Bar(args.names[1], settings) as bar:
        for name, process in alternation.schedule(n, [BASELINE, METHOD]):
            if name == BASELINE and baseline_failure:
                continue
            task = {**shared, "checkpoint": str(paths[name].resolve()), "first": process == 0, "last": process == n - 1,
                    "output": f"{folder}/result.json"}  # fmt: skip
            result = alternation.run_process(task, f"{folder}/task.json", bar)
            results[name].append(result)
            if result["status"] != "ok" and name == METHOD:
                return {METHOD: [result]}, None
            if result["status"] != "ok":
                baseline_failure = f"the baseline: {result['reason']}"
    if baseline_failure:
        del results[BASELINE]
    return results, baseline_failure


def power_rows(traces: Iterable[Mapping[str, Any]], start: float) -> Iterator[dict[str, Any]]:
    """Yield the samples in order of time, in seconds since `start`; watts are empty where a reading failed."""
    for trace in traces:
        where = {key: trace[key] for key in (*WHERE, "block")}
        for t, watts, sensor_s in zip(trace["t_s"], trace["watts"], trace["sensor_s"], strict=True):
            yield {"t_s": f"{t - start:.6f}", "watts": "" if watts is None else f"{watts:.4f}", "sensor_s": sensor_s,
                   **where}  # fmt: skip


if __name__ == "__main__":
    command.run(main)
