"""Print which kernel computes each format on this machine and how fast, or why no kernel does.

Speeds are of one layer with 1536 inputs and outputs, relative to bfloat16 = 1. The error is the layer's relative error
against float32, including the format's rounding. It takes a minute: a first look, not a benchmark (make bench-kernels).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder with quantwatt

from quantwatt.jobs import command, machine

SHAPE, TOKENS = (1536, 1536), (1, 64, 1357, 4096)
BRIEFLY = {"rounds": 3, "turn_s": 0.02, "limit_s": 0.5, "give_up_s": 4}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, help="CPU threads of torch (default: all)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="of inputs (default: the device's fastest)")
    args = parser.parse_args(argv)
    machine.require(args.device)

    import torch

    from benchmarks import layer_speed, peers
    from quantwatt.measuring import instruments

    instruments.set_threads(args.threads)
    dtype = getattr(torch, args.dtype) if args.dtype else layer_speed.computing_type(args.device)
    rows = list(layer_speed.table([SHAPE], TOKENS, args.device, dtype, others=peers.LIBRARIES, **BRIEFLY))
    device = instruments.describe_device(args.device)
    typed = str(dtype).removeprefix("torch.")
    print(f"{device['name']}, {device['threads']} threads; inputs in {typed}; speeds by tokens, bfloat16 = 1\n")
    print("\n".join(lines(rows)))
    if args.device == "cpu":
        print("\n".join(integer_products()))


def integer_products():
    """Which product computes integer layers of this shape, by the number of tokens."""
    import torch

    from quantwatt.inference import int8, kernel_times
    from quantwatt.inference.kernels import onednn_int8

    if not int8.paths():
        return
    found = {}
    for tokens in TOKENS:
        faster = not onednn_int8.saturates() and kernel_times.is_faster(
            *SHAPE, kernel_times.counted_as(tokens), torch.get_num_threads()
        )
        found.setdefault("oneDNN" if faster else f"C ({int8.PATHS[int8.paths()[-1]]})", []).append(f"{tokens:,}")
    yield (
        "\nInteger weights and inputs are multiplied by "
        + ", and by ".join(f"{name} at {', '.join(counts)} tokens" for name, counts in found.items())
        + "."
    )


def lines(rows):
    """The lines of the table, and below it the reasons for missing entries."""
    tokens = dict.fromkeys(row["tokens"] for row in rows)
    table, missing = [("format", "kernel", "provider", *(f"{count:,}" for count in tokens), "error")], {}
    for name, kernel in dict.fromkeys((row["format"], row["kernel"]) for row in rows):
        timed = [row for row in rows if (row["format"], row["kernel"]) == (name, kernel)]
        speeds = ["-" if row["ratio_to_bf16"] is None else f"{row['ratio_to_bf16']:.2f}" for row in timed]
        errors = [row["relative_error"] for row in timed if row["relative_error"] is not None]
        error = f"{max(errors):.1e}" if errors else "-"
        table.append((name, kernel or "none", timed[0]["provider"] or "", *speeds, error))
        for reason in dict.fromkeys(row["reason"] for row in timed if row["ms"] is None):
            missing.setdefault(reason, []).append(name if kernel in (None, name) else f"{name} by {kernel}")
    sizes = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        names = [cell.ljust(size) for cell, size in zip(row[:3], sizes[:3], strict=True)]
        figures = [cell.rjust(size) for cell, size in zip(row[3:], sizes[3:], strict=True)]
        yield "  ".join(names + figures)
    for reason, names in missing.items():
        yield f"\n{', '.join(names)}: {reason}."


if __name__ == "__main__":
    command.run(main)
