"""Measure a text model in one precision: latency, power, energy, memory and accuracy, as one row and one JSON.

  python workflow_scripts/measure.py --model resources/models/tiny-distilbert --precision int8

writes OUTPUT/int8/trial-1.csv and trial-1.json. Run it once for every trial. `--batch-size 1 8 32` sweeps, each size in
files of its own (trial-1-batch-8.csv). Latency is measured without the power sampler, energy afterwards in blocks of
its own; both compute one batch, again and again, that is on the device before the clock starts. What cannot be read or
computed here is empty, and the JSON says why. Seconds, watts, joules, 10^6 or 10^9 bytes; an inference is one sentence
(DistilBERT) or one window of text (GPT-2). For GPT-2 the JSON also holds `decode`: writing one token after the other.
"""

import argparse
import contextlib
import csv
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from quantwatt import command, experiment, manifest, meters
from quantwatt.manifest import DataError
from quantwatt.progress import progress

METRICS = (
    *"mean_latency std_latency throughput min_latency max_latency median_latency".split(),
    *"mean_power_w std_power_w min_power_w max_power_w median_power_w num_power_samples".split(),
    *"total_energy_j energy_per_inference_j energy_per_inference_mj inferences_per_joule".split(),
    *"accuracy num_correct num_samples_accuracy".split(),
    *"allocated_gb peak_allocated_gb reserved_gb num_parameters model_size_mb dtype".split(),
)
COLUMNS = ("model", "precision", "trial", "batch_size", "device", *METRICS, "energy_estimated", "perplexity")
TIMED, POWER, ENERGY, MEMORY = METRICS[:6], METRICS[6:12], METRICS[12:16], METRICS[19:22]

INT8 = {"format": "integer", "bits": 8, "symmetric": True}
PRECISIONS = {  # as methods of an experiment
    "fp32": {"dtype": "float32"},
    "fp16": {"dtype": "float16"},
    "fp16-autocast": {"dtype": "float32", "autocast": "float16"},
    "bf16": {"dtype": "bfloat16"},
    "int8": {"weights": INT8, "activations": {"bits": 8}},
    "int8-static": {"weights": INT8, "activations": {"bits": 8, "granularity": "tensor", "dynamic": False}},
    "w4": {"weights": {"format": "nf4"}},
}
REVISIONS = {  # of the models of the study
    "distilbert-base-uncased-finetuned-sst-2-english": "714eb0fa89d2f80546fda750413ed43d93601a13",
    "gpt2": "607a30d783dfa663caf39e06633721c8d4cfcd7e",
}
TEXTS = {  # what is read without --texts and --calibration-texts
    "distilbert": ("resources/texts/reviews-test.tsv", "resources/texts/reviews-calibration.tsv"),
    "gpt2": ("resources/texts/manuals-test.txt", "resources/texts/manuals-train.txt"),
}
BLOCKS, BLOCK_S = 4, 10  # of energy: watts are shown after each; readings of a GPU's sensor need seconds
PREDICTED_AT_ONCE = 32


def main(argv=None):
    args = parse_arguments(argv)
    device = choose_device(args.device, args.gpu)
    for record in measure(args, device):
        batch = f"-batch-{record['batch_size']}" if record["batch_size"] > 1 else ""
        path = args.output / args.precision / f"trial-{args.trial}{batch}.json"
        write_row(path.with_suffix(".csv"), record)
        manifest.write_json(path, record)
        print(path)


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpWithDefaults)
    parser.add_argument("--model", default=next(iter(REVISIONS)), help="local folder, or name on the hub")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the whole model or its layers")
    parser.add_argument("--iterations", type=positive, default=1000, help="timed runs")
    parser.add_argument("--warm-up", type=int, default=100, help="runs before them")
    parser.add_argument("--power-interval-ms", type=float, default=100, help="of power sampling")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="the CPU where there is no CUDA")
    parser.add_argument("--gpu", type=int, default=0, help="number of the GPU")
    parser.add_argument("--trial", type=int, default=1, help="number of the trial, in the files' names")
    parser.add_argument("--batch-size", type=positive, nargs="+", default=[1], help="inferences in one run, or several")
    parser.add_argument("--output", type=Path, default=Path("results/text-study"), help="folder of the results")
    parser.add_argument("--revision", help="commit of the hub's repository; known for the study's models")
    parser.add_argument("--texts", type=Path, help="SST-2's dev.tsv or the like, or running text; else ours")
    parser.add_argument("--calibration-texts", type=Path, help="for int8-static; else ours")
    parser.add_argument("--max-length", type=positive, default=128, help="tokens")
    parser.add_argument("--new-tokens", type=positive, default=32, help="GPT-2: tokens of a run of decode")
    parser.add_argument("--meter", choices=("auto", *meters.NAMES), default="auto", help="what reads energy")
    parser.add_argument("--threads", type=positive, help="of the CPU; all of them without it")
    return parser.parse_args(argv)


class HelpWithDefaults(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside every option, and the description as it is written."""


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def choose_device(device, gpu):
    """ "cuda" with that one GPU visible, or "cpu", with a sentence where it was not asked for.

    GPUs are numbered as the driver does, or as a scheduler has listed those of this process.
    """
    if device == "cpu":
        return device
    listed = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    # Read once, when CUDA is first asked for anything.
    os.environ["CUDA_VISIBLE_DEVICES"] = (listed[gpu] if gpu < len(listed) else "") if listed else str(gpu)
    import torch

    if torch.cuda.is_available():
        return device
    print(f"no CUDA device {gpu}: measuring on the CPU, whose figures do not compare with a GPU's.", file=sys.stderr)
    return "cpu"


def measure(args, device):
    """Everything that the row and the JSON say, one batch size after the other."""
    import torch

    torch.set_num_threads(args.threads or os.cpu_count())
    with tempfile.TemporaryDirectory() as folder:
        path, texts_path = make_checkpoint(args, Path(folder), device)
        details = manifest.read_json(path)
        common = {
            "model": args.model, "precision": args.precision, "trial": args.trial, "batch_size": None,
            "device": device, **dict.fromkeys(METRICS), "energy_estimated": False, "perplexity": None,
            "iterations": args.iterations, "warm_up": args.warm_up, "power_interval_ms": args.power_interval_ms,
            "max_length": args.max_length, "texts": texts_path.name, "texts_sha256": manifest.sha256(texts_path),
            "location": details["location"], "method": details["settings"],
            "status": details["status"], "compute": None, "kernel": None, "reasons": {},
        }  # fmt: skip
        if details["status"] != "ok":
            reasons = dict.fromkeys(METRICS, details["reason"])
            for size in args.batch_size:
                yield closed(common | {"batch_size": size}, reasons, device)
            return
        pipeline = load(path, device)
        texts, labels = pipeline.family.read(texts_path)
    sampling = {"max_length": args.max_length, "stride": None, "items": None, "new_tokens": args.new_tokens}
    common |= {"compute": pipeline.compute, "kernel": pipeline.kernel}
    common |= model_size(details, pipeline.pipeline.model)
    reasons = quality(common, pipeline, texts, labels, sampling | {"batch_size": PREDICTED_AT_ONCE})
    if pipeline.compute != "real":
        reasons |= dict.fromkeys((*TIMED, *POWER, *ENERGY, *MEMORY), f"simulated: {pipeline.reason}")
    for size in args.batch_size:
        record, why = common | {"batch_size": size}, dict(reasons)
        if pipeline.compute == "real":
            why |= cost(record, args, pipeline, texts, sampling | {"batch_size": size}, device)
        yield closed(record, why, device)


def make_checkpoint(args, folder, device):
    """The stages of the workflow up to the checkpoint, in a folder.

    Returns:
        (checkpoint's manifest.json, the file of texts).
    """
    import calibrate
    import fetch_model
    import quantize
    from quantwatt.allocation import allocate

    method = experiment.complete_method(PRECISIONS[args.precision], "measure.py", args.precision)
    settings = model_settings(args)
    fetch_model.main(
        ["--model", "model", "--settings", json.dumps(settings), "--output", str(folder / "model" / "manifest.json")]
    )
    model = manifest.read_json(folder / "model" / "manifest.json")
    texts, calibration_texts = (
        Path(given or manifest.PROJECT / own)
        for given, own in zip((args.texts, args.calibration_texts), TEXTS[settings["family"]], strict=True)
    )
    manifest.write_json(folder / "allocation.json", allocate(model["layers"], method, args.precision))
    common = ["--model", str(folder / "model" / "manifest.json"), "--threads", str(args.threads or os.cpu_count())]
    output = folder / "checkpoint" / "manifest.json"
    options = ["--allocation", str(folder / "allocation.json"), "--method-name", args.precision]
    options += ["--method", json.dumps(method), "--device", device, "--output", str(output)]
    if experiment.needs_calibration(method):
        calibrated = folder / "calibration" / "manifest.json"
        entry = {"texts": str(calibration_texts), "samples": 128, "max_length": args.max_length, "batch_size": 8}
        calibrate.main([*common, "--calibration", json.dumps(entry), "--device", device, "--output", str(calibrated)])
        options += ["--calibration", str(calibrated)]
    quantize.main([*common, *options])
    return output, texts


def model_settings(args):
    """The model's entry as an experiment has it: a local folder, or the hub's repository at a commit.

    Raises:
        DataError: the folder holds no model of a family of text models, or the hub cannot be reached.
    """
    if not Path(args.model).is_dir():
        name = args.model.rpartition("/")[2]
        revision = args.revision or REVISIONS.get(name)
        if revision is None:
            raise DataError(f"--model {args.model}: no such folder; of a model on the hub, give the --revision too.")
        family = "gpt2" if "gpt2" in name else "distilbert"
        return {"family": family, "hub": args.model, "revision": revision, "dtype": "float32"}
    config = manifest.read_json(Path(args.model) / "config.json")
    if config.get("model_type") not in TEXTS:
        raise DataError(f"--model {args.model}: a {config.get('model_type')} model, not one of {', '.join(TEXTS)}.")
    return {"family": config["model_type"], "path": str(Path(args.model).resolve()), "dtype": "float32"}


def load(path, device):
    from quantwatt import checkpoint

    return checkpoint.load_pipeline(path, device)


def model_size(details, model):
    """num_parameters, model_size_mb and dtype; of a quantized model the packed size and the format."""
    if details["layers"]:
        layer = next(iter(details["layers"].values()))["weights"]
        dtype = f"int{layer['bits']}" if layer["format"] == "integer" else layer["format"]
    else:
        dtype = details["model_settings"]["dtype"]
    inside = [(layer["in_features"], layer["out_features"]) for layer in details["layers"].values()]
    stored = sum(p.numel() for p in model.parameters())
    biases = sum(m.bias.numel() for m in model.modules() if hasattr(m, "activation_format") and m.bias is not None)
    return {
        "num_parameters": stored + biases + sum(rows * columns for columns, rows in inside),
        "model_size_mb": details["size_bytes"] / 1e6,
        "dtype": dtype,
    }


def quality(record, pipeline, texts, labels, sampling):
    """Fill in accuracy and perplexity; returns why they are empty."""
    from quantwatt.metrics import Undefined, accuracy, perplexity
    from quantwatt.text import predictions

    items = pipeline.predict(texts, sampling)
    predictions.check(items)
    items = predictions.judged(items, labels)
    try:
        record["accuracy"] = accuracy.score(items, resamples=100).value
        record["perplexity"] = manifest.finite(perplexity.score(items, resamples=100).value)
    except Undefined as error:
        return dict.fromkeys(("accuracy", "num_correct", "num_samples_accuracy", "perplexity"), str(error))
    record["num_correct"] = sum(item["correct"] for item in items)
    record["num_samples_accuracy"] = sum(item["tokens"] for item in items)
    return {}


def cost(record, args, pipeline, texts, sampling, device):
    """Fill in latency, power, energy and memory; returns why some are empty."""
    [batch] = pipeline.batches(texts, sampling, sampling["batch_size"], 1)
    work = pipeline.family.work(pipeline.pipeline, batch[0], sampling)
    synchronize, reasons = synchronize_of(device), {}
    meter, unavailable = open_meter(args, device)
    with contextlib.closing(meter):
        record["meter"] = meter.provenance()
        record["energy_estimated"] = meter.estimated
        for phase, run in pipeline.phases(*batch, sampling).items():
            iterations = args.iterations if phase == "forward" else max(1, args.iterations // args.new_tokens)
            reset_peak(device)
            found = latency(run, iterations, args.warm_up, work["items"], synchronize, phase)
            found |= memory(device) if phase == "forward" else {}
            if meter.name == "none":
                blocks, reason = [], unavailable or meter.stop().fault
            else:
                blocks, reason = energy_blocks(run, meter, iterations, found["mean_latency"], synchronize, phase)
            found |= power_and_energy(blocks, work["items"], reason)
            if phase == "forward":
                record |= found
                record["blocks"] = [{key: value for key, value in b.items() if key != "watts"} for b in blocks]
                if reason:
                    reasons |= dict.fromkeys((*POWER, *ENERGY), reason)
            else:
                tokens = work["new_tokens"] / work["items"]  # of one inference
                joules = found["energy_per_inference_j"]
                found["tokens_per_second"] = found["throughput"] * tokens
                found["energy_per_token_j"] = joules and joules / tokens
                record[phase] = found
    record["tokens_per_second"] = record["throughput"] * work["tokens"] / work["items"]
    if device == "cpu":
        reasons |= dict.fromkeys(MEMORY, "torch counts the memory of GPUs only")
    return reasons


def latency(run, iterations, warm_up, items, synchronize, phase):
    """Seconds of every run, one after the other, without the power sampler; throughput in inferences per second."""
    for _ in progress(range(warm_up), description=f"{phase}: warm-up", unit="run"):
        run()
    synchronize()
    seconds = np.empty(iterations)
    for index in progress(range(iterations), description=f"{phase}: latency", unit="run"):
        before = time.perf_counter()
        run()
        synchronize()
        seconds[index] = time.perf_counter() - before
    return {
        "mean_latency": float(seconds.mean()),
        "std_latency": float(seconds.std(ddof=1)) if iterations > 1 else None,
        "throughput": float(items / seconds.mean()),
        "min_latency": float(seconds.min()),
        "max_latency": float(seconds.max()),
        "median_latency": float(np.median(seconds)),
    }


def energy_blocks(run, meter, iterations, seconds, synchronize, phase):
    """BLOCKS blocks that hold at least all iterations and last at least BLOCK_S each, with watts shown after each.

    Args:
        seconds: of one run, as expected.
    Returns:
        ([{"runs", "seconds", "energy_j", "watts": samples, "void": reason or None}], why there is no energy or None).
    """
    least, blocks = math.ceil(iterations / BLOCKS), []
    total = BLOCKS * max(least, math.ceil(BLOCK_S / seconds))
    with progress(total=total, description=f"{phase}: energy", unit="run") as bar:
        for _ in range(BLOCKS):
            synchronize()
            meter.start()
            start, runs = time.perf_counter(), 0
            while runs < least or time.perf_counter() - start < BLOCK_S:
                run()
                synchronize()
                runs += 1
                bar.update()
            took, trace = time.perf_counter() - start, meter.stop()
            watts = [float(w) for w in trace.watts if w == w]
            blocks.append(
                {"runs": runs, "seconds": took, "energy_j": trace.energy_j, "void": trace.fault, "watts": watts}
            )
            if trace.energy_j is not None:
                bar.set_postfix(watts=f"{trace.energy_j / took:.1f}")
    good = [block for block in blocks if block["energy_j"] is not None]
    return blocks, None if good else f"every block is void, the last because {blocks[-1]['void']}"


def power_and_energy(blocks, items, reason):
    """Power over all samples of the good blocks, and energy per inference over their runs; all None with a reason."""
    if reason:
        return dict.fromkeys((*POWER, *ENERGY))
    good = [block for block in blocks if block["energy_j"] is not None]
    watts = np.array([w for block in good for w in block["watts"]])
    power = dict.fromkeys(POWER)
    if len(watts):  # a meter may tell energy alone
        figures = (watts.mean(), watts.std(ddof=1), watts.min(), watts.max(), np.median(watts))
        power = dict(zip(POWER, [*map(manifest.finite, figures), len(watts)], strict=True))
    joules, inferences = sum(block["energy_j"] for block in good), items * sum(block["runs"] for block in good)
    return {
        **power,
        "total_energy_j": joules,
        "energy_per_inference_j": joules / inferences,
        "energy_per_inference_mj": 1000 * joules / inferences,
        "inferences_per_joule": inferences / joules,
    }


def open_meter(args, device):
    """(meter, why there is no energy or None): a meter that this machine cannot read leaves energy empty."""
    config = experiment.load_config(experiment.read_yaml(experiment.ROOT / "config.yaml", "config.yaml"))
    settings = config["measuring"] | {"interval_ms": args.power_interval_ms}
    try:
        return meters.open_meter(experiment.resolve_meter(args.meter, device), settings, device), None
    except meters.MeterUnavailable as error:
        print(f"no energy: {error}", file=sys.stderr)
        return meters.open_meter("none"), str(error)


def synchronize_of(device):
    if device == "cpu":
        return lambda: None
    import torch

    return torch.cuda.synchronize


def reset_peak(device):
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()


def memory(device):
    """Memory of the GPU as torch counts it, after the latency runs; None on a CPU."""
    if device == "cpu":
        return dict.fromkeys(MEMORY)
    import torch

    counted = (torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated(), torch.cuda.memory_reserved())
    return {name: bytes_ / 1e9 for name, bytes_ in zip(MEMORY, counted, strict=True)}


def closed(record, reasons, device):
    """The record with its reasons, the energy's where no meter says one, and where it comes from."""
    import torch

    packages = ("torch", "transformers", "tokenizers", "bitsandbytes", "nvidia-ml-py")
    name = torch.cuda.get_device_name(0) if device == "cuda" else None
    return record | {
        "reasons": {key: reason for key, reason in reasons.items() if record[key] is None},
        "device_name": name or manifest.provenance(())["cpu"],
        "threads": torch.get_num_threads(),
        "provenance": manifest.provenance(packages),
    }


def write_row(path, record):
    """A header and one row; what is None is empty."""
    with manifest.atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerow(record)


if __name__ == "__main__":
    command.run(main)
