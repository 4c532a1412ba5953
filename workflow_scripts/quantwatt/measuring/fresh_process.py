"""Measure in a fresh process: memory of one checkpoint, or time and energy of a method and its baseline in pairs.

`python -m quantwatt.measuring.fresh_process TASK.json` does one task and writes the JSON file that the task names as
"output". Without an argument it waits for tasks on its input, and forks a process for each: it has imported the
libraries, but computed nothing, so that a fork is as clean as a process of its own and starts in a moment. Progress is
printed to stdout, one JSON object per line.
"""

import contextlib
import importlib
import json
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from quantwatt.artifacts import failures, instructions, manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.data import prompts
from quantwatt.jobs import command, lean_imports
from quantwatt.measuring import cpus, instruments, pairs, protocol
from quantwatt.measuring.meters import Meter, neighbours
from quantwatt.measuring.meters.trace import Trace, empty_trace
from quantwatt.measuring.pairs import Placed
from quantwatt.measuring.settings import Measuring
from quantwatt.models import sampling as samplings
from quantwatt.models.sampling import Sampling, TextSampling

THREADS = Path("/proc/self/task")


def main(argv: Sequence[str]) -> None:
    if not argv:
        return serve(sys.stdin)
    task = manifest.read_json(argv[0])
    computed: dict[str, Any] = {}
    try:
        with failures.expected():
            if task["memory"]:
                computed |= computed_by(task)
            result = computed if "status" in computed else (memory if task["memory"] else measure)(task)
    except failures.ExpectedFailure as failure:
        result = {"status": failure.status, "reason": failure.reason}
    manifest.write_json(task["output"], computed | result)
    return None


def serve(paths: Iterable[str]) -> None:
    """Do the task of each line, the path of a task's file, in a fork of this process; print how each ended.

    A task of "modules" is to import them here, before a measured process is forked. A library that starts threads at
    import would leave forks without them, so that every further task gets an interpreter of its own.
    """
    import torch  # noqa: F401

    warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside OpenBLAS's threads, which it ends before
    can_fork = True
    for line in paths:
        path = line.strip()
        if modules := manifest.read_json(path).get("modules"):
            logging.disable()  # what libraries say at import, they have said where these were imported first
            for name in modules:
                with contextlib.suppress(Exception):
                    lean_imports.load(name)
                    importlib.import_module(name)
            logging.disable(logging.NOTSET)
            tell(ended=0)
            continue
        if not can_fork:
            tell(ended=subprocess.run([sys.executable, "-m", MODULE, path], check=False).returncode)
            continue
        pid = os.fork()
        if pid == 0:
            command.end_with_parent()
            main([path])
            end()
        can_fork = len(list(THREADS.iterdir())) == 1
        _, status = os.waitpid(pid, 0)
        tell(ended=os.waitstatus_to_exitcode(status))


def end() -> NoReturn:
    """End this process at once: taking down thousands of modules would take longer than loading a small model."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def computed_by(task: Mapping[str, Any]) -> dict[str, Any]:
    """{"compute", "kernel"} of the method's checkpoint, with "status" and "reason" where it is not to be measured."""
    from quantwatt.inference import checkpoint

    compute, kernel, reason = checkpoint.compute_of(task["checkpoints"][pairs.METHOD], task["device"])
    fields = {"compute": compute, "kernel": kernel}
    if compute != "real":
        return fields | {"status": compute, "reason": reason}
    return fields


def memory(task: Mapping[str, Any]) -> dict[str, Any]:
    """Load one checkpoint, run every batch, and return the peak memory of this process, and what a cache has skipped.

    What the loading has imported is printed, for `serve` to import it meanwhile.

    Args:
        task: {"checkpoints": {METHOD: path}, "sampling", "measuring", "device", "threads", "output"}.
    """
    from quantwatt.inference import checkpoint

    settings, device = Measuring.from_settings(task["measuring"]), task["device"]
    instruments.set_threads(task["threads"])
    available = instruments.available_bytes(device)
    pipeline = checkpoint.load_pipeline(task["checkpoints"][pairs.METHOD], device)
    tell(modules=sorted(sys.modules))
    runs = prepared(pipeline, samplings.of(task["sampling"]), settings)[1]
    protocol.warm_up(protocol.Cycle(runs), 0, instruments.synchronize_of(device), least=max(2, len(runs)))
    peak = instruments.memory_of(device, pipeline)()
    peak["available_mb"] = available and available / 1e6
    return {"status": "ok", "reason": None, "memory": peak, "calls": pipeline.calls}


def measure(task: Mapping[str, Any]) -> dict[str, Any]:
    """Load the sides' pipelines, measure them in pairs, and return the result that summary.py reads.

    Args:
        task: {"checkpoints": {side: path}, "sampling", "measuring", "device", "threads", "first", "last", "output"}.
            The first process also measures idle power before, the last after.
    """
    from quantwatt.inference import checkpoint

    settings, device = Measuring.from_settings(task["measuring"]), task["device"]
    sampling = samplings.of(task["sampling"])
    meter, energy_reason = instruments.choose_meter(settings.metering, settings.block_s, device)
    with contextlib.closing(meter):
        instruments.set_threads(task["threads"])
        pipelines = {side: checkpoint.load_pipeline(path, device) for side, path in task["checkpoints"].items()}
        batches, wholes, phases = [], {}, {}
        for side, pipeline in pipelines.items():
            batches, runs = prepared(pipeline, sampling, settings)
            wholes[side] = runs
            for name, run in (pipeline.phases(*batches[0], sampling) if settings.phases_s else {}).items():
                phases.setdefault(name, {})[side] = run
        result, placed, traces = measure_process(
            wholes, phases, meter, settings, instruments.synchronize_of(device),
            first=task["first"], last=task["last"],
        )  # fmt: skip
    result["energy_reason"] = energy_reason or result["energy_reason"]
    result["device"] = {**instruments.describe_device(device), **result["device"]}
    pipeline = next(iter(pipelines.values()))
    return {
        "status": "ok",
        "reason": None,
        **result,
        "blocks": [block_row(block) for block in placed],
        "phases_apart": list(pipeline.family.PHASES_APART),
        "tokens": tokens_of(pipeline, batches[0], sampling),
        "runs": run_rows(placed, len(batches)),
        "traces": [trace_row(name, side, trace) for name, side, trace in traces],
    }


def prepared(
    pipeline: Any, sampling: Sampling | TextSampling, settings: Measuring
) -> tuple[list[tuple[Any, Any]], list[Callable[[], object]]]:
    """Return (batches, their callables) of a pipeline; a block calls all of them."""
    batches = batches_of(pipeline, sampling, settings.images_per_batch, settings.prompts)
    return batches, [pipeline.prepare(*batch, sampling) for batch in batches]


def measure_process(
    wholes: Mapping[str, Sequence[Callable[[], object]]],
    phases: Mapping[str, Mapping[str, Callable[[], object]]],
    meter: Meter,
    settings: Measuring,
    synchronize: Callable[[], object],
    *,
    first: bool,
    last: bool,
    around: neighbours.Around | None = None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> tuple[dict[str, Any], list[Placed], list[tuple[int | str, str, Trace]]]:
    """Measure the pairs of one process.

    Args:
        wholes: {side: callables}, one per batch of prompts, each of which generates `images_per_batch` images; every
            block calls all of them, equally often.
        phases: {phase: {side: callable}}.
        first, last: whether idle power is measured before the warm-up, or after the blocks.
        around: watches the machine during each block; None: made here.
    Returns:
        (fields of the result, [Placed], [(number of the block or name of the idle time or phase, side, Trace)]).
    """
    sides, n_batches, traces = list(wholes), len(next(iter(wholes.values()))), []
    fields: dict[str, Any] = {
        "meter": meter.name,
        "estimated": meter.estimated,
        "energy_reason": None,
        "idle_w": [],
        "sampler": None,
        "crosscheck": None,
    }

    def rest(name):
        if settings.idle_s > 0 and meter.name != "none" and not meter.estimated:
            tell(step=name)
            watts, trace = protocol.idle_power(meter, settings.idle_s, sleep)
            traces.append((name, sides[0], trace))
            fields["idle_w"] += [] if watts is None else [watts]

    if first:
        rest("idle-before")  # not after the warm-up: the device would cool down again
    tell(step="warm-up")
    cycles = {side: protocol.Cycle(runs) for side, runs in wholes.items()}
    n_runs, slope = protocol.warm_up(
        protocol.Cycle([run for cycle in zip(*wholes.values(), strict=True) for run in cycle]), settings.warmup_s,
        synchronize, clock, lambda: meter.provenance().get("temperature_c"), settings.steady_s,
        least=(1 if phases else 2) * n_batches * len(sides),  # making the phases has run the first batch
    )  # fmt: skip
    before = meter.provenance()
    fields |= {"warm_up": {"runs": n_runs, "slope_c_per_min": slope}, "device": before | {"temperature_after_c": None}}
    tell(step="pairs")
    has_energy = meter.name != "none"
    share = settings.processes * (2 if len(sides) == 1 else 1)
    watch = neighbours.Watch(meter)
    watch.start()
    state = meter.provenance if meter.reads == "cuda" else dict
    placed = pairs.measure(
        cycles, phases, meter,
        meter.least_s if settings.block_s is None else settings.block_s,
        settings.images_per_batch,
        pairs.enough(
            settings.pairs_per_process, settings.limit_s / share, settings.precision, has_energy, clock
        ),
        settings.phases_s / settings.least_processes,
        n_batches, synchronize, around or neighbours.Around(cpus.count().machine, state), tell_watts, clock,
    )  # fmt: skip
    fields["others"] = watch.stop().record()
    traces += [(b.block.block if b.part == pairs.WHOLE else b.part, b.side, b.block.trace) for b in placed]
    if not has_energy:
        fields["energy_reason"] = placed[-1].block.reason
        return fields, placed, []
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
    if meter.estimated:
        fields["idle_w"] = [before["idle_w"] * before["idle_share"]]
    fields["sampler"] = {
        "interval_ms": before["interval_ms"],
        "n_samples": sum(len(trace.watts) for *_, trace in traces),
        "n_missed": sum(trace.n_missed for *_, trace in traces),
        "n_zero": sum(trace.n_zero for *_, trace in traces),
        **{key: sum(trace.sampler[key] for *_, trace in traces if trace.sampler) for key in ("cpu_s", "wall_s")},
    }
    fields["crosscheck"] = protocol.crosscheck(*(b.block.trace for b in placed if not b.block.invalid))
    return fields, placed, traces


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
    if n_images > 1 and instructions.pictures(asked):
        raise DataError(
            f"{sampling.prompts}: images with an input picture are drawn one by one; set images_per_batch: 1."
        )
    starts = range(0, needed, n_images)
    return [(asked[i : i + n_images], [sampling.seed + i + j for j in range(n_images)]) for i in starts]


def tokens_of(pipeline: Any, batch: Sequence[Any], sampling: Sampling | TextSampling) -> dict[str, float]:
    """{phase: tokens that it reads or writes per inference} of a text model; {} for images."""
    work = pipeline.family.work(pipeline.pipeline, batch[0], sampling) or {}
    phases = {"forward": "tokens", "decode": "new_tokens"}
    return {phase: work[tokens] / work["items"] for phase, tokens in phases.items() if tokens in work}


BLOCK_FIELDS = ("block", "images", "seconds", "energy_j", "integral_j", "invalid", "reason")
PLACE_FIELDS = ("pair", "part", "side")


def block_row(placed: Placed) -> dict[str, Any]:
    """Return a block as JSON, with the joules of the secondary meters under "beside"."""
    place = {name: getattr(placed, name) for name in PLACE_FIELDS}
    block = {name: getattr(placed.block, name) for name in BLOCK_FIELDS}
    return {**place, **block, "around": dict(placed.block.around), "beside": placed.block.trace.beside or {}}


def placed_of(row: Mapping[str, Any]) -> Placed:
    """The inverse of `block_row`, without trace and runs."""
    block = protocol.Block(
        **{name: row[name] for name in BLOCK_FIELDS}, trace=empty_trace("", None), around=row["around"]
    )
    return Placed(**{name: row[name] for name in PLACE_FIELDS}, block=block)


def run_rows(placed: Sequence[Placed], n_prompts: int) -> list[dict[str, Any]]:
    """Return [{"side", "block", "run", "prompt", "t_s", "seconds", "energy_j"}] of the blocks of the whole.

    The joules are the run's part of the block's trace.
    """
    rows = []
    for side, block in ((b.side, b.block) for b in placed if b.part == pairs.WHOLE):
        for run, (start, stop) in enumerate(block.runs):
            joules = None if block.invalid else block.trace.energy_between(start, stop)
            rows.append({"side": side, "block": block.block, "run": run, "prompt": run % n_prompts, "t_s": start,
                         "seconds": stop - start, "energy_j": joules})  # fmt: skip
    return rows


def trace_row(name: int | str, side: str, trace: Trace) -> dict[str, Any]:
    """Return a trace as JSON: seconds of the monotonic clock, which all processes share; values not read are null."""
    watts = [None if value != value else float(value) for value in trace.watts]
    sensor_s = [None if value != value else float(value) for value in trace.sensor_s]
    return {"side": side, "block": name, "t_s": list(map(float, trace.timestamps_s)), "watts": watts,
            "sensor_s": sensor_s}  # fmt: skip


MODULE = "quantwatt.measuring.fresh_process"

if __name__ == "__main__":
    command.end_with_parent()
    command.run(lambda: main(sys.argv[1:]) or end())
