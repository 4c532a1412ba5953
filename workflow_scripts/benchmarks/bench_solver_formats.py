"""Time GPTQ and Qronos in float and GGUF formats against integers of as many bits, in turns, in one process.

What a solver's loop asks of a format, to fit a group's grid and to round a column, is all that differs. Seconds are of
this process's CPU time on one thread, wall seconds on a GPU; a ratio is the median of those of single turns.
"""

import argparse
import itertools
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where quantwatt is

from benchmarks import bench_solvers, harness


def integers(bits, size):
    return {"format": "integer", "bits": bits, "granularity": "group", "group_size": size, "symmetric": True}


FORMATS = {  # name: (its settings, the integers that it is held against)
    "mxfp4": ({}, integers(4, 32)),
    "nvfp4": ({}, integers(4, 16)),
    "mxfp8": ({}, integers(8, 32)),
    "q4_k": ({}, integers(4, 32)),
    "q6_k": ({}, integers(8, 16)),  # there are none of 6 bits
}
SOLVERS = ("gptq", "qronos")


def turn(task, name, solver, clock):
    """(seconds of the whole and of the solve) in the format, then in its integers.

    Args:
        task: (weights, inputs, reference) of a layer.
    """
    from quantwatt.config.experiment import complete_method

    settings, twin = FORMATS[name]
    found = []
    for weights in ({"format": name, **settings}, twin):
        completed = complete_method({"weights": weights}, "this benchmark", name)["weights"]
        hessian_s, solve_s, _ = bench_solvers.quantwatt_run(clock, *task, solver, completed)
        found.append((hessian_s + solve_s, solve_s))
    return found


def measure(names, layers, tokens, repetitions, device):
    """A row for each layer, solver and format."""
    clock, rows = bench_solvers.clock_of(1, device), []
    for layer in layers:
        task = bench_solvers.layer(*bench_solvers.LAYERS[layer], tokens, device)
        cases, turns = list(itertools.product(names, SOLVERS)), {}
        for repetition in range(repetitions + 1):  # the first one warms up
            for name, solver in cases:
                taken = turn(task, name, solver, clock)
                print(f"{layer}, {solver}, {name}: {taken}", file=sys.stderr)
                if repetition:
                    turns.setdefault((name, solver), []).append(taken)
        rows += [row_of(layer, tokens, name, solver, taken) for (name, solver), taken in turns.items()]
    return rows


def row_of(layer, tokens, name, solver, taken):
    """The medians of the turns [((whole, solve) of the format, of the integers)]."""
    whole, solve, integer_whole, integer_solve = (
        statistics.median(one[side][part] for one in taken) for side in (0, 1) for part in (0, 1)
    )
    ratios = [one[0][0] / one[1][0] for one in taken]
    return {
        "layer": layer, "tokens": tokens, "solver": solver, "format": name, "integers": FORMATS[name][1],
        "seconds": whole, "solve_s": solve, "integer_seconds": integer_whole, "integer_solve_s": integer_solve,
        "ratio": statistics.median(ratios), "least_ratio": min(ratios), "most_ratio": max(ratios), "turns": len(taken),
    }  # fmt: skip


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--layers", nargs="+", choices=bench_solvers.LAYERS, default=["1536 to 6144"])
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", default="results/benchmarks/solver_formats.json", help="rows as JSON")
    args = parser.parse_args(argv)
    import torch

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    rows = measure(args.formats, args.layers, args.tokens, args.repetitions, args.device)
    harness.write(args.output, rows, ("torch", "numpy"))
    for row in rows:
        print("{layer}: {solver} in {format} takes {ratio:.2f} times the integers' time "
              "({least_ratio:.2f} to {most_ratio:.2f})".format(**row))  # fmt: skip


if __name__ == "__main__":
    from quantwatt.jobs import command

    command.run(main)
