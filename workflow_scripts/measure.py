"""Measure latency, energy and memory of one cell: a model under a method and a sampling, against the baseline.

The quantized model and the unquantized baseline are measured in fresh processes that alternate. Drift (temperature,
other load) then affects both in the same way, and the ratio compares processes that ran next to each other. The
baseline's cell measures the baseline twice: this A/A control shows the noise floor.

Writes measurement.json, all energy blocks (blocks.csv), all runs in the blocks (runs.csv) and the power samples
(power.csv). A method that is simulated (fake-quantized) on this device is not measured. Running out of memory is a
result, not a failure.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from quantwatt import intervals
from quantwatt.artifacts import csv_files, manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.provenance import provenance
from quantwatt.jobs import command, gpus
from quantwatt.jobs.progress import progress
from quantwatt.measuring import fresh_process, protocol
from quantwatt.measuring.settings import Measuring
from quantwatt.models import sampling as samplings

METHOD, BASELINE = "method", "baseline"
WHERE = ("configuration", "process")
BLOCK_COLUMNS = (*WHERE, *fresh_process.BLOCK_FIELDS, "beside")
RUN_COLUMNS = (*WHERE, "block", "run", "prompt", "t_s", "seconds", "energy_j")
POWER_COLUMNS = ("t_s", "watts", "sensor_s", *WHERE, "block")
LOADING_S = 8  # estimated loading time of a process, for the progress bar

Result = dict[str, Any]  # of one fresh process


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    gpus.claim(args.device, every=args.measuring.metering.gpus == "all")  # the fresh processes inherit it
    record, results = measure_cell(args)
    blocks = [
        {**row, "beside": json.dumps(row["beside"]) if row["beside"] else ""} for row in rows_of(results, "blocks")
    ]
    csv_files.write(args.blocks, BLOCK_COLUMNS, blocks)
    traces = sorted((row for row in rows_of(results, "traces") if row["t_s"]), key=lambda row: row["t_s"][0])
    start = traces[0]["t_s"][0] if traces else 0
    csv_files.write(args.runs, RUN_COLUMNS, [{**row, "t_s": row["t_s"] - start} for row in rows_of(results, "runs")])
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
                record.update(summarize(results, settings))
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


def schedule(n_processes: int, configurations: Sequence[str]) -> list[tuple[str, int]]:
    """Return [(configuration, process)]: every round runs all configurations, and every second round in reverse."""
    turns = [configurations[:: 1 if process % 2 == 0 else -1] for process in range(n_processes)]
    return [(name, process) for process, turn in enumerate(turns) for name in turn]


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
    with tempfile.TemporaryDirectory() as folder, Bar(args.names[1], settings) as bar:
        for name, process in schedule(n, [BASELINE, METHOD]):
            if name == BASELINE and baseline_failure:
                continue
            task = {**shared, "checkpoint": str(paths[name].resolve()), "first": process == 0, "last": process == n - 1,
                    "output": f"{folder}/result.json"}  # fmt: skip
            result = run_process(task, f"{folder}/task.json", bar)
            results[name].append(result)
            if result["status"] != "ok" and name == METHOD:
                return {METHOD: [result]}, None
            if result["status"] != "ok":
                baseline_failure = f"the baseline: {result['reason']}"
    if baseline_failure:
        del results[BASELINE]
    return results, baseline_failure


def run_process(task: Mapping[str, Any], path: str | Path, bar: "Bar") -> Result:
    """Run one fresh process and return its result.

    Raises:
        DataError: the process ended with an error, which it has printed.
    """
    manifest.write_json(path, task)
    scripts = str(Path(__file__).parent)
    paths = [scripts, *filter(None, [os.environ.get("PYTHONPATH")])]
    command_line = [sys.executable, "-m", "quantwatt.measuring.fresh_process", path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with subprocess.Popen(command_line, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:  # ty: ignore[not-iterable]  (a pipe)
            bar.update(line)
    if process.returncode == -9:
        reason = "the process was killed, most likely by the system because memory ran out"
        return {"status": "oom", "reason": reason}
    if process.returncode != 0:
        raise DataError(f"measuring {task['checkpoint']} failed; the error is printed above.")
    result = manifest.read_json(task["output"])
    Path(task["output"]).unlink()
    return result


class Bar:
    """A progress bar in seconds, with the current step and the mean power of the last block."""

    def __init__(self, method: str, settings: Measuring):
        once = 2 * settings.idle_s + 3 * settings.phases_s
        energy_s = settings.blocks_per_process * settings.block_s
        each = LOADING_S + settings.warmup_s + settings.latency_s_per_process + energy_s
        self.total = 2 * (once + settings.processes * each)
        self.method, self.start = method, time.perf_counter()

    def __enter__(self) -> Self:
        self.bar = progress(total=round(self.total), description=f"measuring {self.method}", unit="s")
        self.ended, self.ticking = threading.Event(), threading.Thread(target=self.tick, daemon=True)
        self.ticking.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.ended.set()
        self.ticking.join()
        self.bar.close()

    def tick(self) -> None:
        """Advance the bar every second, also while a long block or warm-up prints nothing."""
        while not self.ended.wait(1):
            elapsed = round(time.perf_counter() - self.start)
            self.bar.total = max(self.bar.total or 0, elapsed + 1)
            self.bar.update(elapsed - self.bar.n)

    def update(self, line: str) -> None:
        """Show a progress line of the process; any other line (printed by a library) goes to the log."""
        message = None
        with contextlib.suppress(json.JSONDecodeError):
            message = json.loads(line)
        if not isinstance(message, dict):
            print(line, end="", file=sys.stderr)
            return
        if "watts" in message:
            self.bar.set_postfix(watts=f"{message['watts']:.1f}", refresh=False)
        self.bar.set_description(f"measuring {self.method}, {message.get('step', '')}")


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


def power_rows(traces: Iterable[Mapping[str, Any]], start: float) -> Iterator[dict[str, Any]]:
    """Yield the samples in order of time, in seconds since `start`; watts are empty where a reading failed."""
    for trace in traces:
        where = {key: trace[key] for key in (*WHERE, "block")}
        for t, watts, sensor_s in zip(trace["t_s"], trace["watts"], trace["sensor_s"], strict=True):
            yield {"t_s": f"{t - start:.6f}", "watts": "" if watts is None else f"{watts:.4f}", "sensor_s": sensor_s,
                   **where}  # fmt: skip


if __name__ == "__main__":
    command.run(main)
