"""The stand-alone command: its row, its reasons, and what it times."""

import csv
import json

import numpy as np
import pytest
import tiny_text
import torch

from quantwatt.artifacts.errors import DataError
from quantwatt.inference import checkpoint, kernel_choice
from quantwatt.measuring import text_costs
from quantwatt.measuring.meters.trace import Trace
from quantwatt.models.families import distilbert
from tools import measure_text

STUDY = (
    "mean_latency std_latency throughput min_latency max_latency median_latency mean_power_w std_power_w min_power_w "
    "max_power_w median_power_w num_power_samples total_energy_j energy_per_inference_j energy_per_inference_mj "
    "inferences_per_joule accuracy num_correct num_samples_accuracy allocated_gb peak_allocated_gb reserved_gb "
    "num_parameters model_size_mb dtype"
).split()


class Meter:
    """100 W and 300 W in turn, 200 W on average; the counter says `joules` of two seconds, or there is none."""

    name, reads, estimated = "fake", "cpu", True

    def __init__(self, faults=(), joules=None, watts=(100.0, 300.0, np.nan)):
        self.running, self.faults, self.joules, self.watts, self.blocks = False, list(faults), joules, watts, 0

    def start(self):
        self.running = True

    def stop(self):
        self.running, self.blocks = False, self.blocks + 1
        fault = self.faults.pop(0) if self.faults else None
        joules = None if fault else self.joules or 50.0
        counter = None if self.joules is None else np.array([0, np.nan, self.joules])
        watts, no_time = np.array(self.watts), np.full(3, np.nan)
        return Trace(np.arange(3.0), watts, counter, no_time, joules, "fake", 1, 0, fault=fault)

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
    monkeypatch.setattr(text_costs, "BLOCK_S", 0.01)

    def run(name, *options):
        model, texts = folders[name]
        precision = options[options.index("--precision") + 1] if "--precision" in options else "fp32"
        measure_text.main(
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
    monkeypatch.setattr(measure_text, "open_meter", lambda args, device: (meter, None))
    return meter


def test_arguments_are_the_studys_by_default():
    args = measure_text.parse_arguments([])
    assert args.model == "distilbert/distilbert-base-uncased-finetuned-sst-2-english" and args.precision == "fp32"
    assert (args.iterations, args.warm_up, args.power_interval_ms) == (1000, 100, 100)
    assert (args.device, args.gpu, args.trial, args.batch_size) == ("cuda", 0, 1, [1])


@pytest.mark.parametrize("name", ["distilbert", "gpt2"])
def test_row_and_json_hold_every_metric_of_the_study(run, name):
    row, record = run(name)
    columns = list(row)
    assert columns[columns.index("mean_latency") : columns.index("dtype") + 1] == STUDY
    ours = "model precision trial batch_size device num_inferences_energy energy_estimated perplexity texts meter"
    assert set(columns) == {*STUDY, *ours.split()}
    assert (row["texts"], row["meter"]) == ("texts", "none")
    assert ("decode" in record) == (name == "gpt2")
    for metric in columns:
        assert row[metric] == ("" if record[metric] is None else str(record[metric]))
        assert (record[metric] is None) == (metric in record["reasons"]), metric
    assert 0 < record["min_latency"] <= record["median_latency"] <= record["max_latency"]
    assert record["throughput"] == pytest.approx(1 / record["mean_latency"])
    assert record["tokens_per_second"] > record["throughput"]


def test_energy_is_that_of_its_blocks(run, monkeypatch):
    meter = metered(monkeypatch, Meter())
    row, record = run("distilbert", "--batch-size", "4")
    images = np.array([block["images"] for block in record["blocks"]])
    assert meter.blocks == len(images) == 4 and (images % 4 == 0).all()
    assert (record["total_energy_j"], record["num_inferences_energy"]) == (200, images.sum())
    assert record["energy_per_inference_j"] == pytest.approx((50 / images).mean())
    assert record["energy_j"]["value"] == record["energy_per_inference_j"]
    assert {"low", "high"} < set(record["energy_j"])
    assert record["energy_per_inference_mj"] == pytest.approx(1000 * record["energy_per_inference_j"])
    assert record["inferences_per_joule"] == pytest.approx(1 / record["energy_per_inference_j"])
    assert (record["mean_power_w"], record["min_power_w"], record["max_power_w"]) == (200, 100, 300)
    assert record["num_power_samples"] == 8  # two of each block could be read
    assert record["energy_estimated"] is True and row["energy_estimated"] == "True" and row["meter"] == "fake"


def test_blocks_last_as_long_as_all_iterations(monkeypatch):
    asked = []
    monkeypatch.setattr(text_costs, "BLOCK_S", 0.01)
    monkeypatch.setattr(text_costs, "latency", lambda *_: {"mean_latency": 0.5})
    monkeypatch.setattr(text_costs.measuring, "measure_energy", lambda *args, **_: asked.append(args[2]) or [])
    for iterations in (16, 0):
        text_costs.of_phase("forward", None, iterations, 0, 1, Meter(), None, "cpu")
    assert asked == [2.0, 0.01]


def test_a_void_block_is_repeated(run, monkeypatch):
    meter = metered(monkeypatch, Meter(["the energy counter was reset"]))
    _, record = run("distilbert")
    assert meter.blocks == 5 and [block["void"] for block in record["blocks"]] == [True, *[False] * 4]
    assert record["total_energy_j"] == 200 and record["num_power_samples"] == 8


def test_void_blocks_leave_energy_empty_with_the_reason(run, monkeypatch):
    metered(monkeypatch, Meter(["the energy counter was reset"] * 9))
    _, record = run("distilbert")
    assert record["total_energy_j"] is None and record["mean_power_w"] is None
    assert "4 of 4 blocks were void" in record["reasons"]["total_energy_j"]
    assert "the energy counter was reset" in record["reasons"]["mean_power_w"]


def test_energy_is_checked_against_the_power(run, monkeypatch):
    """The integral is 400 J: 100 W for a second, and 300 W held for another."""
    metered(monkeypatch, Meter(joules=390.0))
    assert run("distilbert")[1]["crosscheck"]["verdict"] == "ok"
    metered(monkeypatch, Meter(joules=300.0))
    _, record = run("distilbert")
    assert record["total_energy_j"] is None
    assert "counter and integral of power differ by 33.3%" in record["reasons"]["total_energy_j"]


def test_every_empty_figure_has_a_reason(run, monkeypatch):
    metered(monkeypatch, Meter(watts=[np.nan] * 3))
    row, record = run("distilbert", "--iterations", "1")
    empty = {name for name, value in row.items() if value == ""}
    assert empty == set(record["reasons"]) == {"std_latency", *text_costs.POWER, *text_costs.MEMORY}
    assert record["energy_per_inference_j"] > 0


def test_a_sweep_pads_all_sizes_alike_and_writes_each_to_its_own_files(run, tmp_path, monkeypatch):
    shapes, on_device = set(), distilbert._on_device

    def note(pipeline, texts, settings):
        inputs = on_device(pipeline, texts, settings)
        if "padded_to" in settings:
            shapes.add((*inputs["input_ids"].shape, inputs["attention_mask"].shape[-1]))
        return inputs

    monkeypatch.setattr(distilbert, "_on_device", note)
    texts = ["a good film", *tiny_text.sentences(7)]
    (tmp_path / "texts").write_text("\n".join(texts))
    lengths = [min(len(text.split()) + 2, 12) for text in texts]
    _, largest = run("distilbert", "--texts", str(tmp_path / "texts"), "--batch-size", "1", "8")
    one = json.loads((tmp_path / "fp32/trial-1.json").read_text())
    assert (one["batch_size"], largest["batch_size"]) == (1, 8)
    assert shapes == {(1, max(lengths), max(lengths)), (8, max(lengths), max(lengths))}
    assert one["tokens_per_inference"] == 5 and largest["tokens_per_inference"] == sum(lengths) / 8
    assert one["padded_tokens_per_inference"] == largest["padded_tokens_per_inference"] == max(lengths)
    assert one["throughput"] == pytest.approx(1 / one["mean_latency"])
    assert largest["throughput"] == pytest.approx(8 / largest["mean_latency"])


def test_a_batch_larger_than_the_texts_is_refused_before_anything_is_measured(run, monkeypatch):
    monkeypatch.setattr(measure_text, "quality", lambda *_: pytest.fail("predicted"))
    with pytest.raises(DataError, match="20 sentences are too few for 1 batch of 21"):
        run("distilbert", "--batch-size", "1", "21")


def test_memory_that_does_not_suffice_is_a_result(run, tmp_path, monkeypatch):
    of_phase = text_costs.of_phase

    def full(phase, run, iterations, **settings):
        if settings["items"] > 4:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB.")
        return of_phase(phase, run, iterations, **settings)

    monkeypatch.setattr(text_costs, "of_phase", full)
    row, record = run("distilbert", "--batch-size", "8", "4", "8")
    assert (record["status"], record["batch_size"]) == ("oom", 8) and "Tried to allocate" in record["reason"]
    assert record["accuracy"] is not None and record["mean_latency"] is None
    assert {name for name, value in row.items() if value == ""} == set(record["reasons"])
    assert record["reasons"]["energy_per_inference_j"] == record["reason"]
    four = json.loads((tmp_path / "fp32/trial-1-batch-4.json").read_text())
    assert four["status"] == "ok" and four["mean_latency"] > 0


def test_broken_predictions_are_a_result_that_is_not_timed(run, monkeypatch):
    family = checkpoint.load_family("distilbert")
    monkeypatch.setattr(family, "predict", lambda *_: [{"label": 0, "logits": [np.nan, 0.0]}])
    monkeypatch.setattr(measure_text, "cost", lambda *_: pytest.fail("timed"))
    row, record = run("distilbert")
    assert record["status"] == "degenerate" and "NaN" in record["reason"]
    assert row["accuracy"] == "" and record["reasons"]["mean_latency"] == record["reason"]


def test_no_meter_leaves_energy_empty_with_the_reason(run):
    _, record = run("distilbert")
    assert record["energy_per_inference_j"] is None and record["blocks"] == []
    assert "no meter" in record["reasons"]["energy_per_inference_j"]


class OneSentence:
    """A pipeline whose runs say whether the meter was running; its memory is counted in GB, as torch would."""

    class family:
        PHASES_APART = ("decode",)

        @staticmethod
        def work(pipeline, batch, settings):
            return {"items": 1, "tokens": 3, "padded_tokens": 3, "new_tokens": 2}

    pipeline, compute = None, "real"

    def __init__(self, meter, used=0, cached=0):
        self.meter, self.metered, self.used, self.cached, self.peak = meter, [], used, cached, used

    def batches(self, texts, sampling, size, count):
        return [("batch", None)]

    def prepare(self, batch, seeds, sampling):
        self.used += 1  # the inputs
        return self.run

    def phases(self, batch, seeds, sampling):
        self.used += 5  # keys and values
        return {"forward": self.run, "decode": self.run}

    def run(self):
        self.metered.append(self.meter.running)
        self.peak = max(self.peak, self.used + 2)

    def empty_cache(self):
        self.cached = 0

    def reset_peak(self):
        self.peak = self.used


def cost_of(pipeline, monkeypatch, device="cpu"):
    monkeypatch.setattr(text_costs, "BLOCK_S", 0.0)
    metered(monkeypatch, pipeline.meter)
    args = measure_text.parse_arguments(["--iterations", "8", "--warm-up", "3", "--new-tokens", "2"])
    return measure_text.cost(args, pipeline, None, {"batch_size": 1}, device)


def test_latency_is_measured_without_the_sampler_and_energy_with_it(monkeypatch):
    pipeline = OneSentence(Meter())
    found = cost_of(pipeline, monkeypatch)
    without = [i for i, running in enumerate(pipeline.metered) if not running]
    metered_runs = found["num_inferences_energy"]
    # Three runs to warm up and eight timed; then, of decode, three and four.
    assert without == [*range(11), *range(11 + metered_runs, 18 + metered_runs)]
    assert len(pipeline.metered) == 18 + metered_runs + found["decode"]["num_inferences_energy"]


def test_memory_is_that_of_forward_alone(monkeypatch):
    """3 GB were kept by predicting, and 5 GB are keys and values of decode."""
    pipeline = OneSentence(Meter(), used=10, cached=3)
    torchs = {
        "empty_cache": pipeline.empty_cache,
        "reset_peak_memory_stats": pipeline.reset_peak,
        "memory_allocated": lambda: pipeline.used * 1e9,
        "max_memory_allocated": lambda: pipeline.peak * 1e9,
        "memory_reserved": lambda: (pipeline.used + pipeline.cached + 2) * 1e9,
        "synchronize": lambda: None,
    }
    for name, function in torchs.items():
        monkeypatch.setattr(torch.cuda, name, function)
    found = cost_of(pipeline, monkeypatch, "cuda")
    assert (found["allocated_gb"], found["peak_allocated_gb"], found["reserved_gb"]) == (11, 13, 13)
    assert found["decode"]["peak_allocated_gb"] == 18


def test_decoding_is_measured_apart(run, monkeypatch):
    metered(monkeypatch, Meter())
    _, record = run("gpt2")
    decode = record["decode"]
    assert set(decode["reasons"]) == set(text_costs.MEMORY)
    assert decode["tokens_per_second"] == pytest.approx(2 * decode["throughput"])
    assert decode["energy_per_token_j"] == pytest.approx(decode["energy_per_inference_j"] / 2)


PRECISIONS = {
    "fp32": ("float32", "torch linear"),
    "fp16": ("float16", "torch linear"),
    "fp16-autocast": ("float32", "torch linear"),
    "bf16": ("bfloat16", "torch linear"),
    "int8": ("int8", "int8 in C (AVX2)", "oneDNN int8"),  # by the CPU
    "int8-static": ("int8", "int8 in C (AVX2)", "oneDNN int8"),
    "w4": ("nf4", "unpack and multiply in float"),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["distilbert", "gpt2"])
def test_every_precision_is_measured(run, folders, name, precision):
    _, record = run(name, "--precision", precision)
    dtype, *kernel_names = PRECISIONS[precision]
    assert record["dtype"] == dtype and record["kernel"] in kernel_names
    assert record["compute"] == "real" and record["mean_latency"] > 0
    assert record["accuracy"] == record["num_correct"] / record["num_samples_accuracy"]
    stored = checkpoint.load_family(name).load_denoiser({"dtype": "float32"}, folders[name][0])
    assert record["num_parameters"] == stored.num_parameters()
    ratio = record["model_size_mb"] / (4 * stored.num_parameters() / 1e6)
    exact = {"fp32": 1, "fp16-autocast": 1, "fp16": 0.5, "bf16": 0.5}
    assert ratio == exact[precision] if precision in exact else ratio < 0.6


def test_what_is_simulated_is_not_timed(run, monkeypatch):
    monkeypatch.setattr(kernel_choice, "KERNELS", {"cpu": {}})
    _, record = run("distilbert", "--precision", "int8")
    assert record["compute"] == "simulated" and record["accuracy"] is not None
    assert record["mean_latency"] is None and record["reasons"]["mean_latency"].startswith("simulated: no kernel")


def test_without_cuda_one_sentence_says_so(monkeypatch, capsys):
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # which the program sets for good
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert measure_text.choose_device("cuda", 1) == "cpu"
    said = capsys.readouterr().err.strip()
    assert said.startswith("no CUDA device 1: measuring on the CPU") and "\n" not in said
    assert measure_text.choose_device("cpu", 0) == "cpu" and capsys.readouterr().err == ""


def test_the_gpu_is_one_of_those_left_to_the_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for listed, gpu, chosen in ((None, 2, "2"), ("3,5", 1, "5"), ("3,5", 2, ""), ("", 0, ""), ("-1", 0, "-1")):
        if listed is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
        assert measure_text.choose_device("cuda", gpu) == "cuda"
        assert measure_text.os.environ["CUDA_VISIBLE_DEVICES"] == chosen


def test_threads_are_torchs_own_choice(folders, tmp_path, monkeypatch):
    """Which is that of the processors left to this process, and not all of the machine."""
    model, texts = folders["distilbert"]
    seen = []
    monkeypatch.setattr(measure_text, "padded_alike", lambda *_: seen.append(torch.get_num_threads()) or pytest.fail())
    common = ["--model", str(model), "--texts", str(texts), "--device", "cpu", "--output", str(tmp_path)]
    for options in ([], ["--threads", "1"]):
        torch.set_num_threads(3)
        with pytest.raises(pytest.fail.Exception):
            measure_text.main([*common, *options])
    assert seen == [3, 1]


@pytest.mark.parametrize(
    "option, value, said",
    [
        ("--max-length", "1", "1 is not 2 or more"),
        ("--warm-up", "-1", "-1 is not 0 or more"),
        ("--power-interval-ms", "0", "0 is not above 0"),
        ("--power-interval-ms", "nan", "nan is not above 0"),
        ("--batch-size", "0", "0 is not 1 or more"),
        ("--gpu", "-1", "-1 is not 0 or more"),
    ],
)
def test_values_that_cannot_be_are_refused(capsys, option, value, said):
    with pytest.raises(SystemExit):
        measure_text.parse_arguments([f"{option}={value}"])
    assert f"argument {option}: {said}" in capsys.readouterr().err


def test_results_of_another_model_or_device_are_not_written_over(run, folders, tmp_path, monkeypatch):
    run("distilbert")
    _, again = run("distilbert")  # the trial once more
    written = (tmp_path / "fp32/trial-1.json").read_bytes()
    monkeypatch.setattr(measure_text, "measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(DataError, match=f"holds {folders['distilbert'][0]} on .*, not {folders['gpt2'][0]} on"):
        run("gpt2")
    described = measure_text.fresh_process.describe_device
    monkeypatch.setattr(
        measure_text.fresh_process, "describe_device", lambda device: {**described(device), "name": "other"}
    )
    with pytest.raises(DataError, match="on other: choose another --output"):
        run("distilbert")
    assert (tmp_path / "fp32/trial-1.json").read_bytes() == written and again["device_name"] != "other"


def test_results_of_a_model_lie_in_a_folder_of_its_name(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure_text, "measure", lambda args, device: [{"batch_size": 1}, {"batch_size": 8}])
    measure_text.main(["--model", f"{folders['gpt2'][0]}/", "--device", "cpu", "--batch-size", "1", "8"])
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.json")}
    assert found == {f"results/text-study/model/fp32/trial-1{end}.json" for end in ("", "-batch-8")}


def test_models_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder; of a model on the hub, give the --revision"):
        measure_text.main(["--model", str(tmp_path / "model"), "--device", "cpu"])
    with pytest.raises(DataError, match="--model somebody/gpt2: no such folder"):  # its commit is not the study's
        measure_text.main(["--model", "somebody/gpt2", "--device", "cpu", "--output", str(tmp_path / "results")])
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match="a bert model, not one of distilbert, gpt2"):
        measure_text.main(["--model", str(tmp_path), "--device", "cpu"])
