"""One configuration in a process of its own: load, warm up, then latency, energy blocks and phases.

measure.py starts it, `python -m quantwatt.measuring.fresh_process TASK.json`, and reads the JSON file that the task
names. On stdout it tells what it is doing, one JSON object a line.
"""

import contextlib
import json
import resource
import sys
import time
from pathlib import Path

from quantwatt.artifacts import errors, manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.provenance import provenance
from quantwatt.data import prompts
from quantwatt.measuring import cpus, protocol
from quantwatt.measuring.meters import Meter, Metering, MeterUnavailable, Together, companions, neighbours, open_meter
from quantwatt.measuring.settings import Measuring

NVML_BLOCK_S = 5  # readings are published every 100 ms: a shorter block is off by more than 2 %


def main(argv):
    task = manifest.read_json(argv[0])
    try:
        with errors.expected():
            result = measure(task)
    except errors.ExpectedFailure as failure:
        result = {"status": failure.status, "reason": failure.reason}
    manifest.write_json(task["output"], result)


def measure(task):
    """Everything that needs the pipeline.

    Args:
        task: {"checkpoint", "sampling", "measuring", "device", "threads", "first", "last", "output"}; a
            configuration's first process also rests before and loops its phases, the last rests after.
    """
    from quantwatt.inference import checkpoint

    settings, device, sampling = Measuring.from_settings(task["measuring"]), task["device"], task["sampling"]
    meter, energy_reason = choose_meter(settings.metering, settings.block_s, device)
    with contextlib.closing(meter):
        set_threads(task["threads"])
        pipeline = checkpoint.load_pipeline(task["checkpoint"], device)
        batches = batches_of(pipeline, sampling, settings.images_per_batch, settings.prompts)
        result, blocks, traces = measure_process(
            [pipeline.prepare(*batch, sampling) for batch in batches],
            lambda: pipeline.phases(*batches[0], sampling) if task["first"] and settings.phases_s else {},
            meter,
            settings,
            synchronize_of(device),
            memory_of(device, pipeline),
            first=task["first"],
            last=task["last"],
        )
    count_tokens(result["phases"], pipeline, batches[0], sampling)
    result["energy_reason"] = energy_reason or result["energy_reason"]
    result["device"] = {**describe_device(device), **result["device"]}
    return {
        "status": "ok",
        "reason": None,
        **result,
        "blocks": [block_row(block) for block in blocks],
        "phases_apart": list(pipeline.family.PHASES_APART),
        "runs": run_rows(blocks, len(batches)),
        "traces": [trace_row(*named) for named in traces],
    }


def measure_process(
    runs,
    make_phases,
    meter: Meter,
    settings: Measuring,
    synchronize,
    memory,
    *,
    first: bool,
    last: bool,
    clock=time.perf_counter,
    sleep=time.sleep,
):
    """Latency, energy and phases of `runs`, each of which generates `images_per_batch` images.

    Args:
        runs: one callable per batch of prompts; latency and every block go through all of them, equally often.
        make_phases: function that returns {name: callable}, called once the blocks are done.
        memory: function that returns the peak so far, read after the warm-up.
        first, last: of its configuration's processes; the first rests before the warm-up, the last after the phases.
    Returns:
        (fields of the result, [Block], [(block or spell, Trace)]).
    """
    images, cycle, traces = settings.images_per_batch, len(runs), []
    fields = {
        "latency_s": None,
        "meter": meter.name,
        "estimated": meter.estimated,
        "energy_reason": None,
        "idle_w": [],
        "phases": {},
        "sampler": None,
        "crosscheck": None,
        "others": None,
    }

    def rest(name):
        if settings.idle_s > 0 and meter.name != "none":
            tell(step=name)
            watts, trace = protocol.idle_power(meter, settings.idle_s, sleep)
            traces.append((name, trace))
            fields["idle_w"] += [] if watts is None else [watts]

    if first:
        rest("idle-before")  # and not after the warm-up, which it would undo
    tell(step="warm-up")
    n_runs, slope = protocol.warm_up(
        protocol.Cycle(runs), settings.warmup_s, synchronize, clock,
        lambda: meter.provenance().get("temperature_c"), settings.steady_s,
    )  # fmt: skip
    fields |= {"memory": memory(), "warm_up": {"runs": n_runs, "slope_c_per_min": slope}}
    tell(step="latency")
    seconds = protocol.measure_latency(
        protocol.Cycle(runs), settings.latency_s_per_process, synchronize=synchronize, clock=clock, cycle=cycle
    )
    before = meter.provenance()
    fields |= {"latency_s": list(seconds), "device": {**before, "temperature_after_c": None}}
    if meter.name == "none":
        fields["energy_reason"] = meter.stop().fault
        return fields, [], []
    tell(step="energy")
    watch = neighbours.Watch(meter)
    watch.start()
    blocks = protocol.measure_energy(
        protocol.Cycle(runs), meter, settings.block_s, settings.blocks_per_process, images, synchronize,
        after_block=tell_watts, clock=clock, cycle=cycle,
    )  # fmt: skip
    fields["others"] = watch.stop().record()
    traces += [(block.block, block.trace) for block in blocks]
    fields["phases"], of_phases = protocol.measure_phases(
        make_phases(), meter, settings.phases_s, images, synchronize, clock
    )
    traces += of_phases.items()
    if last:
        rest("idle-after")
    after = meter.provenance()
    fields["device"] |= {
        "temperature_after_c": after.get("temperature_c"),
        "throttled_s": {
            cause: seconds - before["throttled_s"][cause] for cause, seconds in (after.get("throttled_s") or {}).items()
        }
        if before.get("throttled_s")
        else None,
    }
    fields["sampler"] = {
        "interval_ms": before["interval_ms"],
        "n_samples": sum(len(trace.watts) for _, trace in traces),
        "n_missed": sum(trace.n_missed for _, trace in traces),
        "n_zero": sum(trace.n_zero for _, trace in traces),
        **{key: sum(trace.sampler[key] for _, trace in traces if trace.sampler) for key in ("cpu_s", "wall_s")},
    }
    fields["crosscheck"] = protocol.crosscheck(*(block.trace for block in blocks if not block.void))
    return fields, blocks, traces


def tell(**what):
    """One line of JSON for the process that waits for this one."""
    print(json.dumps(what), flush=True)


def tell_watts(block):
    if block.energy_j is not None:
        tell(step="energy", watts=block.energy_j / block.seconds)


def batches_of(pipeline, sampling, n_images, n_batches):
    """[(prompts, seeds)], the same for every method: the prompt file's first lines, the sampling's seed and on.

    Of a text model the first sentences or windows.

    Raises:
        DataError: the file is missing or has fewer prompts.
    """
    if "texts" in sampling:
        texts, _ = pipeline.family.read(sampling["texts"])
        return pipeline.batches(texts, sampling, n_images, n_batches)
    needed = n_images * n_batches
    asked = prompts.first(sampling, needed)
    if len(asked) < needed:
        raise DataError(
            f"{sampling['prompts']}: {len(asked)} prompts are too few for images_per_batch: {n_images} and "
            f"prompts: {n_batches}."
        )
    starts = range(0, needed, n_images)
    return [(asked[i : i + n_images], [sampling["seed"] + i + j for j in range(n_images)]) for i in starts]


def count_tokens(phases, pipeline, batch, sampling):
    """Add to the phases of a text model how many tokens of one inference they read or write: "tokens"."""
    work = pipeline.family.work(pipeline.pipeline, batch[0], sampling)
    if work is None:
        return
    for name, tokens in (("forward", "tokens"), ("decode", "new_tokens")):
        if name in phases:
            phases[name]["tokens"] = work[tokens] / work["items"]


def choose_meter(settings: Metering, block_s: float, device: str) -> tuple[Meter, str | None]:
    """(meter, why there is no energy or None): a meter that this machine cannot read leaves energy empty.

    Args:
        block_s: seconds of the shortest block that will be read.
    Raises:
        DataError: the blocks are too short for the meter.
    """
    try:
        meter = open_meter(settings, device)
    except MeterUnavailable as unavailable:
        print(f"no energy: {unavailable}", file=sys.stderr)
        return open_meter(Metering()), str(unavailable)
    if meter.name == "nvml" and block_s < NVML_BLOCK_S and not meter.provenance()["fake"]:
        meter.close()
        raise DataError(f"measuring.block_s is {block_s}, and a GPU's readings need {NVML_BLOCK_S} s or more.")
    beside = companions(meter, settings, device)
    return (Together(meter, beside) if beside else meter), None


def set_threads(threads):
    if threads is not None:
        import torch

        torch.set_num_threads(min(threads, max(1, int(cpus.count().usable))))  # a quota would hold more up


def synchronize_of(device):
    if device == "cpu":
        return protocol.nothing
    import torch

    return torch.cuda.synchronize


def memory_of(device, pipeline):
    """A function that returns what `peak_memory_of` tells, and "model_mb": the pipeline's own tensors' share."""
    from quantwatt.measuring.module_memory import held_bytes

    peak = peak_memory_of(device)
    return lambda: {**peak(), "model_mb": held_bytes(pipeline.modules()) / 1e6}


def peak_memory_of(device):
    """A function that returns {"peak_mb", "reserved_mb", "allocated_mb", "source"} of this process up to now.

    Of a CPU the middle two are None.
    """
    if device == "cpu":
        return lambda: {
            "peak_mb": peak_resident_bytes() / 1e6,
            "reserved_mb": None,
            "allocated_mb": None,
            "source": "peak RSS of a fresh process",
        }
    import torch

    return lambda: {
        "peak_mb": torch.cuda.max_memory_allocated() / 1e6,
        "reserved_mb": torch.cuda.max_memory_reserved() / 1e6,
        "allocated_mb": torch.cuda.memory_allocated() / 1e6,
        "source": "torch.cuda peak allocated",
    }


def peak_resident_bytes():
    """This process's peak resident set. Linux's ru_maxrss starts at the parent's peak, VmHWM does not."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def describe_device(device):
    """The device as torch knows it; the meter's own words come over these."""
    import torch

    name = torch.cuda.get_device_name(0) if device == "cuda" else provenance()["cpu"]
    return {
        "name": name,
        "kind": device,
        "uuid_hash": None,
        "driver": None,
        "power_limit_w": None,
        "threads": torch.get_num_threads(),
    }


BLOCK_FIELDS = ("block", "images", "seconds", "energy_j", "integral_j", "void", "reason")


def block_row(block):
    """A block as JSON, with the joules that companions of the meter read beside it."""
    return {name: getattr(block, name) for name in BLOCK_FIELDS} | {"beside": block.trace.beside or {}}


def run_rows(blocks, n_prompts):
    """[{"block", "run", "prompt", "t_s", "seconds", "energy_j"}]: a run's joules are its part of the block's trace."""
    rows = []
    for block in blocks:
        for run, (start, stop) in enumerate(block.runs):
            joules = None if block.void else block.trace.energy_between(start, stop)
            prompt = len(rows) % n_prompts  # the cycle goes on from block to block
            rows.append({"block": block.block, "run": run, "prompt": prompt, "t_s": start, "seconds": stop - start,
                         "energy_j": joules})  # fmt: skip
    return rows


def trace_row(name, trace):
    """A trace as JSON: seconds of the monotonic clock, which all processes share, and watts, null where not read."""
    watts = [None if value != value else float(value) for value in trace.watts]
    sensor_s = [None if value != value else float(value) for value in trace.sensor_s]
    return {"block": name, "t_s": list(map(float, trace.timestamps_s)), "watts": watts, "sensor_s": sensor_s}


if __name__ == "__main__":
    from quantwatt.jobs import command

    command.end_with_parent()
    command.run(lambda: main(sys.argv[1:]))
