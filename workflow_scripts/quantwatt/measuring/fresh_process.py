"""Measure one configuration in a fresh process: load, warm up, then latency, energy blocks and phases.

alternation.py starts `python -m quantwatt.measuring.fresh_process TASK.json` and reads the JSON file that the task
names as "output". The process prints its progress to stdout, one JSON object per line.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quantwatt.artifacts import failures, manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.data import prompts
from quantwatt.measuring import instruments, protocol
from quantwatt.measuring.meters import Meter, neighbours
from quantwatt.measuring.meters.trace import Trace
from quantwatt.measuring.settings import Measuring
from quantwatt.models import sampling as samplings
from quantwatt.models.sampling import Sampling, TextSampling


def main(argv: Sequence[str]) -> None:
    task = manifest.read_json(argv[0])
    try:
        with failures.expected():
            result = measure(task)
    except failures.ExpectedFailure as failure:
        result = {"status": failure.status, "reason": failure.reason}
    manifest.write_json(task["output"], result)


def measure(task: Mapping[str, Any]) -> dict[str, Any]:
    """Load the pipeline, measure it, and return the result that measure.py reads.

    Args:
        task: {"checkpoint", "sampling", "measuring", "device", "threads", "first", "last", "output"}. The first process
            of a configuration also measures idle power before and its phases; the last process measures idle power
            after.
    """
    from quantwatt.inference import checkpoint

    settings, device = Measuring.from_settings(task["measuring"]), task["device"]
    sampling = samplings.of(task["sampling"])
    meter, energy_reason = instruments.choose_meter(settings.metering, settings.block_s, device)
    with contextlib.closing(meter):
        instruments.set_threads(task["threads"])
        pipeline = checkpoint.load_pipeline(task["checkpoint"], device)
        batches = batches_of(pipeline, sampling, settings.images_per_batch, settings.prompts)
        result, blocks, traces = measure_process(
            [pipeline.prepare(*batch, sampling) for batch in batches],
            lambda: pipeline.phases(*batches[0], sampling) if task["first"] and settings.phases_s else {},
            meter,
            settings,
            instruments.synchronize_of(device),
            instruments.memory_of(device, pipeline),
            first=task["first"],
            last=task["last"],
        )
    count_tokens(result["phases"], pipeline, batches[0], sampling)
    result["energy_reason"] = energy_reason or result["energy_reason"]
    result["device"] = {**instruments.describe_device(device), **result["device"]}
    return {
        "status": "ok",
        "reason": None,
        **result,
        "blocks": [block_row(block) for block in blocks],
        "phases_apart": list(pipeline.family.PHASES_APART),
        "runs": run_rows(blocks, len(batches)),
        "traces": [trace_row(name, trace) for name, trace in traces],
    }


def measure_process(
    runs: Sequence[Callable[[], object]],
    make_phases: Callable[[], Mapping[str, Callable[[], object]]],
    meter: Meter,
    settings: Measuring,
    synchronize: Callable[[], object],
    memory: Callable[[], Mapping[str, Any] | None],
    *,
    first: bool,
    last: bool,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> tuple[dict[str, Any], list[protocol.Block], list[tuple[int | str, Trace]]]:
    """Measure latency, energy and phases of `runs`, each of which generates `images_per_batch` images.

    Args:
        runs: one callable per batch of prompts; the latency runs and every block call all of them, equally often.
        make_phases: function that returns {name: callable}, called once the blocks are done.
        memory: function that returns the peak memory so far, called after the warm-up.
        first, last: whether this is the first or last process of the configuration. The first measures idle power
            before the warm-up, the last after the phases.
    Returns:
        (fields of the result, [protocol.Block], [(number of the block or name of the idle time or phase, Trace)]).
    """
    images, cycle, traces = settings.images_per_batch, len(runs), []
    fields: dict[str, Any] = {
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
        rest("idle-before")  # not after the warm-up: the device would cool down again
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
    fields["phases"], phase_traces = protocol.measure_phases(
        make_phases(), meter, settings.phases_s, images, synchronize, clock
    )
    traces += phase_traces.items()
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
    fields["crosscheck"] = protocol.crosscheck(*(block.trace for block in blocks if not block.invalid))
    return fields, blocks, traces


def tell(**message: Any) -> None:
    """Print one line of JSON, which measure.py reads to show progress."""
    print(json.dumps(message), flush=True)


def tell_watts(block: protocol.Block) -> None:
    if block.energy_j is not None:
        tell(step="energy", watts=block.energy_j / block.seconds)


def batches_of(
    pipeline: Any, sampling: Sampling | TextSampling, n_images: int, n_batches: int
) -> list[tuple[Any, Any]]:
    """Return [(prompts, seeds)], the same for every method: the prompt file's first lines, and seeds from `seed` on.

    For a text model the batches hold the first sentences or windows.

    Raises:
        DataError: the file is missing or has fewer prompts.
    """
    if isinstance(sampling, TextSampling):
        texts, _ = pipeline.family.read(sampling.texts)
        return pipeline.batches(texts, sampling, n_images, n_batches)
    needed = n_images * n_batches
    asked = prompts.first(sampling.prompts, needed, sampling.cycle)
    if len(asked) < needed:
        raise DataError(
            f"{sampling.prompts}: {len(asked)} prompts are too few for images_per_batch: {n_images} and "
            f"prompts: {n_batches}."
        )
    starts = range(0, needed, n_images)
    return [(asked[i : i + n_images], [sampling.seed + i + j for j in range(n_images)]) for i in starts]


def count_tokens(
    phases: dict[str, dict[str, Any]], pipeline: Any, batch: Sequence[Any], sampling: Sampling | TextSampling
) -> None:
    """Add "tokens" to the phases of a text model: the tokens that a phase reads or writes per inference."""
    work = pipeline.family.work(pipeline.pipeline, batch[0], sampling)
    if work is None:
        return
    for name, tokens in (("forward", "tokens"), ("decode", "new_tokens")):
        if name in phases:
            phases[name]["tokens"] = work[tokens] / work["items"]


BLOCK_FIELDS = ("block", "images", "seconds", "energy_j", "integral_j", "invalid", "reason")


def block_row(block: protocol.Block) -> dict[str, Any]:
    """Return a block as JSON, with the joules of the secondary meters under "beside"."""
    return {name: getattr(block, name) for name in BLOCK_FIELDS} | {"beside": block.trace.beside or {}}


def run_rows(blocks: Sequence[protocol.Block], n_prompts: int) -> list[dict[str, Any]]:
    """Return [{"block", "run", "prompt", "t_s", "seconds", "energy_j"}]; the joules are the run's part of the trace."""
    rows = []
    for block in blocks:
        for run, (start, stop) in enumerate(block.runs):
            joules = None if block.invalid else block.trace.energy_between(start, stop)
            prompt = len(rows) % n_prompts  # the cycle continues from block to block
            rows.append({"block": block.block, "run": run, "prompt": prompt, "t_s": start, "seconds": stop - start,
                         "energy_j": joules})  # fmt: skip
    return rows


def trace_row(name: int | str, trace: Trace) -> dict[str, Any]:
    """Return a trace as JSON: seconds of the monotonic clock, which all processes share; values not read are null."""
    watts = [None if value != value else float(value) for value in trace.watts]
    sensor_s = [None if value != value else float(value) for value in trace.sensor_s]
    return {"block": name, "t_s": list(map(float, trace.timestamps_s)), "watts": watts, "sensor_s": sensor_s}


if __name__ == "__main__":
    from quantwatt.jobs import command

    command.end_with_parent()
    command.run(lambda: main(sys.argv[1:]))
