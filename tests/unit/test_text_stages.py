"""Text models through the stages: described, calibrated, quantized, loaded again, predicted with, and scored."""

import json
import math

import pytest
import tiny_text
import torch

import calibrate
import model as model_rule
import predict
import quantize
import score
from quantwatt.allocate.allocation import allocate
from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.config import experiment
from quantwatt.inference import checkpoint
from quantwatt.measuring import fresh_process
from quantwatt.models.sampling import Reading
from quantwatt.score import predictions

NAMES = ("distilbert", "gpt2")
INT8 = {"format": "integer", "bits": 8, "symmetric": True}
METHODS = {
    "fp32": {},
    "fp16": {"dtype": "float16"},
    "autocast": {"autocast": "bfloat16"},
    "int8": {"weights": INT8, "activations": {"bits": 8}},
    "int8-static": {"weights": INT8, "activations": {"bits": 8, "granularity": "tensor", "dynamic": False}},
    "gptq-w2": {"solver": {"name": "gptq"}, "weights": {"format": "integer", "bits": 2}},
    "bf16-nf4": {"dtype": "bfloat16", "weights": {"format": "nf4", "group_size": 64}},
}
METHODS = {name: experiment.complete_method(entry, "test", name) for name, entry in METHODS.items()}
SAMPLING = {"batch_size": 4, "max_length": 12, "stride": None, "items": None, "new_tokens": 4}
READING = Reading.from_settings(SAMPLING)


class Stages:
    """The stages of one model in a folder, each run once for a method, by the scripts' own `main`."""

    def __init__(self, folder, name):
        self.folder, self.family, self.made = folder, name, {}
        model = getattr(tiny_text, name)(folder / "model", width=64)
        self.texts = folder / "texts"
        sentences = tiny_text.sentences(60)
        if name == "distilbert":
            rows = (f"{text}\t{number % 2}" for number, text in enumerate(sentences))
            self.texts.write_text("\n".join(["sentence\tlabel", *rows]))
        else:
            self.texts.write_text(" ".join(sentences))
        self.model, self.calibration = folder / "manifest.json", folder / "calibration" / "manifest.json"
        settings = {"family": name, "path": str(model), "dtype": "float32"}
        model_rule.main(["--model", name, "--settings", json.dumps(settings), "--output", str(self.model)])
        entry = {"texts": str(self.texts), "samples": 20, "max_length": 12, "batch_size": 8}
        calibrate.main(
            ["--model", str(self.model), "--calibration", json.dumps(entry), "--output", str(self.calibration)]
        )

    def checkpoint(self, method):
        if method not in self.made:
            settings, output = METHODS[method], self.folder / method / "manifest.json"
            layers = manifest.read_json(self.model)["layers"]
            manifest.write_json(self.folder / f"{method}.json", allocate(layers, settings, method))
            quantize.main(
                ["--model", str(self.model), "--allocation", str(self.folder / f"{method}.json"),
                 "--calibration", str(self.calibration), "--method-name", method, "--method", json.dumps(settings),
                 "--output", str(output)]
            )  # fmt: skip
            self.made[method] = output
        return self.made[method]

    def predictions(self, method, **sampling):
        output = self.folder / "predictions" / method / "manifest.json"
        settings = {**SAMPLING, "texts": str(self.texts), **sampling}
        predict.main(
            ["--checkpoint", str(self.checkpoint(method)), "--sampling-name", "test", "--sampling",
             json.dumps(settings), "--output", str(output)]
        )  # fmt: skip
        return output

    def score(self, metric, method, *options):
        output = self.folder / "scores" / method / f"{metric}.json"
        score.main(
            ["--metric", metric, "--predictions", str(self.predictions(method)), *options, "--output", str(output)]
        )
        return manifest.read_json(output)


@pytest.fixture(scope="module", params=NAMES)
def stages(request, tmp_path_factory):
    return Stages(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return Stages(tmp_path_factory.mktemp("classifier"), "distilbert")


def model_of(stages, method):
    return checkpoint.load_pipeline(stages.checkpoint(method), simulate=True)


def logits_of(stages, method):
    pipeline = model_of(stages, method)
    [batch] = pipeline.batches(pipeline.family.read(stages.texts)[0], READING, 4, 1)
    return pipeline.prepare(*batch, READING)()


def test_tied_weights_are_counted_once(stages):
    described = manifest.read_json(stages.model)
    model = model_of(stages, "fp32").pipeline.model
    assert described["parameters"] == model.num_parameters()
    assert described["denoiser_bytes"] == 4 * model.num_parameters()


@pytest.mark.parametrize(("method", "bits"), [("fp32", 32), ("fp16", 16), ("autocast", 32)])
def test_unquantized_methods_have_the_bits_of_their_type(stages, method, bits):
    details = manifest.read_json(stages.checkpoint(method))
    assert (details["weight_bits"], details["activation_bits"]) == (bits, bits)
    assert details["size_bytes"] == manifest.read_json(stages.model)["denoiser_bytes"] * bits // 32
    types = {p.dtype for p in model_of(stages, method).pipeline.model.parameters()}
    assert types == {torch.float16 if bits == 16 else torch.float32}


def test_autocast_computes_products_in_its_type_alone(stages):
    full, half, cast = (logits_of(stages, method) for method in ("fp32", "fp16", "autocast"))
    assert (full.dtype, half.dtype, cast.dtype) == (torch.float32, torch.float16, torch.bfloat16)
    assert 0 < (cast.float() - full).norm() < 0.1 * full.norm()


@pytest.mark.parametrize("method", ["int8", "int8-static", "gptq-w2", "bf16-nf4"])
def test_checkpoints_come_back_as_quantizing_left_them(stages, method, monkeypatch):
    from quantwatt.inference import kernel_choice

    real = logits_of(stages, method).float()
    monkeypatch.setattr(kernel_choice, "KERNELS", {"cpu": {}})
    pipeline = model_of(stages, method)
    assert pipeline.compute == "simulated"
    simulated = logits_of(stages, method).float()
    assert (real - simulated).norm() < 0.05 * simulated.norm()  # kernels round in another order
    assert not torch.equal(simulated, logits_of(stages, "fp32"))
    assert not [name for name, p in pipeline.pipeline.model.named_parameters() if p.is_meta]


def test_int8_computes_in_its_format(stages):
    for method in ("int8", "int8-static"):
        pipeline = model_of(stages, method)
        assert pipeline.compute == "real" and pipeline.kernel in ("int8 in C or oneDNN", "oneDNN int8")


@pytest.mark.parametrize("method", METHODS)
def test_every_precision_is_measured(stages, method, tmp_path):
    """As `rule measure` has it, without the processes that it starts."""
    checkpoint = str(stages.checkpoint(method))
    task = {"checkpoints": {"method": checkpoint, "baseline": checkpoint},
            "sampling": {**SAMPLING, "texts": str(stages.texts)},
            "device": "cpu", "threads": 1, "first": True, "last": True}  # fmt: skip
    task["measuring"] = {"meter": "estimate", "interval_ms": 10, "idle_w": 10, "full_w": 65, "block_s": 0.02,
                         "idle_s": 0, "warmup_s": 0, "steady_s": 0, "phases_s": 0.01, "images_per_batch": 4,
                         "prompts": 2, "gpus": "first", "processes": 1, "blocks": 1, "precision": 0,
                         "limit_s": 0.1}  # fmt: skip
    found = fresh_process.measure(task)
    assert found["status"] == "ok"
    whole = [block for block in found["blocks"] if block["part"] == "whole"]
    assert len(whole) >= 4 and all(block["seconds"] > 0 and block["images"] % 8 == 0 for block in whole)
    phases = {"forward"} if stages.family == "distilbert" else {"forward", "decode"}
    assert {block["part"] for block in found["blocks"]} == phases | {"whole"}
    assert found["tokens"].keys() == phases and found["tokens"]["forward"] > 4


def test_a_methods_type_is_that_of_what_it_leaves_unquantized(stages):
    details = manifest.read_json(stages.checkpoint("bf16-nf4"))
    assert details["model_settings"]["dtype"] == "bfloat16"
    assert {p.dtype for p in model_of(stages, "bf16-nf4").pipeline.model.parameters()} == {torch.bfloat16}


def test_calibration_holds_the_texts(stages):
    details = manifest.read_json(stages.calibration)
    assert details["n_samples"] == 20 and details["samples"][7] == {"item": 7}


def test_scores_are_those_of_the_items(stages):
    items = predictions.read(stages.predictions("gptq-w2"))
    floats = predictions.read(stages.predictions("fp32"))
    baseline = ("--baseline", str(stages.predictions("fp32")))
    accuracy, perplexity = (stages.score(metric, "gptq-w2", *baseline) for metric in ("accuracy", "perplexity"))
    tokens = sum(item["tokens"] for item in items)
    assert accuracy["value"] == pytest.approx(sum(item["correct"] for item in items) / tokens)
    assert perplexity["value"] == pytest.approx(math.exp(sum(item["nll"] for item in items) / tokens))
    for found in (accuracy, perplexity):
        assert found["low"] < found["value"] < found["high"] and found["n_images"] == len(items)
        assert found["change"]["low"] < found["change"]["value"] < found["change"]["high"]
        assert found["reference"] == "fp32"
    gained = sum(a["correct"] - b["correct"] for a, b in zip(items, floats, strict=True))
    before = math.exp(sum(item["nll"] for item in floats) / tokens)
    assert accuracy["change"]["value"] == pytest.approx(gained / tokens)
    assert perplexity["change"]["value"] == pytest.approx(perplexity["value"] - before)


def test_a_change_is_narrower_than_its_two_scores(stages):
    """Pairs: the items' own differences cancel, so the same predictions differ by nothing at all."""
    manifests = stages.predictions("fp32")
    same = stages.score("perplexity", "fp32", "--baseline", str(manifests))["change"]
    assert same == {"value": 0.0, "low": 0.0, "high": 0.0}
    whole = stages.score("perplexity", "int8", "--baseline", str(manifests))
    change = whole["change"]["high"] - whole["change"]["low"]
    assert change < 0.5 * (whole["high"] - whole["low"])


def test_the_baseline_has_a_score_and_no_change(stages):
    found = stages.score("accuracy", "fp32", "--is-baseline")
    assert found["status"] == "ok" and found["value"] is not None and found["change"] is None


def test_predictions_of_other_texts_are_not_compared(stages, tmp_path):
    details = manifest.read_json(stages.predictions("fp32"))
    (tmp_path / predictions.ITEMS).write_bytes((stages.predictions("fp32").parent / predictions.ITEMS).read_bytes())
    manifest.write_json(tmp_path / "manifest.json", {**details, "texts_sha256": "other"})
    with pytest.raises(DataError, match="texts_sha256 is .* but other in its baseline"):
        stages.score("accuracy", "int8", "--baseline", str(tmp_path / "manifest.json"))


def test_damaged_predictions_are_refused(stages):
    path = stages.predictions("int8")
    items = path.parent / predictions.ITEMS
    items.write_text(items.read_text().replace("1", "2", 1))
    with pytest.raises(DataError, match="corrupted"):
        predictions.read(path)


def test_sentences_without_labels_have_no_score(classifier, tmp_path):
    plain = tmp_path / "plain.txt"
    plain.write_text("\n".join(tiny_text.sentences(6)))
    path = classifier.predictions("fp32", texts=str(plain))
    assert len(predictions.read(path)) == 6
    found = score.score_predictions("accuracy", {}, path, path)
    assert found["status"] == "unsupported" and "no labels" in found["reason"] and found["change"] is None


def test_a_label_that_the_model_does_not_have_is_refused(classifier, tmp_path):
    texts = tmp_path / "texts.tsv"
    texts.write_text("sentence\tlabel\ngood\t2\n")
    with pytest.raises(DataError, match="the label 2, and the model knows 2, from 0"):
        classifier.predictions("fp32", texts=str(texts))


def test_labels_are_those_that_the_models_own_names_mean(classifier, tmp_path, monkeypatch):
    """A model that calls 0 POSITIVE is right where its data set calls 1 positive, not wherever it errs."""
    sentences = tiny_text.sentences(12)
    plain = tmp_path / "plain.txt"
    plain.write_text("\n".join(sentences))
    seen = [item["label"] for item in predictions.read(classifier.predictions("fp32", texts=str(plain)))]
    load, names = checkpoint.load_pipeline, {0: "POSITIVE", 1: "NEGATIVE"}

    def turned(*arguments, **options):
        pipeline = load(*arguments, **options)
        config = pipeline.pipeline.model.config
        config.id2label, config.label2id = names, {name: number for number, name in names.items()}
        return pipeline

    monkeypatch.setattr(checkpoint, "load_pipeline", turned)
    for called in ({0: "positive", 1: "negative"}, {0: 1, 1: 0}):  # by name, and as SST-2 numbers them
        rows = (f"{text},{called[own]}" for text, own in zip(sentences, seen, strict=True))
        texts = tmp_path / "texts.csv"
        texts.write_text("\n".join(["text,label", *rows]))
        path = classifier.predictions("fp32", texts=str(texts))
        assert all(item["correct"] for item in predictions.read(path))
    assert manifest.read_json(path)["labels"][0].startswith("labels are read as 0: negative")
    texts.write_text("text,label\ngood,splendid\n")
    with pytest.raises(DataError, match="texts.csv: a text has the label 'splendid'"):
        classifier.predictions("fp32", texts=str(texts))


def test_a_broken_quantized_model_is_a_result_and_a_broken_float_one_is_not(classifier, monkeypatch):
    family = checkpoint.load_family("distilbert")
    broken = [{"label": 0, "logits": [math.nan, 0.0]}]
    monkeypatch.setattr(family, "predict", lambda *_: broken)
    details = manifest.read_json(classifier.predictions("int8", items=1))
    assert details["status"] == "degenerate" and "NaN" in details["reason"] and details["n_items"] == 0
    with pytest.raises(DataError, match="sampling .*: not quantized, in float32, item 0 has NaN.*; check"):
        classifier.predictions("fp32", items=1)


def test_no_more_items_than_asked_for(stages):
    assert manifest.read_json(stages.predictions("fp32", items=3))["n_items"] == 3


def test_folders_without_a_model_are_refused(tmp_path):
    settings = {"family": "gpt2", "path": str(tmp_path)}
    with pytest.raises(DataError, match=r"not a transformers model \(it has no config.json\)"):
        model_rule.main(["--model", "m", "--settings", json.dumps(settings), "--output", str(tmp_path / "x.json")])


def test_of_the_hub_only_weights_configuration_and_tokenizer_are_fetched(monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    asked = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: asked.update(k) or str(tmp_path))
    settings = {"family": "distilbert", "hub": "somebody/model", "revision": "0" * 40, "dtype": "float32"}
    assert model_rule.fetch(settings) == str(tmp_path) and asked["revision"] == "0" * 40
    needed = ["config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"]
    there = [*needed, "README.md", "pytorch_model.bin", "rust_model.ot", "tf_model.h5", "onnx/config.json"]
    patterns = {key: asked[key] for key in ("allow_patterns", "ignore_patterns")}
    assert list(filter_repo_objects(there, **patterns)) == needed
