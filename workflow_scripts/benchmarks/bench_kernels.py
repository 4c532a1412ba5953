"""Time every kernel of this device against float products and other libraries, alternating them in one run.

Three parts: single layers with the shapes of the embedded model, of GPT-2 and of Stable Diffusion 3.5 Medium; whole
transformer blocks of several widths, which show from which width on 8 bits are faster; and the embedded model end to
end, in fresh processes. Ratios are speed-ups: above 1 is faster. The peak throughput of the device is measured and
printed too, as a reference.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where quantwatt is

from benchmarks import harness
from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.config import experiment
from quantwatt.jobs import command, machine

LAYERS = {  # of the embedded model, of GPT-2's size, and of Stable Diffusion 3.5 Medium
    "128 to 512": (128, 512),
    "512 to 2048": (512, 2048),
    "1536 to 1536": (1536, 1536),
    "1536 to 6144": (1536, 6144),
    "6144 to 1536": (6144, 1536),
}
MODULATION = (1536, 9216)  # modulation layer (adaLN): its input is the time embedding, one token
TOKENS = (1, 64, 1357, 4096)
DRAWN = (1, 1357)  # numbers of tokens that the figure shows
SUMMED_UP = 1357
PACKAGES = ("torch", "torchao", "optimum-quanto", "bitsandbytes", "diffusers")
MODEL = {"family": "sd3", "path": "resources/models/tiny-sd3", "text_encoder_3": False, "max_sequence_length": 1}
WIDTH, IMAGE_TOKENS = 128, 64  # of the embedded model
OWN = ("int8 in C or oneDNN", "oneDNN int8", "torch._int_mm", "torch._int_mm fused by torch.compile")


def main(argv=None):
    args = parse_arguments(argv)
    machine.require(args.device)

    import torch

    from benchmarks import layer_speed, model_speed, peak, peers
    from quantwatt.jobs.progress import progress
    from quantwatt.measuring import instruments

    instruments.set_threads(args.threads)
    dtype = getattr(torch, args.dtype) if args.dtype else layer_speed.computing_type(args.device)
    rates = peak.rates(args.device, args.peak_sizes)
    print(f"At best: {', '.join(f'{kind} {rate:,.0f} Gop/s' for kind, rate in rates.items())}.")
    settings = {"rounds": args.rounds, "turn_s": args.turn_s}
    others = peers.LIBRARIES | ({} if args.eager else peers.COMPILED)
    shapes = [LAYERS[name] for name in args.layers]
    common = {"device": args.device, "dtype": dtype, "others": others, "limit_s": args.limit_s, **settings}
    rows = layer_speed.table(shapes, args.tokens, **common)
    rows = list(progress(rows, description="layers", unit="row"))
    if 1 in args.tokens:
        rows += layer_speed.table([MODULATION], [1], **common)
    rows = [row | {"share_of_peak": share_of_peak(row, rates)} for row in rows]
    device = {"threads": torch.get_num_threads(), "peak_gops": rates, **instruments.describe_device(args.device)}
    harness.write(args.output, rows, PACKAGES, device)
    widths = list(progress(model_speed.widths(args.device, dtype, args.widths, **settings), description="blocks"))
    if args.processes:
        widths += pipeline(args)
    manifest.write_json(Path(args.output).with_name("pipeline.json"), widths)
    draw(rows, widths, args.output)
    for line in sentences(rows, widths):
        print(line)


def parse_arguments(argv=None):
    from benchmarks import layer_speed, model_speed, peak

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, help="CPU threads of torch (default: all)")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="dtype of inputs (default: the fastest one of the device)"
    )
    parser.add_argument("--layers", nargs="*", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS))
    parser.add_argument("--widths", type=int, nargs="*", default=list(model_speed.WIDTHS), help="widths of blocks")
    parser.add_argument("--rounds", type=int, default=layer_speed.ROUNDS)
    parser.add_argument("--turn-s", type=float, default=layer_speed.TURN_S, help="seconds of each layer in a round")
    parser.add_argument(
        "--limit-s", type=float, default=layer_speed.LIMIT_S, help="a call that takes longer is not repeated"
    )
    parser.add_argument("--eager", action="store_true", help="leave out the libraries under torch.compile")
    parser.add_argument("--processes", type=int, default=4, help="of the embedded model in each dtype; 0: none")
    parser.add_argument("--latency-s", type=float, default=20, help="seconds of latency over all processes of a dtype")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of the embedded model")
    parser.add_argument("--peak-sizes", type=int, nargs="+", default=list(peak.SIZES), help=argparse.SUPPRESS)
    parser.add_argument(
        "--output", default="results/benchmarks/kernels.json",
        help="rows as JSON; a figure and pipeline.json (blocks and the embedded model) are written next to it",
    )  # fmt: skip
    return parser.parse_args(argv)


def share_of_peak(row, rates):
    """A row's operations per second over the device's peak in the same dtype, or None where the peak is unknown."""
    if row["format"] == "float8":
        return None
    kinds = ("int8",) if "A8" in row["format"] or "A4" in row["format"] else ("float32", "bfloat16")
    most = max((rates[kind] for kind in kinds if kind in rates), default=None)
    return most and row["gops"] and row["gops"] / most


def pipeline(args):
    """Rows of the embedded model generating one image: in float32, bfloat16, and W8A8 rounded to nearest in float32.

    Each process holds all of them and lets them take turns; the interval is Student's t over the processes.
    """
    from benchmarks import model_speed, peers
    from quantwatt.inference import checkpoint
    from quantwatt.measuring import summary
    from quantwatt.measuring.processes import Bar, Processes
    from quantwatt.measuring.settings import Measuring

    methods = {
        peers.FLOAT32: {"dtype": "float32"},
        peers.BFLOAT16: {"dtype": "bfloat16"},
        model_speed.QUANTIZED: {
            **{"dtype": "float32", "weights": {"format": "integer", "bits": 8, "symmetric": True}},
            "activations": {"bits": 8},
        },
    }
    measuring = experiment.load_config({})["measuring"] | {
        **{"meter": "none", "precision": 0, "limit_s": args.latency_s, "processes": args.processes},
        **{"phases_s": 0, "images_per_batch": 1},
    }
    prompts = str(manifest.PROJECT / "resources/prompts/shapes-calibration.txt")
    sampling = {"prompts": prompts, "seed": 0, "steps": args.steps, "guidance": 3.0}
    task = {"sampling": sampling, "measuring": measuring, "device": args.device, "threads": args.threads,
            "memory": False, "first": False, "last": False}  # fmt: skip
    configurations = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = checkpoints(methods, Path(folder), args.device)
        for name, path in paths.items():
            _, kernel, reason = checkpoint.compute_of(path, args.device)
            configurations[name] = (kernel, methods[name]["dtype"], [], reason)
        computed = [name for name, (*_, reason) in configurations.items() if reason is None]
        task["checkpoints"] = {name: str(paths[name]) for name in computed}
        with Bar("tiny-sd3", Measuring.from_settings(measuring)) as bar, Processes(folder, bar) as run:
            for _ in range(args.processes):
                result = run.forked(task)
                if result["status"] != "ok":
                    raise DataError(f"the embedded model: {result['reason']}.")
                for name in computed:
                    [seconds] = summary.run_seconds([result], name)
                    configurations[name][2].append(seconds)
    return list(model_speed.rows_of("pipeline", args.device, WIDTH, IMAGE_TOKENS, configurations))


def checkpoints(methods, folder, device):
    """{method: manifest.json of its checkpoint} of the embedded model, made by the stages of the workflow."""
    import torch

    import model as model_rule
    import quantize
    from quantwatt.allocate.allocation import allocate
    from quantwatt.config.methods import quantizes_denoiser

    model, paths = folder / "model.json", {}
    settings = {**MODEL, "path": str(manifest.PROJECT / MODEL["path"]), "dtype": "float32"}
    model_rule.main(["--model", "tiny-sd3", "--settings", json.dumps(settings), "--output", str(model)])
    layers = manifest.read_json(model)["layers"]
    for name, entry in methods.items():
        method = experiment.complete_method(entry, "benchmarks/bench_kernels.py", name)
        allocation = allocate(layers, method, name) if quantizes_denoiser(method) else {}
        manifest.write_json(folder / f"{name}.json", allocation)
        paths[name] = folder / name / "manifest.json"
        quantize.main(
            ["--model", str(model), "--allocation", f"{folder}/{name}.json", "--method-name", name, "--method",
             json.dumps(method), "--device", device, "--threads", str(torch.get_num_threads()),
             "--output", str(paths[name])]
        )  # fmt: skip
    return paths


def sentences(rows, widths):
    """Sentences for the terminal: each kernel's mean speed, and the width from which on 8 bits are faster."""
    from benchmarks import model_speed

    timed = [row for row in rows if row["tokens"] == SUMMED_UP and row["ms"]]
    for kernel, name in dict.fromkeys((row["kernel"], row["format"]) for row in timed):
        kernel_rows = [row for row in timed if (row["kernel"], row["format"]) == (kernel, name)]
        speeds = []
        for key, other in (("fp32", "float32"), ("bf16", "bfloat16"), ("bf16_prepacked", "prepacked bfloat16")):
            ratios = [row[f"ratio_to_{key}"] for row in kernel_rows if row[f"ratio_to_{key}"]]
            speeds += [f"{statistics.geometric_mean(ratios):.2f} times {other}"] if ratios else []
        shares = [row["share_of_peak"] for row in kernel_rows if row["share_of_peak"]]
        share = f", {statistics.mean(shares):.0%} of the peak" if shares else ""
        error = statistics.mean(row["relative_error"] for row in kernel_rows)
        yield f"{called(name, kernel)}, {SUMMED_UP} tokens: {', '.join(speeds)}{share}, error {error:.2g}."
    yield from against_peers(rows)
    for tokens in dict.fromkeys(row["tokens"] for row in widths if row["part"] == "block"):
        blocks = [row for row in widths if (row["part"], row["tokens"]) == ("block", tokens)]
        for key, other in (("ratio_to_bf16", "bfloat16"), ("ratio_to_fp32", "float32")):
            least = model_speed.pays_from(blocks, key)
            where = "at no width measured" if least is None else f"from width {least} on"
            yield f"A block of {tokens} image tokens in W8A8 is faster than in {other} {where}."
    for row in widths:
        if row["part"] == "pipeline" and row["configuration"] == model_speed.QUANTIZED:
            yield f"tiny-sd3 in W8A8: {spoken(row)}."


def against_peers(rows, name="W8A8"):
    """Sentences that hold the first kernel of a format against other libraries' of as many bits, at every size."""
    timed = [row for row in rows if row["ms"] and row["format"].startswith(name)]
    own = {sized(row): row for row in reversed(timed) if row["format"] == name and row["kernel"] in OWN}
    others = [row for row in timed if row["kernel"] not in OWN and sized(row) in own]
    for kernel in dict.fromkeys(row["kernel"] for row in others):
        pairs = [(own[sized(row)], row) for row in others if row["kernel"] == kernel]
        speeds = [other["ms"] / mine["ms"] for mine, other in pairs]
        errors = statistics.mean(mine["relative_error"] / other["relative_error"] for mine, other in pairs)
        yield (
            f"{name} against {kernel}: {min(speeds):.2f} to {max(speeds):.2f} times its speed at {len(pairs)} sizes, "
            f"at {errors:.2f} of its error."
        )


def sized(row):
    return row["in_features"], row["out_features"], row["tokens"]


def called(format_name, kernel):
    return kernel if format_name in kernel else f"{format_name}, {kernel}"


def spoken(row):
    """A row's latency and speed-ups with their intervals in words, or the reason why there are none."""
    if row["ms"] is None:
        return row["reason"]
    speeds = []
    for key, other in (("ratio_to_bf16", "bfloat16"), ("ratio_to_fp32", "float32")):
        low, high = (row[f"{key}_{side}"] for side in ("low", "high"))
        within = "" if low is None else f" [{low:.2f}, {high:.2f}]"
        speeds += [f"{row[key]:.2f}{within} times {other}"] if row[key] else []
    return f"{row['ms']:.0f} ms an image, {', '.join(speeds)}"


def draw(rows, widths, output):
    """Draw the speeds of all layer implementations; below them, the speeds of blocks by width."""
    shown = [row for row in rows if row["tokens"] in DRAWN and row["ratio_to_fp32"]]
    names = list(dict.fromkeys((row["format"], row["kernel"]) for row in shown))[::-1]
    heights = [0.2 * len(names) + 1.2, 3]
    with harness.figure(output, (9, sum(heights))) as figure:
        above, below = figure.subfigures(2, 1, height_ratios=heights)
        if shown:
            draw_layers(above, shown, names)
        if widths:
            draw_widths(below, widths)


def draw_layers(figure, rows, names):
    """Draw one panel for each number of tokens; each point is one layer shape.

    Args:
        names: [(format, kernel)], from the bottom up.
    """
    from quantwatt.report.figures import GREY, PALE, PALETTE, plain_log_ticks

    counts = sorted({row["tokens"] for row in rows})
    shapes = list(dict.fromkeys((row["in_features"], row["out_features"]) for row in rows))
    labels = [called(*name) for name in names]
    all_axes = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for axes, count in zip(all_axes, counts, strict=True):
        for colour, shape in zip(PALETTE, shapes, strict=False):
            shown = [row for row in rows if (row["tokens"], row["in_features"], row["out_features"]) == (count, *shape)]
            places = [names.index((row["format"], row["kernel"])) for row in shown]
            speeds = [row["ratio_to_fp32"] for row in shown]
            axes.scatter(speeds, places, s=14, color=colour, label="{} to {}".format(*shape), zorder=2)
        axes.axvline(1, color=GREY, lw=0.8, zorder=0)
        axes.grid(axis="y", color=PALE, lw=0.5)
        axes.set_xscale("log")
        plain_log_ticks(axes)
        axes.set_title(f"A layer, {count:,} token{'s' if count > 1 else ''}")
        axes.set_xlabel("speed, float32 = 1", color=GREY)
        axes.set_yticks(range(len(names)), labels, fontsize=7.5)
    handles = {label: mark for axes in all_axes for mark, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower right", ncols=len(handles), frameon=False, fontsize=8)


def draw_widths(figure, rows):
    """Draw the speeds of blocks by width, and of the whole embedded model, with intervals."""
    from matplotlib import ticker

    from quantwatt.report.figures import GREY, PALETTE

    axes = figure.subplots()
    kinds = dict.fromkeys((row["part"], row["tokens"]) for row in rows)
    for colour, (part, tokens) in zip(PALETTE, kinds, strict=False):
        for name, mark, line in (("bfloat16", "o", "--"), ("W8A8", "s", "-")):
            shown = [row for row in rows if (row["part"], row["tokens"], row["configuration"]) == (part, tokens, name)]
            shown = [row for row in shown if row["ratio_to_fp32_low"]]
            speeds = [row["ratio_to_fp32"] for row in shown]
            low = [row["ratio_to_fp32"] - row["ratio_to_fp32_low"] for row in shown]
            high = [row["ratio_to_fp32_high"] - row["ratio_to_fp32"] for row in shown]
            model = "tiny-sd3, whole" if part == "pipeline" else f"{tokens:,} image tokens"
            axes.errorbar(
                [row["width"] for row in shown], speeds, (low, high), color=colour, marker=mark, ls=line, lw=1.2,
                markersize=4, capsize=2, label=f"{model}, {name}",
            )  # fmt: skip
    axes.axhline(1, color=GREY, lw=0.8, zorder=0)
    axes.set_yscale("log", base=2)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({row["width"] for row in rows}))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_title("Transformer blocks of Stable Diffusion 3")
    axes.set_xlabel("width", color=GREY)
    axes.set_ylabel("speed, float32 = 1", color=GREY)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)


if __name__ == "__main__":
    command.run(main)
