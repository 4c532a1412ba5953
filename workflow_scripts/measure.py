"""Measure latency, energy and memory of one model under one method and one sampling.

Writes measurement.json, every energy block (blocks.csv) and the power samples (power.csv). A method that is
simulated on this device is not measured at all; running out of memory is a result, not a failure.
"""

import argparse
import contextlib
import csv
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from quantwatt import command, failures, manifest, measuring
from quantwatt.meters import MeterUnavailable, open_meter
from quantwatt.progress import progress

NVML_BLOCK_S = 5  # readings are published every 100 ms: a shorter block is off by more than 2 %
MEMORY_BUDGET_S = 60  # fresh processes for the peak memory are repeated within this
BLOCK_COLUMNS = ("process", "block", "images", "seconds", "energy_j", "integral_j", "void", "reason")


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    args = parse_arguments(argv)
    if args.peak_memory:
        return print_peak_memory(args)
    record, blocks, traces = measure_cell(args, argv)
    write_blocks(args.blocks, blocks)
    write_power(args.power, traces)
    manifest.write_json(args.output, record)


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, type=Path, help="the checkpoint's manifest.json")
    parser.add_argument("--sampling", required=True, type=json.loads, metavar="JSON")
    parser.add_argument(
        "--measuring",
        required=True,
        type=json.loads,
        metavar="JSON",
        help="meter, block_s, blocks, idle_s, latency_s, warmup_s, images_per_batch; optional: interval_ms, "
        "memory_repeats, idle_w and full_w (meter estimate)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads of torch; all without it")
    parser.add_argument("--names", required=True, nargs=3, metavar=("MODEL", "METHOD", "SAMPLING"))
    parser.add_argument("--output", required=True, type=Path, help="measurement.json")
    parser.add_argument("--power", required=True, type=Path, help="power.csv: t_s, watts, block")
    parser.add_argument("--blocks", required=True, type=Path, help=f"blocks.csv: {', '.join(BLOCK_COLUMNS)}")
    parser.add_argument("--peak-memory", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def measure_cell(args, argv):
    """(measurement.json's content, [Block], [(name, Trace)]) of the cell that the arguments name."""
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
        "images_per_batch": settings["images_per_batch"],
        "latency_s": None,
        "energy_j": None,
        "energy_reason": None,
        "memory_mb": None,
        "meter": settings["meter"],
        "estimated": False,
        "block_s": settings["block_s"],
        "n_blocks": 0,
        "blocks": [],
        "sampler": None,
        "device": {"name": None, "kind": args.device, "fake": False},
        "crosscheck": None,
    }
    blocks, traces = [], []
    checkpoint = manifest.read_json(args.checkpoint)
    if checkpoint["status"] != "ok":
        record.update(status=checkpoint["status"], reason=checkpoint["reason"])
    else:
        from quantwatt import checkpoint as checkpoints

        compute, kernel, reason = checkpoints.compute_of(args.checkpoint, args.device)
        record.update(compute=compute, kernel=kernel)
        if compute != "real":
            record.update(status=compute, reason=reason)
        else:
            try:
                measured, blocks, traces = measure_real(args, argv)
                record.update(measured)
            except failures.ExpectedFailure as failure:
                record.update(status=failure.status, reason=failure.reason)
    if record["status"] != "ok":
        record["energy_reason"] = record["reason"]
    packages = ("torch", "diffusers", "transformers", "nvidia-ml-py")
    record["provenance"] = {
        **manifest.provenance(packages),
        "seed": args.sampling["seed"],
        "checkpoint_sha256": manifest.sha256(args.checkpoint),
    }
    return record, blocks, traces


def measure_real(args, argv):
    """Everything that needs the pipeline: memory, then latency, then energy between two idle spells."""
    from quantwatt import checkpoint

    settings = args.measuring
    prompts, seeds = first_batch(args.sampling, settings["images_per_batch"])
    meter, energy_reason = choose_meter(settings, args.device)
    with contextlib.closing(meter):
        # The child processes come first: beside a loaded pipeline they might not fit.
        memory = memory_of_processes(argv, settings.get("memory_repeats", 3)) if args.device == "cpu" else None
        with failures.expected():
            set_threads(args.threads)
            pipeline = checkpoint.load_pipeline(args.checkpoint, args.device)

            def run():
                pipeline.generate(prompts, seeds, args.sampling)

            if args.device == "cuda":
                memory = memory_on_device(run)
            measured, blocks, traces = measure_pipeline(run, meter, settings, synchronize_of(args.device))
        measured["memory_mb"] = memory
        if energy_reason:
            measured["energy_reason"] = energy_reason
        measured["device"] = {**describe_device(args.device), **measured["device"]}
        return measured, blocks, traces


def measure_pipeline(run, meter, settings, synchronize, clock=time.perf_counter, sleep=time.sleep):
    """Latency and energy of `run`, which generates `images_per_batch` images.

    Returns:
        (fields of measurement.json, [Block], [(name, Trace)]).
    """
    images = settings["images_per_batch"]
    measuring.warm_up(run, settings["warmup_s"], synchronize, clock)
    seconds = measuring.measure_latency(run, settings["latency_s"], synchronize=synchronize, clock=clock)
    latency = measuring.summarize_latency(seconds, images)
    before = meter.provenance()
    fields = {
        "latency_s": latency,
        "energy_j": None,
        "energy_reason": None,
        "meter": meter.name,
        "estimated": meter.estimated,
        "device": {**before, "temperature_after_c": None},
    }
    if meter.name == "none":
        fields["energy_reason"] = meter.stop().fault
        return fields, [], []
    traces, idle = [], []

    def rest(name):
        if settings["idle_s"] > 0:
            watts, trace = measuring.idle_power(meter, settings["idle_s"], sleep)
            traces.append((name, trace))
            idle.extend([] if watts is None else [watts])

    rest("idle-before")
    total = round(settings["blocks"] * settings["block_s"] / latency["median"])
    with progress(total=total, description="energy", unit="image") as bar:
        blocks = measuring.measure_energy(
            run, meter, settings["block_s"], settings["blocks"], images, synchronize, bar, clock=clock
        )
    traces += [(block.block, block.trace) for block in blocks]
    rest("idle-after")
    idle_w = sum(idle) / len(idle) if idle else None
    fields["energy_j"], fields["energy_reason"] = measuring.summarize_energy(blocks, settings["blocks"], idle_w)
    fields["device"]["temperature_after_c"] = meter.provenance().get("temperature_c")
    fields |= {
        "n_blocks": sum(not block.void for block in blocks),
        "blocks": [block_row(block) for block in blocks],
        "sampler": {
            "interval_ms": before["interval_ms"],
            "n_samples": sum(len(trace.watts) for _, trace in traces),
            "n_missed": sum(trace.n_missed for _, trace in traces),
            "n_zero": sum(trace.n_zero for _, trace in traces),
        },
        "crosscheck": measuring.crosscheck(*(block.trace for block in blocks)),
    }
    return fields, blocks, traces


def first_batch(sampling, n_images):
    """(prompts, seeds), the same for every method: the prompt file's first lines, the sampling's seed and on.

    Raises:
        DataError: the file is missing or has fewer prompts.
    """
    try:
        prompts = Path(sampling["prompts"]).read_text().splitlines()[:n_images]
    except OSError as error:
        raise manifest.DataError(f"{sampling['prompts']}: the prompts cannot be read ({error.strerror}).") from error
    if len(prompts) < n_images:
        raise manifest.DataError(
            f"{sampling['prompts']}: {len(prompts)} prompts are too few for images_per_batch: {n_images}."
        )
    return prompts, [sampling["seed"] + index for index in range(n_images)]


def choose_meter(settings, device):
    """(meter, why there is no energy or None): a meter that this machine cannot read leaves energy empty.

    Raises:
        DataError: the blocks are too short for the meter.
    """
    try:
        meter = open_meter(settings["meter"], settings, device)
    except MeterUnavailable as unavailable:
        print(f"no energy: {unavailable}", file=sys.stderr)
        return open_meter("none"), str(unavailable)
    if meter.name == "nvml" and settings["block_s"] < NVML_BLOCK_S and not meter.provenance()["fake"]:
        meter.close()
        raise manifest.DataError(
            f"measuring.block_s is {settings['block_s']}, and a GPU's readings need {NVML_BLOCK_S} s or more."
        )
    return meter, None


def set_threads(threads):
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def synchronize_of(device):
    if device == "cpu":
        return measuring.nothing
    import torch

    return torch.cuda.synchronize


def memory_on_device(run, repeats=3):
    """Peak that torch allocated on the GPU while generating one batch, weights included."""
    import torch

    peaks = []
    for _ in range(repeats):
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        peaks.append(torch.cuda.max_memory_allocated())
    return summarize_memory(peaks, "torch.cuda peak allocated")


def memory_of_processes(argv, repeats):
    """Peak resident memory of fresh processes that load this cell and generate one batch."""
    peaks, start = [], time.perf_counter()
    while not peaks or (len(peaks) < repeats and time.perf_counter() - start < MEMORY_BUDGET_S):
        child = subprocess.run([sys.executable, __file__, *argv, "--peak-memory"], stdout=subprocess.PIPE, text=True)
        if child.returncode == -9:
            raise failures.ExpectedFailure(
                "oom", "the system ended the process that loads this cell: too little memory"
            )
        if child.returncode != 0:
            raise RuntimeError("the process that measures the peak memory failed; its error is printed above.")
        answer = json.loads(child.stdout.splitlines()[-1])
        if "status" in answer:
            raise failures.ExpectedFailure(answer["status"], answer["reason"])
        peaks.append(answer["peak_bytes"])
    return summarize_memory(peaks, "peak RSS of a fresh process")


def print_peak_memory(args):
    """The hidden half of `memory_of_processes`: load, generate one batch, print the peak as JSON."""
    from quantwatt import checkpoint

    try:
        with failures.expected():
            set_threads(args.threads)
            pipeline = checkpoint.load_pipeline(args.checkpoint, args.device)
            prompts, seeds = first_batch(args.sampling, args.measuring["images_per_batch"])
            pipeline.generate(prompts, seeds, args.sampling)
        print(json.dumps({"peak_bytes": peak_resident_bytes()}))
    except failures.ExpectedFailure as failure:
        print(json.dumps({"status": failure.status, "reason": failure.reason}))


def peak_resident_bytes():
    """This process's peak resident set. Linux's ru_maxrss starts at the parent's peak, VmHWM does not."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def summarize_memory(peaks, source):
    value, low, high = measuring.intervals.student_mean([peak / 1e6 for peak in peaks])
    return {"value": value, "low": manifest.finite(low), "high": manifest.finite(high), "source": source}


def describe_device(device):
    """The device as torch knows it; the meter's own words come over these."""
    import torch

    name = torch.cuda.get_device_name(0) if device == "cuda" else manifest.provenance()["cpu"]
    return {
        "name": name,
        "kind": device,
        "uuid_hash": None,
        "driver": None,
        "power_limit_w": None,
        "threads": torch.get_num_threads(),
    }


def block_row(block):
    values = {name: getattr(block, name) for name in BLOCK_COLUMNS[1:]}
    return {"process": 0, **values}


def write_blocks(path, blocks):
    """blocks.csv; only its header where nothing was measured."""
    with manifest.atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, BLOCK_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(block_row(block) for block in blocks)


def write_power(path, traces):
    """power.csv: seconds since the first sample, watts (empty where one failed), block or idle spell."""
    with manifest.atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("t_s", "watts", "block"))
        start = next((trace.timestamps_s[0] for _, trace in traces if len(trace.timestamps_s)), 0.0)
        for name, trace in traces:
            for t, watts in zip(trace.timestamps_s - start, trace.watts, strict=True):
                writer.writerow((f"{t:.6f}", "" if watts != watts else f"{watts:.4f}", name))


if __name__ == "__main__":
    command.run(main)
