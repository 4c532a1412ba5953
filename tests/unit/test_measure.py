"""The stand-alone command: its row, its reasons, and what it times."""

import csv
import json

import numpy as np
import pytest
import tiny_text
import torch

import measure
from quantwatt import kernels
from quantwatt.manifest import DataError
from quantwatt.meters.trace import Trace

STUDY = (
    "mean_latency std_latency throughput min_latency max_latency median_latency mean_power_w std_power_w min_power_w "
    "max_power_w median_power_w num_power_samples total_energy_j energy_per_inference_j energy_per_inference_mj "
    "inferences_per_joule accuracy num_correct num_samples_accuracy allocated_gb peak_allocated_gb reserved_gb "
    "num_parameters model_size_mb dtype"
).split()


class Meter:
    """100 W and 300 W in turn, 200 W on average over a second; 50 J a block."""

    name, estimated = "fake", True

    def __init__(self, fault=None):
        self.running, self.fault, self.blocks = False, fault, 0

    def start(self):
        self.running = True

    def stop(self):
        self.running, self.blocks = False, self.blocks + 1
        watts = np.array([100.0, 300.0, np.nan])
        joules, no_time = None if self.fault else 50.0, np.full(3, np.nan)
        return Trace(np.arange(3.0), watts, None, no_time, joules, "fake", 1, 0, fault=self.fault)

    def close(self):
        pass

    def provenance(self):
        return {"meter": "fake"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for name in ("distilbert", "gpt2"):
        folder = tmp_path_factory.mktemp(name)
        texts = folder / "texts"
        sentences = tiny_text.sentences(20)
        rows = ["sentence\tlabel", *(f"{text}\t{i % 2}" for i, text in enumerate(sentences))]
        texts.write_text("\n".join(rows) if name == "distilbert" else " ".join(sentences))
        made[name] = (getattr(tiny_text, name)(folder / "model", width=64), texts)
    return made


@pytest.fixture
def run(folders, tmp_path, monkeypatch):
    """run(family, *options) -> (row of the CSV, JSON), with 5 iterations."""
    monkeypatch.setattr(measure, "BLOCK_S", 0.01)

    def run(name, *options):
        model, texts = folders[name]
        precision = options[options.index("--precision") + 1] if "--precision" in options else "fp32"
        measure.main(
            ["--model", str(model), "--texts", str(texts), "--calibration-texts", str(texts), "--device", "cpu",
             "--iterations", "5", "--warm-up", "1", "--max-length", "12", "--new-tokens", "2", "--threads", "1",
             "--meter", "none", "--output", str(tmp_path), *options]
        )  # fmt: skip
        batch = f"-batch-{options[-1]}" if "--batch-size" in options else ""
        path = tmp_path / precision / f"trial-1{batch}.csv"
        (row,) = csv.DictReader(path.read_text().splitlines())
        return row, json.loads(path.with_suffix(".json").read_text())

    return run


def metered(monkeypatch, meter):
    monkeypatch.setattr(measure, "open_meter", lambda args, device: (meter, None))
    return meter


def test_arguments_are_the_studys_by_default():
    args = measure.parse_arguments([])
    assert args.model == "distilbert-base-uncased-finetuned-sst-2-english" and args.precision == "fp32"
    assert (args.iterations, args.warm_up, args.power_interval_ms) == (1000, 100, 100)
    assert (args.device, args.gpu, args.trial, args.batch_size) == ("cuda", 0, 1, [1])


@pytest.mark.parametrize("name", ["distilbert", "gpt2"])
def test_row_and_json_hold_every_metric_of_the_study(run, name):
    row, record = run(name)
    columns = list(row)
    assert columns[columns.index("mean_latency") : columns.index("dtype") + 1] == STUDY
    assert set(columns) == {*STUDY, *"model precision trial batch_size device energy_estimated perplexity".split()}
    for metric in STUDY:
        assert row[metric] == ("" if record[metric] is None else str(record[metric]))
        assert (record[metric] is None) == (metric in record["reasons"]), metric
    assert 0 < record["min_latency"] <= record["median_latency"] <= record["max_latency"]
    assert record["throughput"] == pytest.approx(1 / record["mean_latency"])
    assert record["tokens_per_second"] > record["throughput"]


def test_energy_is_that_of_its_blocks(run, monkeypatch):
    meter = metered(monkeypatch, Meter())
    row, record = run("distilbert", "--batch-size", "4")
    runs = sum(block["runs"] for block in record["blocks"])
    assert meter.blocks == len(record["blocks"]) == 4 and runs >= 5
    assert record["total_energy_j"] == 200
    assert record["energy_per_inference_j"] == pytest.approx(200 / (4 * runs))
    assert record["energy_per_inference_mj"] == pytest.approx(1000 * record["energy_per_inference_j"])
    assert record["inferences_per_joule"] == pytest.approx(4 * runs / 200)
    assert (record["mean_power_w"], record["min_power_w"], record["max_power_w"]) == (200, 100, 300)
    assert record["num_power_samples"] == 8  # two of each block could be read
    assert record["energy_estimated"] is True and row["energy_estimated"] == "True"


def test_a_sweep_of_batch_sizes_writes_each_to_its_own_files(run, tmp_path):
    _, largest = run("distilbert", "--batch-size", "1", "8")
    one = json.loads((tmp_path / "fp32/trial-1.json").read_text())
    assert (one["batch_size"], largest["batch_size"]) == (1, 8)
    assert one["accuracy"] == largest["accuracy"]
    assert one["throughput"] == pytest.approx(1 / one["mean_latency"])
    assert largest["throughput"] == pytest.approx(8 / largest["mean_latency"])


def test_void_blocks_leave_energy_empty_with_the_reason(run, monkeypatch):
    metered(monkeypatch, Meter("the energy counter was reset"))
    _, record = run("distilbert")
    assert record["total_energy_j"] is None and record["mean_power_w"] is None
    assert "every block is void" in record["reasons"]["total_energy_j"]
    assert "the energy counter was reset" in record["reasons"]["mean_power_w"]


def test_no_meter_leaves_energy_empty_with_the_reason(run):
    _, record = run("distilbert")
    assert record["energy_per_inference_j"] is None and record["blocks"] == []
    assert "no meter" in record["reasons"]["energy_per_inference_j"]


def test_latency_is_measured_without_the_sampler(monkeypatch):
    meter, seen = Meter(), []
    found = measure.latency(lambda: seen.append(meter.running), 7, 3, 2, lambda: None, "forward")
    assert seen == [False] * 10 and found["throughput"] == pytest.approx(2 / found["mean_latency"])
    monkeypatch.setattr(measure, "BLOCK_S", 0.0)
    measure.energy_blocks(lambda: seen.append(meter.running), meter, 8, 0.1, lambda: None, "forward")
    assert seen[10:] == [True] * 8


def test_decoding_is_measured_apart(run, monkeypatch):
    metered(monkeypatch, Meter())
    _, record = run("gpt2")
    decode = record["decode"]
    assert decode["tokens_per_second"] == pytest.approx(2 * decode["throughput"])
    assert decode["energy_per_token_j"] == pytest.approx(decode["energy_per_inference_j"] / 2)
    assert "decode" not in run("distilbert")[1]


PRECISIONS = {
    "fp32": ("float32", "torch linear"),
    "fp16": ("float16", "torch linear"),
    "fp16-autocast": ("float32", "torch linear"),
    "bf16": ("bfloat16", "torch linear"),
    "int8": ("int8", "torch._int_mm"),
    "int8-static": ("int8", "torch._int_mm"),
    "w4": ("nf4", "bitsandbytes matmul_4bit"),
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_is_measured(run, precision):
    _, record = run("distilbert", "--precision", precision)
    assert (record["dtype"], record["kernel"]) == PRECISIONS[precision]
    assert record["compute"] == "real" and record["mean_latency"] > 0
    assert record["num_samples_accuracy"] == 20 and record["accuracy"] == record["num_correct"] / 20
    _, full = run("distilbert")
    assert record["num_parameters"] == full["num_parameters"]
    ratio = record["model_size_mb"] / full["model_size_mb"]
    assert {"fp32": ratio == 1, "fp16-autocast": ratio == 1, "fp16": ratio == 0.5, "bf16": ratio == 0.5}.get(
        precision, ratio < 0.6
    )


def test_what_is_simulated_is_not_timed(run, monkeypatch):
    monkeypatch.setattr(kernels, "KERNELS", ())
    _, record = run("distilbert", "--precision", "int8")
    assert record["compute"] == "simulated" and record["accuracy"] is not None
    assert record["mean_latency"] is None and record["reasons"]["mean_latency"].startswith("simulated: no kernel")


def test_without_cuda_one_sentence_says_so(monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert measure.choose_device("cuda", 1) == "cpu"
    said = capsys.readouterr().err.strip()
    assert said.startswith("no CUDA device 1: measuring on the CPU") and "\n" not in said
    assert measure.choose_device("cpu", 0) == "cpu" and capsys.readouterr().err == ""


def test_the_gpu_is_one_of_those_left_to_the_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    for listed, gpu, chosen in (("3,5", 1, "5"), ("", 2, "2")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
        assert measure.choose_device("cuda", gpu) == "cuda"
        assert measure.os.environ["CUDA_VISIBLE_DEVICES"] == chosen


def test_models_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder; of a model on the hub, give the --revision"):
        measure.main(["--model", str(tmp_path / "model"), "--device", "cpu"])
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match="a bert model, not one of distilbert, gpt2"):
        measure.main(["--model", str(tmp_path), "--device", "cpu"])
