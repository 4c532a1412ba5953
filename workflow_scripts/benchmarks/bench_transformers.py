"""Time whole Stable Diffusion 3.5 transformers of random weights: 16 bit, and the formats of quantwatt and libraries.

Each configuration is a worker process that holds one model on the device. On request it runs one turn, eager or
compiled: denoising steps for their latency, then an energy block of steps. Configurations alternate, so that drift
affects all of them equally. Nothing is downloaded. A configuration that this device cannot compute is a row with the
reason.
"""

import argparse
import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where quantwatt is

from benchmarks import harness
from quantwatt import intervals
from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import Unsupported
from quantwatt.artifacts.provenance import provenance
from quantwatt.measuring import protocol

SD3 = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "attention_head_dim": 64,
    "joint_attention_dim": 4096, "pooled_projection_dim": 2048, "qk_norm": "rms_norm",
}  # fmt: skip
SIZES = {  # the released configurations, and a tiny one to try the benchmark with
    "medium": {**SD3, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536,
               "pos_embed_max_size": 384, "dual_attention_layers": tuple(range(13))},
    "large": {**SD3, "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432,
              "pos_embed_max_size": 192},
    "tiny": {**SD3, "num_layers": 1, "num_attention_heads": 2, "caption_projection_dim": 128,
             "pos_embed_max_size": 96, "sample_size": 16},
}  # fmt: skip
TEXT_TOKENS = 333  # 77 of the two CLIP encoders, 256 of T5
BASELINE = "bf16"
TOKEN = {"bits": 8, "granularity": "token", "dynamic": True, "symmetric": True}
INTEGER = {"format": "integer", "granularity": "channel", "group_size": None, "symmetric": True, "narrow": True}
TORCHAO = {"format": "torchao", "group_size": 128}
CONFIGURATIONS = {  # name: (weights, activations)
    BASELINE: (None, None),
    "int8 W8A8": ({**INTEGER, "bits": 8}, TOKEN),
    "int4 W4A16": ({**INTEGER, "bits": 4, "granularity": "group", "group_size": 128}, None),
    "int4 W4A8": ({**INTEGER, "bits": 4}, TOKEN),
    "nf4": ({"format": "nf4", "bits": 4, "group_size": 64}, None),
    "torchao int8-dynamic": ({**TORCHAO, "configuration": "int8-dynamic"}, None),
    "torchao float8-dynamic": ({**TORCHAO, "configuration": "float8-dynamic"}, None),
    "torchao int4-weight-only": ({**TORCHAO, "configuration": "int4-weight-only"}, None),
    "bitsandbytes int8": ({"format": "bitsandbytes-int8", "threshold": 6.0}, None),
}


def transformer(size, weights, activations, device):
    """(SD3Transformer2DModel with random bfloat16 weights, quantized layer by layer; names of its kernels).

    Raises:
        Unsupported: the device cannot compute the format.
    """
    import torch

    from quantwatt.models.families import load_family

    family = load_family("sd3")  # before diffusers: it declares operators that a CPU build of torchvision lacks

    from diffusers import SD3Transformer2DModel  # isort: skip

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = SD3Transformer2DModel(**SIZES[size]).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    if weights is None:
        return model, "torch linear"
    kernels = set()
    for name in family.quantizable(model):
        layer, kernel = quantized(model.get_submodule(name), weights, activations, device)
        model.set_submodule(name, layer)
        kernels.add(kernel)
    return model, ", ".join(sorted(kernels))


def quantized(linear, weights, activations, device):
    """(the linear layer rounded to nearest, on the device; name of its kernel)."""
    from quantwatt.formats import convolution
    from quantwatt.formats.library import library_of
    from quantwatt.formats.quantized_weight import load_format, quantize_to_nearest
    from quantwatt.inference import kernel_choice

    shape, dtype = convolution.describe(linear), linear.weight.dtype
    if library := library_of(weights):
        if reason := library.unsupported(device):
            raise Unsupported(reason)
        state = library.state(library.convert(linear, dtype))
        return library.restore(state, shape, linear.bias, dtype, device), library.LIBRARY
    kernel, reason = kernel_choice.kernel_for(
        {"weights": weights, "activations": activations, "parts": [], **shape}, device
    )
    if kernel is None:
        raise Unsupported(reason)
    weight_format = load_format(weights)
    rounded = quantize_to_nearest(linear.weight.float(), weight_format)
    return kernel.Layer.build(rounded, weight_format, activations, linear.bias, dtype).to(device), kernel.NAME


def inputs_of(size, batch, device):
    """The transformer's inputs for images of 1024² pixels; the tiny size has smaller images."""
    import torch

    edge = SIZES[size]["sample_size"]

    def random(*shape):
        return torch.randn(batch, *shape, dtype=torch.bfloat16, device=device)

    return {
        "hidden_states": random(16, edge, edge),
        "encoder_hidden_states": random(TEXT_TOKENS, SD3["joint_attention_dim"]),
        "pooled_projections": random(SD3["pooled_projection_dim"]),
        "timestep": torch.full((batch,), 500.0, device=device),
        "return_dict": False,
    }


class Worker:
    """The model of one configuration, and its turns.

    settings: the keys of `measuring` in config.yaml, "meter", and "latency_s".
    """

    def __init__(self, name, size, device, settings):
        import torch

        from quantwatt.inference import checkpoint
        from quantwatt.measuring import instruments
        from quantwatt.measuring.meters import Metering

        self.size, self.device, self.settings = size, device, settings
        self.synchronize = instruments.synchronize_of(device)
        self.peak_memory = instruments.peak_memory_of(device)
        self.model, self.kernel = transformer(size, *CONFIGURATIONS[name], device)
        self.compiled = torch.compile(self.model, **checkpoint.COMPILE[device])
        self.meter, self.energy_reason = instruments.choose_meter(
            Metering.from_settings(settings), settings["block_s"], device
        )
        self.warm = set()

    def turn(self, batch, compiled):
        """Run one turn and measure it.

        Returns:
            {"kernel", "seconds" of each step, "energy_j" per step or None, "energy_reason", "peak_mb", "meter",
            "estimated"}.
        """
        import torch

        inputs, model = inputs_of(self.size, batch, self.device), self.compiled if compiled else self.model

        def run():
            with torch.no_grad():
                model(**inputs)

        if (batch, compiled) not in self.warm:
            self.warm.add((batch, compiled))
            protocol.warm_up(run, self.settings["warmup_s"], self.synchronize)
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = protocol.measure_latency(run, self.settings["latency_s"], synchronize=self.synchronize)
        figures = {"kernel": self.kernel, "seconds": list(seconds), "peak_mb": self.peak_memory()["peak_mb"],
                   "energy_j": None, "energy_reason": self.energy_reason, "meter": self.meter.name,
                   "estimated": self.meter.estimated}  # fmt: skip
        if self.meter.name != "none":
            *_, block = protocol.measure_energy(run, self.meter, self.settings["block_s"], 1, 1, self.synchronize)
            figures |= {
                "energy_j": None if block.invalid else block.energy_j / block.images,
                "energy_reason": block.reason,
            }
        return figures


def work(name, size, device, settings):
    """Run a worker process: answer each line of stdin, {"batch", "compiled"} as JSON, with one turn as JSON."""
    from quantwatt.artifacts import failures

    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries may print to stdout
    worker = None
    for line in sys.stdin:
        try:
            with failures.expected():
                worker = worker or Worker(name, size, device, settings)
                answer = {"status": "ok", "reason": None, **worker.turn(**json.loads(line))}
        except failures.ExpectedFailure as error:
            answer = {"status": error.status, "reason": error.reason}
        print(json.dumps(answer), file=answers, flush=True)


def measure(names, size, batches, modes, device, turns, settings):
    """Rows of every configuration in every mode (compiled or not) at every batch size; the first turn is a warm-up."""
    turns_of = {}
    command = [sys.executable, __file__, "--size", size, "--device", device, "--settings", json.dumps(settings)]
    with harness.workers({name: [*command, "--worker", name] for name in names}) as run:
        for batch, turn, compiled, name in itertools.product(batches, range(turns + 1), modes, names):
            case = (name, compiled, batch)
            if turns_of.get(case, [{"status": "ok"}])[-1]["status"] != "ok":
                continue
            answer = run[name](batch=batch, compiled=compiled)
            print(f"batch {batch}, {name}, {'compiled' if compiled else 'eager'}: {answer}", file=sys.stderr)
            if turn or answer["status"] != "ok":
                turns_of.setdefault(case, []).append(answer)
    return [
        {"size": size, "device": device, **row_of(case, turns_of)} for case in itertools.product(names, modes, batches)
    ]


def row_of(case, found):
    """The row of one case (configuration, compiled, batch).

    Ratios are to the 16-bit baseline in the same mode: the speed-up, and the shares of its memory and energy.

    Args:
        found: {case: [turns]} of all cases.
    """
    name, compiled, batch = case
    turns, base = found[case], found.get((BASELINE, compiled, batch), [])
    row = {"configuration": name, "compiled": compiled, "batch": batch, **turns[-1]}
    seconds = row.pop("seconds", None)
    if seconds is None:
        return row
    summary = protocol.summarize_latency([turn["seconds"] for turn in turns], 1)
    row |= {
        "ms": 1e3 * summary["median"],
        **{f"ms_{end}": summary[end] and 1e3 * summary[end] for end in ("low", "high")},
    }
    row["peak_mb"] = max(turn["peak_mb"] for turn in turns)
    joules = [[turn["energy_j"]] for turn in turns if turn["energy_j"] is not None]
    row |= interval("energy_j", intervals.mean_of_processes(joules)) if joules else {}
    row["turns"] = len(turns)
    if base and base[-1]["status"] == "ok":
        times = ([turn["seconds"] for turn in side] for side in (base, turns))
        row |= interval("ratio_to_bf16", intervals.ratio_of_turns(*times, statistic=np.median))
        row["memory_ratio_to_bf16"] = row["peak_mb"] / max(turn["peak_mb"] for turn in base)
        pairs = [(turn["energy_j"], other["energy_j"]) for turn, other in zip(turns, base, strict=True)]
        if all(None not in pair for pair in pairs):
            values = ([[value] for value in side] for side in zip(*pairs, strict=True))
            row |= interval("energy_ratio_to_bf16", intervals.ratio_of_turns(*values))
    return row


def interval(name, values):
    value, low, high = values
    return {name: value, f"{name}_low": manifest.finite(low), f"{name}_high": manifest.finite(high)}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["medium", "large"])
    parser.add_argument("--configurations", nargs="+", choices=CONFIGURATIONS, default=list(CONFIGURATIONS),
                        help="all are on the device at once: 25 GB of memory for medium, 70 GB for large")  # fmt: skip
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--eager-only", action="store_true", help="do not measure the models under torch.compile")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--settings", type=json.loads, default={}, metavar="JSON",
                        help="meter, latency_s (of each turn), and keys of `measuring` in config.yaml")  # fmt: skip
    parser.add_argument("--output", default="results/benchmarks/transformers.json", help="rows as JSON")
    parser.add_argument("--worker", choices=CONFIGURATIONS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        work(args.worker, args.size[0], args.device, args.settings)
        return
    from quantwatt.config import experiment
    from quantwatt.jobs import machine

    machine.require(args.device)
    changes = dict(args.settings)
    meter = machine.resolve_meter(changes.pop("meter", "auto"), args.device)
    latency_s = changes.pop("latency_s", 5)
    completed = experiment.load_config({"measuring": {"warmup_s": 5, "block_s": 10, **changes}})["measuring"]
    settings = completed | {"meter": meter, "latency_s": latency_s}
    modes = (False,) if args.eager_only else (False, True)
    rows = [
        row
        for size in args.size
        for row in measure(args.configurations, size, args.batch, modes, args.device, args.turns, settings)
    ]
    manifest.write_json(args.output, rows)
    packages = ("torch", "diffusers", "torchao", "bitsandbytes", "triton")
    manifest.write_json(Path(args.output).with_suffix(".machine.json"), provenance(packages))


if __name__ == "__main__":
    from quantwatt.jobs import command

    command.run(main)
