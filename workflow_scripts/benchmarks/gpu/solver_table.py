"""GPTQ, Qronos and BRECQ of a whole denoiser on the device: seconds, joules and peak memory; and GPTQModel's GPTQ.

The denoiser is Stable Diffusion 3.5 Medium, of random weights, calibrated on random inputs: as much work as on real
ones. GPTQModel solves single layers of its shapes, in turns with quantwatt.
"""

import importlib.util
import statistics
import time

import torch

from benchmarks import bench_solvers
from benchmarks.gpu import random_denoiser, stages
from benchmarks.gpu.denoisers import BASELINE, DENOISERS
from quantwatt.config.experiment import complete_method
from quantwatt.measuring import instruments, meters
from quantwatt.models.families import load_family
from quantwatt.quantize import sequential

DENOISER = "sd35-medium"
IMAGES = {"true": 8, "tiny": 2}  # as many samples, twice with guidance
BATCH = 2
WEIGHTS = {"format": "integer", "bits": 4, "granularity": "group", "group_size": 128, "symmetric": False}
ITERATIONS = {"true": 100, "tiny": 2}  # of BRECQ a block: its seconds grow with them, which 20,000 in earnest take
SOLVERS = ("gptq", "qronos", "brecq")
LAYER_TOKENS = {"true": 16384, "tiny": 256}
REPETITIONS, LIBRARY = 3, "gptqmodel"


def run(record) -> None:
    """The stage: whole denoisers, each a row; then single layers. What was cut by time waits for a longer turn."""
    record.keep(rows=record.found.get("rows", []), cut=record.found.get("cut", {}),
                layers=record.found.get("layers", []))  # fmt: skip
    done = {row["solver"] for row in record.found["rows"]}
    if not record.found["layers"]:
        record.keep(layers=single_layers(record.device, record.size))
    for name in SOLVERS:
        if name in done:
            continue
        if record.left() < 1.2 * record.found["cut"].get(name, 0):
            record.partial(f"{name} takes longer than {record.found['cut'][name]:.0f} s")
            continue
        record.keep(cut=record.found["cut"] | {name: record.left()})  # should it not come back
        row = whole_denoiser(name, record)
        cut = {other: seconds for other, seconds in record.found["cut"].items() if other != name}
        record.keep(rows=[*record.found["rows"], row], cut=cut)
    if not record.found["cut"]:
        record.keep(status="complete", reason=None)


def whole_denoiser(name: str, record) -> dict:
    """{"solver", "seconds", "energy_j", "reason", "peak_mb", "layers", "fallbacks", "tokens", ...} of one run."""
    device, images = record.device, IMAGES[record.size]
    model, _, _ = random_denoiser.build(DENOISER, record.size, BASELINE, device)
    arguments = random_denoiser.inputs_of(DENOISER, record.size, model, images, device)
    samples = {key: value.cpu() for key, value in arguments.items() if isinstance(value, torch.Tensor)}
    model = model.cpu()  # where the solvers expect it
    family = load_family(DENOISERS[DENOISER].family)
    settings = {"name": name}
    if name == "brecq":
        settings |= {"iterations": ITERATIONS[record.size], "batch_size": BATCH}
    method = complete_method({"solver": settings, "weights": WEIGHTS}, "gpu_evidence.py", name)
    within = tuple(f"{block}." for block in family.blocks(model))
    layers = [each for each, module in model.named_modules() if type(module) is torch.nn.Linear]
    layers = [each for each in layers if each.startswith(within)]
    allocation = {each: {"weights": method["weights"], "activations": None} for each in layers}
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    (_, reports), cost, _ = meters.metered(
        lambda: sequential.quantize(model, family, allocation, method, samples, BATCH, device),
        stages.metering(record.meter), device,
    )  # fmt: skip
    errors = [report["relative_error"] for report in reports.values() if report["relative_error"] is not None]
    return {"solver": name, "denoiser": DENOISER, "samples": len(samples["timestep"]), "settings": method["solver"],
            "weights": method["weights"], **{key: cost[key] for key in ("seconds", "energy_j", "meter", "reason")},
            "peak_mb": instruments.peak_memory_of(device)()["peak_mb"], "layers": len(reports),
            "fallbacks": sum(bool(report["fallback"]) for report in reports.values()),
            "relative_error": statistics.median(errors) if errors else None}  # fmt: skip


def single_layers(device: str, size: str) -> list[dict]:
    """[{"layer", "implementation", "hessian_s", "solve_s"}], medians; quantwatt and GPTQModel in turns.

    Where GPTQModel is not installed, its rows have the reason.
    """
    runs = {"quantwatt": (bench_solvers.quantwatt_run, "gptq")}
    if importlib.util.find_spec(LIBRARY):
        runs[LIBRARY] = (bench_solvers.library_run, LIBRARY)

    def clock():
        instruments.synchronize_of(device)()
        return time.perf_counter()

    rows = []
    shapes = {"64 to 128": (64, (128,))} if size == "tiny" else bench_solvers.LAYERS
    with torch.no_grad():
        for layer, shape in shapes.items():
            data = bench_solvers.layer(*shape, LAYER_TOKENS[size], device)
            settings = bench_solvers.INTEGER | ({"group_size": 64} if size == "tiny" else {})
            times = {name: [] for name in runs}
            for _ in range(REPETITIONS + 1):  # the first warms up
                for name, (solve, how) in runs.items():
                    times[name].append(solve(clock, *data, how, settings)[:2])
            for name, found in times.items():
                hessian_s, solve_s = (statistics.median(each) for each in zip(*found[1:], strict=True))
                rows.append({"layer": layer, "implementation": name, "hessian_s": hessian_s, "solve_s": solve_s,
                             "tokens": LAYER_TOKENS[size], "reason": None})  # fmt: skip
            if LIBRARY not in runs:
                rows.append({"layer": layer, "implementation": LIBRARY, "reason": f"{LIBRARY} is not installed"})
    return rows
