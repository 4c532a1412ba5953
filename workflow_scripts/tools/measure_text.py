"""Measure a text model in one precision: latency, power, energy, memory and accuracy, as one row and one JSON.

  .venv/bin/python workflow_scripts/tools/measure_text.py --model resources/models/tiny-distilbert --precision int8

writes OUTPUT/int8/trial-1.csv and trial-1.json. Run it once for every trial. `--batch-size 1 8 32` sweeps, each size in
files of its own (trial-1-batch-8.csv), its sentences padded to the length of the largest batch. Latency is measured
without the power sampler, energy afterwards in blocks of its own; both compute one batch, again and again, that is on
the device before the clock starts. What cannot be read or computed here is empty, and the JSON says why. Seconds,
watts, joules, 10^6 or 10^9 bytes; an inference is one sentence (DistilBERT) or one window of text (GPT-2). For GPT-2
the JSON also holds `decode`: writing one token after the other.
"""

import argparse
import contextlib
import csv
import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where quantwatt is

from quantwatt.artifacts import errors, manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.provenance import provenance
from quantwatt.config import experiment, methods
from quantwatt.data import class_names
from quantwatt.jobs import command, machine
from quantwatt.measuring import fresh_process, meters, text_costs

METRICS = (
    *text_costs.TIMES, *text_costs.POWER, *text_costs.ENERGY,
    "accuracy", "num_correct", "num_samples_accuracy",
    *text_costs.MEMORY, "num_parameters", "model_size_mb", "dtype",
    text_costs.COUNT, "perplexity", "meter",
)  # fmt: skip
COLUMNS = ("model", "precision", "trial", "batch_size", "device", *METRICS, "energy_estimated", "texts")
QUALITY = ("accuracy", "num_correct", "num_samples_accuracy", "perplexity")

INT8 = {"format": "integer", "bits": 8, "symmetric": True}
PRECISIONS = {  # as methods of an experiment
    "fp32": {"dtype": "float32"},
    "fp16": {"dtype": "float16"},
    "fp16-autocast": {"dtype": "float32", "autocast": "float16"},
    "bf16": {"dtype": "bfloat16"},
    "int8": {"weights": INT8, "activations": {"bits": 8}},
    "int8-static": {"weights": INT8, "activations": {"bits": 8, "granularity": "tensor", "dynamic": False}},
    "w4": {"dtype": "float16", "weights": {"format": "nf4"}},
}
REVISIONS = {  # of the models of the study
    "distilbert/distilbert-base-uncased-finetuned-sst-2-english": "714eb0fa89d2f80546fda750413ed43d93601a13",
    "openai-community/gpt2": "607a30d783dfa663caf39e06633721c8d4cfcd7e",
}
TEXTS = {  # what is read without --texts and --calibration-texts
    "distilbert": ("resources/texts/reviews-test.tsv", "resources/texts/reviews-calibration.tsv"),
    "gpt2": ("resources/texts/manuals-test.txt", "resources/texts/manuals-train.txt"),
}
RESULTS = Path("results/text-study")
PREDICTED_AT_ONCE = 32


def main(argv=None):
    args = parse_arguments(argv)
    device = choose_device(args.device, args.gpu)
    folder = (args.output or RESULTS / Path(args.model).resolve().name) / args.precision
    paths = {n: folder / f"trial-{args.trial}{f'-batch-{n}' if n > 1 else ''}.json" for n in args.batch_size}
    refuse_others(paths.values(), args.model, fresh_process.describe_device(device)["name"])
    for record in measure(args, device):
        path = paths[record["batch_size"]]
        write_row(path.with_suffix(".csv"), record)
        manifest.write_json(path, record)
        print(path)


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpWithDefaults)
    parser.add_argument("--model", type=model_name, default=next(iter(REVISIONS)), help="folder, or name on the hub")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the whole model or its layers")
    parser.add_argument("--iterations", type=at_least(1), default=1000, help="timed runs")
    parser.add_argument("--warm-up", type=at_least(0), default=100, help="runs before them")
    parser.add_argument("--power-interval-ms", type=above_zero, default=100, help="of power sampling")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="the CPU where there is no CUDA")
    parser.add_argument("--gpu", type=at_least(0), default=0, help="number of the GPU")
    parser.add_argument("--trial", type=at_least(0), default=1, help="number of the trial, in the files' names")
    parser.add_argument("--batch-size", type=at_least(1), nargs="+", default=[1], help="inferences in one run; several")
    parser.add_argument("--output", type=Path, help=f"folder of the results; else {RESULTS}/MODEL")
    parser.add_argument("--revision", help="commit of the hub's repository; known for the study's models")
    parser.add_argument("--texts", type=Path, help="SST-2's dev.tsv or the like, or running text; else ours")
    parser.add_argument("--calibration-texts", type=Path, help="for int8-static; else ours")
    parser.add_argument("--max-length", type=at_least(2), default=128, help="tokens")
    parser.add_argument("--new-tokens", type=at_least(1), default=32, help="GPT-2: tokens of a run of decode")
    parser.add_argument("--meter", choices=("auto", *meters.NAMES), default="auto", help="what reads energy")
    parser.add_argument("--threads", type=at_least(1), help="of the CPU; else as many as torch takes by itself")
    return parser.parse_args(argv)


class HelpWithDefaults(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside every option, and the description as it is written."""


def model_name(text):
    return str(Path(text))  # one name with and without a slash at its end


def at_least(least):
    def whole(text):
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is not {least} or more")
        return int(text)

    return whole


def above_zero(text):
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return float(text)


def choose_device(device, gpu):
    """ "cuda" with that one GPU visible, or "cpu", with a sentence where it was not asked for.

    GPUs are numbered as the driver does, or as a scheduler has listed those of this process; an empty list is none.
    """
    if device == "cpu":
        return device
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(gpu)] if listed is None else [name for name in listed.split(",") if name.strip()][gpu : gpu + 1]
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    os.environ["CUDA_VISIBLE_DEVICES"] = "".join(names)  # read once, when CUDA is first asked for anything
    import torch

    if torch.cuda.is_available():
        return device
    print(f"no CUDA device {gpu}: measuring on the CPU, whose figures do not compare with a GPU's.", file=sys.stderr)
    return "cpu"


def refuse_others(paths, model, device_name):
    """Let a trial be repeated, and nothing else be written over.

    Raises:
        DataError: one of the files holds another model or another device.
    """
    for there, path in ((manifest.read_json(path), path) for path in paths if path.exists()):
        held = there.get("model"), there.get("device_name")
        if held != (model, device_name):
            raise DataError(
                f"{path} holds {held[0]} on {held[1]}, not {model} on {device_name}: choose another --output."
            )


def measure(args, device):
    """Everything that the row and the JSON say, one batch size after the other; an expected failure is a result."""
    common = {
        "model": args.model, "precision": args.precision, "trial": args.trial, "batch_size": None, "device": device,
        "status": "ok", "reason": None, **dict.fromkeys(METRICS), "energy_estimated": False, "texts": None,
        "iterations": args.iterations, "warm_up": args.warm_up, "power_interval_ms": args.power_interval_ms,
        "max_length": args.max_length, "compute": None, "kernel": None, "reasons": {},
    }  # fmt: skip
    try:
        with errors.expected():
            pipeline, texts, sampling, fields = load_and_score(args, device)
    except errors.ExpectedFailure as failure:
        for size in args.batch_size:
            yield failed({**common, "batch_size": size}, failure, device)
        return
    common |= fields
    for size in args.batch_size:
        record = {**common, "batch_size": size}
        try:
            with errors.expected():
                found = cost(args, pipeline, texts, {**sampling, "batch_size": size}, device)
        except errors.ExpectedFailure as failure:
            yield failed(record, failure, device)
        else:
            yield closed({**record, **found, "reasons": {**record["reasons"], **found["reasons"]}}, device)


def load_and_score(args, device):
    """(pipeline, texts, the sampling of what is timed, fields of the record that every batch size shares).

    Raises:
        ExpectedFailure: there is no such checkpoint for this device.
        DataError: the texts are too few for the largest batch.
    """
    import torch

    from quantwatt.inference import checkpoint

    threads = args.threads or torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path, texts_path = make_checkpoint(args, Path(folder), device, threads)
        details, model = manifest.read_json(path), manifest.read_json(f"{folder}/model/manifest.json")
        if details["status"] != "ok":
            raise errors.ExpectedFailure(details["status"], details["reason"])
        torch.set_num_threads(threads)
        pipeline = checkpoint.load_pipeline(path, device, simulate=True)
    texts, labels = pipeline.family.read(texts_path)
    sampling = {"max_length": args.max_length, "stride": None, "items": None, "new_tokens": args.new_tokens}
    timed = padded_alike(pipeline, texts, sampling, max(args.batch_size))
    fields = {
        "compute": pipeline.compute, "kernel": pipeline.kernel, "location": details["location"],
        "method": details["settings"], "texts": texts_path.name, "texts_sha256": manifest.sha256(texts_path),
        "num_parameters": model["parameters"], "model_size_mb": details["size_bytes"] / 1e6, "dtype": dtype_of(details),
    }  # fmt: skip
    labels, _ = class_names.of_outputs(labels, pipeline.pipeline.model, texts_path)
    fields |= quality(pipeline, texts, labels, {**sampling, "batch_size": PREDICTED_AT_ONCE})
    return pipeline, texts, timed, fields


def make_checkpoint(args, folder, device, threads):
    """The stages of the workflow up to the checkpoint, in a folder.

    Returns:
        (checkpoint's manifest.json, the file of texts).
    """
    import calibrate
    import model as model_rule
    import quantize
    from quantwatt.allocate.allocation import allocate

    method = experiment.complete_method(PRECISIONS[args.precision], "tools/measure_text.py", args.precision)
    settings = model_settings(args)
    model_rule.main(
        ["--model", "model", "--settings", json.dumps(settings), "--output", str(folder / "model" / "manifest.json")]
    )
    model = manifest.read_json(folder / "model" / "manifest.json")
    texts, calibration_texts = (
        Path(given or manifest.PROJECT / own)
        for given, own in zip((args.texts, args.calibration_texts), TEXTS[settings["family"]], strict=True)
    )
    manifest.write_json(folder / "allocation.json", allocate(model["layers"], method, args.precision))
    common = ["--model", str(folder / "model" / "manifest.json"), "--threads", str(threads)]
    output = folder / "checkpoint" / "manifest.json"
    options = ["--allocation", str(folder / "allocation.json"), "--method-name", args.precision]
    options += ["--method", json.dumps(method), "--device", device, "--output", str(output)]
    if methods.needs_calibration(method):
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
        revision = args.revision or REVISIONS.get(args.model)
        if revision is None:
            raise DataError(f"--model {args.model}: no such folder; of a model on the hub, give the --revision too.")
        family = "gpt2" if "gpt2" in Path(args.model).name else "distilbert"
        return {"family": family, "hub": args.model, "revision": revision, "dtype": "float32"}
    config = manifest.read_json(Path(args.model) / "config.json")
    if config.get("model_type") not in TEXTS:
        raise DataError(f"--model {args.model}: a {config.get('model_type')} model, not one of {', '.join(TEXTS)}.")
    return {"family": config["model_type"], "path": str(Path(args.model).resolve()), "dtype": "float32"}


def dtype_of(details):
    """The format of a quantized model's weights; else the type that the model is stored in."""
    if not details["layers"]:
        return details["model_settings"]["dtype"]
    weights = next(iter(details["layers"].values()))["weights"]
    return f"int{weights['bits']}" if weights["format"] == "integer" else weights["format"]


def padded_alike(pipeline, texts, sampling, size):
    """The sampling with which batches up to a size are as long as the largest, so that sizes differ in nothing else.

    Raises:
        DataError: there are fewer texts.
    """
    [(batch, _)] = pipeline.batches(texts, sampling, size, 1)
    work = pipeline.family.work(pipeline.pipeline, batch, sampling)
    if work["tokens"] == work["padded_tokens"]:
        return sampling
    return {**sampling, "padded_to": work["padded_tokens"] // work["items"]}


def quality(pipeline, texts, labels, sampling):
    """Accuracy and perplexity, with the reasons of those that are empty.

    Raises:
        DegeneratePredictions: the model computes NaN or infinity.
    """
    from quantwatt.score import predictions
    from quantwatt.score.metrics import Undefined, accuracy, perplexity

    items = pipeline.predict(texts, sampling)
    predictions.check(items)
    items = predictions.judged(items, labels)
    try:
        found = {
            "accuracy": accuracy.score(items, resamples=100).value,
            "num_correct": sum(item["correct"] for item in items),
            "num_samples_accuracy": sum(item["tokens"] for item in items),
            "perplexity": manifest.finite(perplexity.score(items, resamples=100).value),
        }
    except Undefined as error:
        return {"reasons": dict.fromkeys(QUALITY, str(error))}
    return {**found, "reasons": {"perplexity": "it is beyond any number"}}


def cost(args, pipeline, texts, sampling, device):
    """Latency, power, energy and memory of one batch size, with the reasons of those that are empty."""
    if pipeline.compute != "real":
        return {"reasons": dict.fromkeys((*text_costs.ALL, "meter"), f"simulated: {pipeline.reason}")}
    [batch] = pipeline.batches(texts, sampling, sampling["batch_size"], 1)
    work = pipeline.family.work(pipeline.pipeline, batch[0], sampling)
    items, tokens = work["items"], work["tokens"] / work["items"]
    text_costs.free(device)
    meter, unavailable = open_meter(args, device)
    with contextlib.closing(meter):
        common = {"warm_up": args.warm_up, "items": items, "meter": meter, "unavailable": unavailable, "device": device}
        found = text_costs.of_phase("forward", pipeline.prepare(*batch, sampling), args.iterations, **common)
        found |= {
            "tokens_per_inference": tokens, "padded_tokens_per_inference": work["padded_tokens"] / items,
            "tokens_per_second": found["throughput"] * tokens,
            "meter": meter.name, "metering": meter.provenance(), "energy_estimated": meter.estimated,
        }  # fmt: skip
        # Made only now: what a phase keeps on the device, such as keys and values, is no memory of `forward`.
        for phase in pipeline.family.PHASES_APART:
            iterations, written = max(1, args.iterations // args.new_tokens), work["new_tokens"] / items
            text_costs.free(device)
            run = pipeline.phases(*batch, sampling)[phase]
            apart = text_costs.of_phase(phase, run, iterations, **common)
            joules = apart["energy_per_inference_j"]
            apart["tokens_per_second"] = apart["throughput"] * written
            apart["energy_per_token_j"] = joules and joules / written
            apart["reasons"] = empty_alone(apart)
            found[phase] = apart
    return found


def open_meter(args, device):
    """(meter, why there is no energy or None): beside a GPU's also the processor's, where it can be read."""
    config = experiment.load_config(experiment.read_yaml(experiment.ROOT / "config.yaml", "config.yaml"))
    name = machine.resolve_meter(args.meter, device)
    settings = meters.Metering.from_settings(
        {**config["measuring"], "meter": name, "interval_ms": args.power_interval_ms}
    )
    return fresh_process.choose_meter(settings, text_costs.BLOCK_S, device)


def failed(record, failure, device):
    """The record of what did not fit or broke: its status, and the reason for all that is empty."""
    fields = {"status": failure.status, "reason": failure.reason}
    reasons = {**dict.fromkeys(METRICS, failure.reason), **record["reasons"]}
    return closed({**record, **fields, "reasons": reasons}, device)


def closed(record, device):
    """The record with the reasons of its empty figures alone, and where it comes from."""
    packages = ("torch", "transformers", "tokenizers", "bitsandbytes", "nvidia-ml-py")
    described = fresh_process.describe_device(device)
    return record | {
        "reasons": empty_alone(record),
        "device_name": described["name"],
        "threads": described["threads"],
        "provenance": provenance(packages),
    }


def empty_alone(record):
    """The reasons of those figures that are empty."""
    return {key: reason for key, reason in record["reasons"].items() if record[key] is None}


def write_row(path, record):
    """A header and one row; what is None is empty."""
    with manifest.atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerow(record)


if __name__ == "__main__":
    command.run(main)
