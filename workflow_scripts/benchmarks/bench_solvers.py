"""Time solvers against other implementations: Hessian and solve, on the same layers, interleaved in one run.

Each implementation is a worker process. Libraries run under the interpreter of their environment (.venvs/NAME, created
by `make backends`), quantwatt under the current one. A worker keeps the tensors of one layer and times one repetition
on request; workers alternate, so that a busy machine affects all of them equally. Libraries that are not installed are
left out with a message.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where quantwatt is

from benchmarks import harness

ROOT = Path(__file__).resolve().parents[2]
LAYERS = {  # name: (columns, rows of each layer that shares the input)
    "1536 to 6144": (1536, (6144,)),
    "6144 to 1536": (6144, (1536,)),
    "q+k+v": (1536, (1536, 1536, 1536)),
}
BITS, GROUP, DAMPING, SEQUENCE = 4, 128, 0.01, 1024
INTEGER = {"format": "integer", "bits": BITS, "granularity": "group", "group_size": GROUP, "symmetric": False}
IMPLEMENTATIONS = {  # name: (environment, solver, format)
    "quantwatt": (None, "gptq", INTEGER),
    "quantwatt qronos": (None, "qronos", INTEGER),
    "auto-gptq": ("auto-gptq", "gptq", INTEGER),
    "gptqmodel": ("gptqmodel", "gptq", INTEGER),
}
REFERENCE = "auto-gptq"


def layer(columns, rows, tokens, device):
    """Random weights and bfloat16 inputs with the statistics of a layer of a trained transformer.

    The inputs have a few strong directions, and columns whose magnitudes differ by orders of magnitude. The quantized
    model's inputs differ from the float model's by a few per cent.

    Returns:
        (weights, inputs of the quantized model, inputs of the float model).
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    strong = torch.randn(tokens, 64, generator=generator) @ torch.randn(64, columns, generator=generator)
    noise = torch.randn(tokens, columns, generator=generator)
    magnitude = torch.exp(0.8 * torch.randn(columns, generator=generator))
    reference = ((strong / 8 + noise) * magnitude).to(torch.bfloat16)
    inputs = (reference + 0.03 * magnitude * torch.randn(tokens, columns, generator=generator)).to(torch.bfloat16)
    weights = [torch.randn(count, columns, generator=generator) / columns**0.5 for count in rows]
    return [weight.to(device) for weight in weights], inputs.to(device), reference.to(device)


def quantwatt_run(clock, weights, inputs, reference, solver, settings):
    """(seconds of the Hessian, seconds of the solve, dequantized weights)."""
    import torch

    from quantwatt.formats.quantized_weight import load_format
    from quantwatt.quantize.observers import Observers
    from quantwatt.quantize.solvers import load_solver

    given = {"damping": DAMPING} if solver == "gptq" else {"alpha": 1e-6}
    chosen = load_solver({"name": solver, **given, "act_order": True, "static_groups": False, "block_size": 128})
    weight_format = load_format(settings)
    start = clock()
    observed = Observers.new(chosen.NEEDS, inputs.shape[1], inputs.device)
    for part in range(0, len(inputs), SEQUENCE):
        observed.observe(inputs[part : part + SEQUENCE], reference[part : part + SEQUENCE])
    middle = clock()
    solved = chosen.solve(torch.cat(weights), weight_format, observed).weight
    stop = clock()
    dequantized = solved.dequantize(weight_format).split([len(weight) for weight in weights])
    return middle - start, stop - middle, dequantized


def library_run(clock, weights, inputs, reference, environment, settings):
    """Like `quantwatt_run`, for a library and groups of integers; it solves layers that share an input one by one."""
    import torch

    if environment == "auto-gptq":
        from auto_gptq.quantization.gptq import GPTQ

        def task_of(linear):
            task = GPTQ(linear)
            task.quantizer.configure(BITS, perchannel=True, sym=False, mse=False)
            return task

        def solve(task):
            task.fasterquant(blocksize=128, percdamp=DAMPING, group_size=GROUP, actorder=True, static_groups=False)
            return task.layer.weight.data

    else:
        from gptqmodel.quantization import QuantizeConfig
        from gptqmodel.quantization.gptq import GPTQ

        config = QuantizeConfig(
            bits=BITS, group_size=GROUP, sym=False, desc_act=True, act_group_aware=False, static_groups=False,
            damp_percent=DAMPING, fallback=None, offload_to_disk=False,
        )  # fmt: skip

        def task_of(linear):
            task = GPTQ(linear, config)
            task.quantizer.configure(perchannel=True)
            return task

        def solve(task):
            return task.quantize(blocksize=128)[0]

    if not torch.cuda.is_available():  # auto-gptq calls it on every device
        torch.cuda.synchronize = lambda device=None: None
    hessian_s, solve_s, dequantized = 0.0, 0.0, []
    for weight in weights:
        linear = torch.nn.Linear(weight.shape[1], len(weight), bias=False, device=weight.device)
        linear.weight.data = weight.clone()
        start = clock()
        task = task_of(linear)
        for part in range(0, len(inputs), SEQUENCE):
            task.add_batch(inputs[part : part + SEQUENCE][None], None)
        middle = clock()
        values = solve(task)
        hessian_s, solve_s = hessian_s + middle - start, solve_s + clock() - middle
        dequantized.append(values.float().reshape(weight.shape))
    return hessian_s, solve_s, dequantized


def clock_of(threads, device):
    """A clock: CPU time for one thread on the CPU, wall time for several threads and on a GPU."""
    import torch

    def clock():
        if device == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if threads == 1 and device == "cpu" else time.perf_counter()

    return clock


def work(name, threads, device):
    """Run a worker: answer each line of stdin, {"layer", "tokens"} as JSON, with one repetition as JSON."""
    import torch

    environment, solver, settings = IMPLEMENTATIONS[name]
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    answers, current = os.fdopen(os.dup(sys.stdout.fileno()), "w"), None
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries may print to stdout

    clock = clock_of(threads, device)
    for line in sys.stdin:
        task = json.loads(line)
        if task != current:
            weights, inputs, reference = layer(*LAYERS[task["layer"]], task["tokens"], device)
            current = task
        run = library_run if environment else quantwatt_run
        hessian_s, solve_s, dequantized = run(clock, weights, inputs, reference, environment or solver, settings)
        x, y = inputs.float(), reference.float()
        target = y if solver == "qronos" else x  # what the solver minimizes the distance to
        missed = sum((target @ w.T - x @ q.T).square().sum().item() for w, q in zip(weights, dequantized, strict=True))
        whole = sum((target @ w.T).square().sum().item() for w in weights)
        print(
            json.dumps({"hessian_s": hessian_s, "solve_s": solve_s, "error": missed / whole}), file=answers, flush=True
        )


def commands(names, threads, device):
    """{implementation: command line of its worker}, without those that are not installed."""
    installed = {}
    for name in names:
        environment = IMPLEMENTATIONS[name][0]
        python = ROOT / f".venvs/{environment}/bin/python" if environment else sys.executable
        if environment and not (ROOT / f".venvs/{environment}/installed").exists():
            print(f"{name}: left out, it is not installed (make backends)", file=sys.stderr)
            continue
        installed[name] = [python, __file__, "--worker", name, "--threads", str(threads), "--device", device]
    return installed


def measure(threads, layers, tokens, repetitions, device):
    """Rows for one number of threads: medians over repetitions, in which the implementations alternate."""
    rows = []
    workers = commands(IMPLEMENTATIONS, threads, device)
    with harness.workers(workers, {"OMP_NUM_THREADS": str(threads)}) as run:
        for name in layers:
            times = {implementation: [] for implementation in run}
            for repetition in range(repetitions + 1):  # the first repetition warms up
                for implementation, repeat in run.items():
                    result = repeat(layer=name, tokens=tokens)
                    print(f"{threads} threads, {name}, {implementation}: {result}", file=sys.stderr)
                    if repetition:
                        times[implementation].append(result)
            medians = {
                implementation: {key: statistics.median(row[key] for row in results) for key in results[0]}
                for implementation, results in times.items()
            }
            total = {key: row["hessian_s"] + row["solve_s"] for key, row in medians.items()}
            for implementation, row in medians.items():
                ratio = total[REFERENCE] / total[implementation] if REFERENCE in total else None
                _, solver, settings = IMPLEMENTATIONS[implementation]
                rows.append({"implementation": implementation, "solver": solver, "format": settings["format"],
                             "layer": name, "threads": threads, **row, "ratio_to_auto_gptq": ratio,
                             "clock": "cpu" if threads == 1 and device == "cpu" else "wall", "tokens": tokens,
                             "bits": BITS, "group": settings["group_size"], "repetitions": repetitions})  # fmt: skip
    return rows


def draw(rows, output):
    """Draw bars of Hessian and solve time, one panel for each layer and number of threads."""
    from quantwatt.report.figures import GREY, INK, PALETTE

    panels = list(dict.fromkeys((row["layer"], row["threads"]) for row in rows))
    threads = sorted({count for _, count in panels})
    names = list(dict.fromkeys(name for name, _ in panels))
    with harness.figure(output, (9, 1.9 * len(names) + 0.7)) as figure:
        axes = figure.subplots(len(names), len(threads), squeeze=False)
        for (name, count), axis in zip([(n, t) for n in names for t in threads], axes.flat, strict=True):
            shown = [row for row in rows if (row["layer"], row["threads"]) == (name, count)][::-1]
            labels = [row["implementation"] for row in shown]
            hessian = [row["hessian_s"] for row in shown]
            axis.barh(labels, hessian, color=PALETTE[5], label="Hessian")
            axis.barh(labels, [row["solve_s"] for row in shown], left=hessian, color=PALETTE[0], label="solve")
            for place, row in enumerate(shown):
                total, ratio = row["hessian_s"] + row["solve_s"], row["ratio_to_auto_gptq"]
                text = f" {total:.2f} s" + (f" ({ratio:.1f}×)" if ratio and row["implementation"] != REFERENCE else "")
                axis.text(total, place, text, va="center", fontsize=8, color=INK)
            axis.set_title(f"{name}, {count} thread{'s' if count > 1 else ''}")
            axis.set_xlabel("seconds, median", color=GREY)
            axis.margins(x=0.3)
        figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--output", default="results/benchmarks/solvers.json", help="rows as JSON; a figure is written next to it"
    )
    parser.add_argument("--worker", choices=IMPLEMENTATIONS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        work(args.worker, args.threads[0], args.device)
        return
    rows = [row for t in args.threads for row in measure(t, args.layers, args.tokens, args.repetitions, args.device)]
    harness.write(args.output, rows, ("torch", "numpy"))
    draw(rows, args.output)


if __name__ == "__main__":
    from quantwatt.jobs import command

    command.run(main)
