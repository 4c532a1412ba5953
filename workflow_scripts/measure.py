"""Measure latency, energy and memory of one model under one method and one sampling, beside the unquantized baseline.

Both are measured in fresh processes that take turns, so that whatever drifts meets both alike, and the ratio of the two
is that of neighbours. The baseline's own cell measures it twice: the A/A control, whose interval is the noise floor.

Writes measurement.json, every energy block (blocks.csv), every run in them (runs.csv) and the power samples
(power.csv). A method that is simulated on this device is not measured at all; running out of memory is a result, not a
failure.
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
from pathlib import Path

import numpy as np

from quantwatt import intervals
from quantwatt.artifacts import csv_files, manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.provenance import provenance
from quantwatt.jobs import command, gpus
from quantwatt.jobs.progress import progress
from quantwatt.measuring import fresh_process, protocol
from quantwatt.measuring.settings import Measuring

METHOD, BASELINE = "method", "baseline"
WHERE = ("configuration", "process")
BLOCK_COLUMNS = (*WHERE, *fresh_process.BLOCK_FIELDS, "beside")
RUN_COLUMNS = (*WHERE, "block", "run", "prompt", "t_s", "seconds", "energy_j")
POWER_COLUMNS = ("t_s", "watts", "sensor_s", *WHERE, "block")
LOADING_S = 8  # of a process, a first guess for the progress bar


def main(argv=None):
    args = parse_arguments(argv)
    gpus.claim(args.device, every=args.measuring.metering.gpus == "all")  # for the fresh processes, too
    record, found = measure_cell(args)
    blocks = [{**row, "beside": json.dumps(row["beside"]) if row["beside"] else ""} for row in rows_of(found, "blocks")]
    csv_files.write(args.blocks, BLOCK_COLUMNS, blocks)
    traces = sorted((row for row in rows_of(found, "traces") if row["t_s"]), key=lambda row: row["t_s"][0])
    start = traces[0]["t_s"][0] if traces else 0
    csv_files.write(args.runs, RUN_COLUMNS, [{**row, "t_s": row["t_s"] - start} for row in rows_of(found, "runs")])
    csv_files.write(args.power, POWER_COLUMNS, power_rows(traces, start))
    manifest.write_json(args.output, record)


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, type=Path, help="the checkpoint's manifest.json")
    parser.add_argument("--baseline", required=True, type=Path, help="the unquantized checkpoint's manifest.json")
    parser.add_argument("--sampling", required=True, type=json.loads, metavar="JSON")
    parser.add_argument(
        "--measuring",
        required=True,
        type=json.loads,
        metavar="JSON",
        help="meter and the keys of config.yaml's `measuring`",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads of torch; all without it")
    parser.add_argument("--not-asked", action="store_true", help="leave it unmeasured")
    parser.add_argument("--names", required=True, nargs=3, metavar=("MODEL", "METHOD", "SAMPLING"))
    parser.add_argument("--output", required=True, type=Path, help="measurement.json")
    parser.add_argument("--power", required=True, type=Path, help=f"power.csv: {', '.join(POWER_COLUMNS)}")
    parser.add_argument("--blocks", required=True, type=Path, help=f"blocks.csv: {', '.join(BLOCK_COLUMNS)}")
    parser.add_argument("--runs", required=True, type=Path, help=f"runs.csv: {', '.join(RUN_COLUMNS)}")
    args = parser.parse_args(argv)
    args.measuring = Measuring.from_settings(args.measuring, args.sampling.get("batch_size", 1))
    return args


def measure_cell(args):
    """(measurement.json's content, {configuration: [result of each process]}) of the cell that the arguments name."""
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
    found = {}
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
            found, no_baseline = take_turns(args)
            [failed] = [one for one in found[METHOD] if one["status"] != "ok"][:1] or [None]
            if failed:
                record.update(status=failed["status"], reason=failed["reason"])
                found = {}
            else:
                record.update(summarize(found, settings))
                record["ratio_reason"] = no_baseline or record["ratio_reason"]
    if record["status"] != "ok":
        record["energy_reason"] = record["reason"]
    packages = ("torch", "diffusers", "transformers", "nvidia-ml-py")
    record["provenance"] = {
        **provenance(packages),
        "seed": args.sampling.get("seed"),
        "checkpoint_sha256": manifest.sha256(args.checkpoint),
    }
    return record, found


def schedule(n_processes, configurations):
    """[(configuration, process)]: pairs of neighbours, the order within a pair turning from one to the next."""
    turns = [configurations[:: 1 if process % 2 == 0 else -1] for process in range(n_processes)]
    return [(name, process) for process, turn in enumerate(turns) for name in turn]


def take_turns(args):
    """({configuration: [result of each process]}, why there is no baseline or None).

    A configuration that fails is not tried again; where it is the method, the rest is not run.
    """
    settings = args.measuring
    n = settings.processes
    shared = {
        "sampling": args.sampling,
        "measuring": settings.to_settings(),
        "device": args.device,
        "threads": args.threads,
    }
    paths = {METHOD: args.checkpoint, BASELINE: args.baseline}
    found, baseline_failure = {METHOD: [], BASELINE: []}, None
    with tempfile.TemporaryDirectory() as folder, Bar(args.names[1], settings) as bar:
        for name, process in schedule(n, [BASELINE, METHOD]):
            if name == BASELINE and baseline_failure:
                continue
            task = {**shared, "checkpoint": str(paths[name].resolve()), "first": process == 0, "last": process == n - 1,
                    "output": f"{folder}/result.json"}  # fmt: skip
            result = run_process(task, f"{folder}/task.json", bar)
            found[name].append(result)
            if result["status"] != "ok" and name == METHOD:
                return {METHOD: [result]}, None
            if result["status"] != "ok":
                baseline_failure = f"the baseline: {result['reason']}"
    if baseline_failure:
        del found[BASELINE]
    return found, baseline_failure


def run_process(task, path, bar):
    """The result of one fresh process.

    Raises:
        DataError: it ended with an error, which it has printed.
    """
    manifest.write_json(path, task)
    scripts = str(Path(__file__).parent)
    paths = [scripts, *filter(None, [os.environ.get("PYTHONPATH")])]
    command_line = [sys.executable, "-m", "quantwatt.measuring.fresh_process", path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with subprocess.Popen(command_line, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:
            bar.update(line)
    if process.returncode == -9:
        reason = "the process was killed, which the system does most often for want of memory"
        return {"status": "oom", "reason": reason}
    if process.returncode != 0:
        raise DataError(f"measuring {task['checkpoint']} failed; the error is printed above.")
    result = manifest.read_json(task["output"])
    Path(task["output"]).unlink()
    return result


class Bar:
    """Seconds done of those planned, what is being done, and the watts of the last block."""

    def __init__(self, method, settings):
        once = 2 * settings.idle_s + 3 * settings.phases_s
        energy_s = settings.blocks_per_process * settings.block_s
        each = LOADING_S + settings.warmup_s + settings.latency_s_per_process + energy_s
        self.total = 2 * (once + settings.processes * each)
        self.method, self.start = method, time.perf_counter()

    def __enter__(self):
        self.bar = progress(total=round(self.total), description=f"measuring {self.method}", unit="s")
        self.ended, self.ticking = threading.Event(), threading.Thread(target=self.tick, daemon=True)
        self.ticking.start()
        return self

    def __exit__(self, *exception):
        self.ended.set()
        self.ticking.join()
        self.bar.close()

    def tick(self):
        """Move on every second, also while a long block or warm-up says nothing."""
        while not self.ended.wait(1):
            elapsed = round(time.perf_counter() - self.start)
            self.bar.total = max(self.bar.total, elapsed + 1)
            self.bar.update(elapsed - self.bar.n)

    def update(self, line):
        """A line that a process wrote: its own words, or a library's, which go to the log."""
        told = None
        with contextlib.suppress(json.JSONDecodeError):
            told = json.loads(line)
        if not isinstance(told, dict):
            print(line, end="", file=sys.stderr)
            return
        if "watts" in told:
            self.bar.set_postfix(watts=f"{told['watts']:.1f}", refresh=False)
        self.bar.set_description(f"measuring {self.method}, {told.get('step', '')}")


def summarize(found, settings):
    """Fields of measurement.json from the results of the processes."""
    mine, images = found[METHOD], settings.images_per_batch
    fields = {**summarize_configuration(mine, settings), "n_processes": len(mine)}
    fields["processes"] = [
        {"latency_s": protocol.summarize_latency([result["latency_s"]], images), "memory": result["memory"]}
        for result in mine
    ]
    blocks = [block for result in mine for block in result["blocks"]]
    parts = {name: phase for name, phase in mine[0]["phases"].items() if name not in mine[0]["phases_apart"]}
    fields |= {
        "n_blocks": sum(not block["invalid"] for block in blocks),
        "blocks": rows_of({METHOD: mine}, "blocks"),
        "meter": mine[0]["meter"],
        "estimated": mine[0]["estimated"],
        "device": mine[0]["device"] | {"temperature_after_c": mine[-1]["device"]["temperature_after_c"]},
        "others": [result["others"] for result in mine],
        "throttled_s": throttled([result["device"].get("throttled_s") for result in mine]),
        "sampler": summed(result["sampler"] for result in mine),
        "sampler_effect": sampler_effect(mine, images),
        "crosscheck": protocol.verdict_of(*sums(result["crosscheck"] for result in mine)),
        "warm_up": [result["warm_up"] for result in mine],
        "phases": mine[0]["phases"],
        "phases_apart": mine[0]["phases_apart"],
        "phases_check": {
            key: protocol.check_phases(parts, (fields[key] or {}).get(centre), key)
            for key, centre in (("latency_s", "median"), ("energy_j", "value"))
        },
    }
    if BASELINE in found:
        other = found[BASELINE]
        fields["baseline"] = summarize_configuration(other, settings)
        seconds = [[np.divide(result["latency_s"], images) for result in side] for side in (mine, other)]
        ratio = {"latency_s": intervals.nested_ratio(*seconds, np.median), "energy_j": None}
        if fields["energy_j"] and fields["baseline"]["energy_j"]:
            ratio["energy_j"] = intervals.nested_ratio(*map(protocol.joules_per_image, map(blocks_of, (mine, other))))
        fields["ratio"] = {key: value and with_bounds(value) for key, value in ratio.items()}
        why = fields["baseline"]["energy_reason"]
        fields["ratio_reason"] = why and f"the baseline: {why}"
    return fields


def with_bounds(interval):
    return dict(zip(("value", "low", "high"), map(manifest.finite, interval), strict=True))


def sampler_effect(results, images):
    """How much longer an image takes in the blocks, with the sampler, than in the latency runs; None without blocks."""
    sampled = [[b["seconds"] / b["images"] for b in result["blocks"] if not b["invalid"]] for result in results]
    if not all(sampled):
        return None
    alone = [np.divide(result["latency_s"], images) for result in results]
    return with_bounds(intervals.nested_ratio(sampled, alone))


def throttled(spells):
    """{cause: seconds} that the clocks were held down, of all processes; None where that is not told.

    Each process counts from before its blocks until after its phases.
    """
    if None in spells:
        return None
    return {cause: sum(spell[cause] for spell in spells) for cause in spells[0]}


def summarize_configuration(results, settings):
    """Latency, energy and memory of one configuration from the results of its processes."""
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


def beside(blocks):
    """{device: joules per image} that were read beside the meter's own device, over good blocks; None with a gap."""
    good = [block for block in blocks if not block["invalid"]]
    images = sum(block["images"] for block in good)
    names = dict.fromkeys(name for block in good for name in block["beside"])
    joules = {name: [block["beside"].get(name) for block in good] for name in names}
    return {name: None if None in found else sum(found) / images for name, found in joules.items()}


def summarize_memory(peaks):
    value, low, high = intervals.student_mean([peak["peak_mb"] for peak in peaks])
    reserved = [peak["reserved_mb"] for peak in peaks]
    return {"value": value, "low": manifest.finite(low), "high": manifest.finite(high), "source": peaks[0]["source"],
            "model": peaks[0]["model_mb"],
            "reserved": None if None in reserved else sum(reserved) / len(reserved)}  # fmt: skip


def blocks_of(results):
    """The processes' blocks as objects again, without their traces."""
    fields = fresh_process.BLOCK_FIELDS
    return [
        [protocol.Block(**{name: row[name] for name in fields}, trace=None) for row in result["blocks"]]
        for result in results
    ]


def summed(samplers):
    """Counts of several processes' samplers in one; None where there was none."""
    samplers = [sampler for sampler in samplers if sampler]
    if not samplers:
        return None
    counts = {key: sum(sampler[key] for sampler in samplers) for key in samplers[0] if key != "interval_ms"}
    return {"interval_ms": samplers[0]["interval_ms"], **counts}


def sums(checks):
    checks = [check for check in checks if check]
    return sum(check["counter_j"] for check in checks), sum(check["integral_j"] for check in checks)


def rows_of(found, key):
    return [
        {"configuration": name, "process": process, **row}
        for name, results in found.items()
        for process, result in enumerate(results)
        for row in result.get(key, [])
    ]


def power_rows(traces, start):
    """Samples in order of time, in seconds since `start`; watts are empty where a reading failed."""
    for trace in traces:
        where = {key: trace[key] for key in (*WHERE, "block")}
        for t, watts, sensor_s in zip(trace["t_s"], trace["watts"], trace["sensor_s"], strict=True):
            yield {"t_s": f"{t - start:.6f}", "watts": "" if watts is None else f"{watts:.4f}", "sensor_s": sensor_s,
                   **where}  # fmt: skip


if __name__ == "__main__":
    command.run(main)
