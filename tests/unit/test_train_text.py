"""The script that trains the embedded text models, and its models in the repository."""

import json
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from quantwatt.config import experiment
from quantwatt.models.families import load_family
from quantwatt.quantize import sequential
from quantwatt.score import predictions
from training import stages, tiny_distilbert, tiny_gpt2, train_text

ROOT = experiment.ROOT
MODELS, TEXTS = ROOT / "resources" / "models", ROOT / "resources" / "texts"
FILES = {"distilbert": "reviews-test.tsv", "gpt2": "manuals-test.txt"}


@pytest.fixture(autouse=True)
def no_gradients(request):
    with torch.set_grad_enabled("training" in request.node.name):
        yield


def test_unknown_stage_is_refused(capsys):
    with pytest.raises(SystemExit):
        train_text.main(["bert"])
    assert "unknown stage bert" in capsys.readouterr().err


def test_reviews_are_written_as_they_lie_in_the_repository(tmp_path):
    train_text.write_reviews(tmp_path, seed=1)
    for name in ("reviews-test.tsv", "reviews-calibration.tsv"):
        assert (tmp_path / name).read_text() == (TEXTS / name).read_text()
    assert "PYTHON SOFTWARE FOUNDATION LICENSE" in (TEXTS / "LICENSE-python.txt").read_text()


def test_a_short_training_saves_models_that_families_load(tmp_path, monkeypatch):
    for module in (tiny_distilbert, tiny_gpt2):
        monkeypatch.setattr(module, "RECIPE", replace(module.RECIPE, steps=2, batch=2))
    monkeypatch.setattr(tiny_distilbert, "TRAINING_SENTENCES", 20)
    (tmp_path / "manuals-train.txt").write_text((TEXTS / "manuals-train.txt").read_text()[:20_000])
    folders = ["--models", str(tmp_path), "--checkpoints", str(tmp_path / "checkpoints"), "--texts", str(tmp_path)]
    train_text.main(["distilbert", "gpt2", *folders])
    for name, text in (("distilbert", "the film was good ."), ("gpt2", "def f(x): return é")):
        pipeline = load_family(name).load(train_text.FLOAT, tmp_path / f"tiny-{name}")
        ids = pipeline.tokenizer(text).input_ids
        assert "".join(pipeline.tokenizer.decode(ids, skip_special_tokens=True).split()) == "".join(text.split())
    record = stages.training_record(tmp_path / "checkpoints" / "tiny-gpt2.pt", tiny_gpt2.RECIPE, {})
    assert record["steps_done"] == 2


def test_counted_perplexities_are_those_of_their_definition():
    train, test = [0, 1, 0, 1, 0, 2], [0, 1, 0, 2, 2]
    found = tiny_gpt2.counted_perplexities(train, test, 3)
    single = {token: (count + 1) / 9 for token, count in Counter(train).items()}
    likelihoods = [0.75 * 2 / 3 + 0.25 * single[1], 0.75 + 0.25 * single[0], 0.75 / 3 + 0.25 * single[2], single[2]]
    assert found["bigram"] == pytest.approx(math.prod(likelihoods) ** -0.25)
    assert found["unigram"] == pytest.approx((single[1] * single[0] * single[2] ** 2) ** -0.25)


def quality(name, bits=None):
    """(nats per prediction, accuracy) of an embedded model whose weights are rounded to so many bits."""
    family, location = load_family(name), MODELS / f"tiny-{name}"
    network = family.load_denoiser(train_text.FLOAT, location)
    if bits:
        method = experiment.complete_method({"weights": {"format": "integer", "bits": bits}}, "test", "method")
        formats = {"weights": method["weights"], "activations": None}
        sequential.quantize(network, family, dict.fromkeys(family.quantizable(network), formats), method)
    texts, labels = family.read(TEXTS / FILES[name])
    reading = replace(train_text.READING, items=1000 if name == "distilbert" else train_text.FIRST_WINDOWS)
    items = family.predict(family.load(train_text.FLOAT, location, network), texts, reading)
    items = predictions.judged(items, labels)
    tokens = sum(item["tokens"] for item in items)
    return sum(item["nll"] for item in items) / tokens, sum(item["correct"] for item in items) / tokens


@pytest.mark.parametrize("name", FILES)
def test_two_bits_hurt_an_embedded_model_and_eight_do_not(name):
    whole, eight, two = (quality(name, bits) for bits in (None, 8, 2))
    assert abs(eight[0] / whole[0] - 1) < 0.01
    assert two[0] > 1.05 * whole[0] and two[1] < whole[1] - 0.015


def test_embedded_models_are_as_good_as_they_are_said_to_be():
    said = {name: json.loads((MODELS / f"evaluation-tiny-{name}.json").read_text()) for name in FILES}
    accuracy, perplexity = quality("distilbert")[1], math.exp(quality("gpt2")[0])
    assert accuracy == pytest.approx(said["distilbert"]["accuracy"], abs=0.0015)  # of 1000: another at most
    assert perplexity == pytest.approx(said["gpt2"]["perplexity_of_first_windows"], rel=1e-3)
    assert accuracy > 0.93 and tiny_distilbert.words_alone(said["distilbert"]["seed"]) < 0.8
    parts = [load_family("gpt2").read(TEXTS / f"manuals-{part}.txt")[0] for part in ("train", "test")]
    words = load_family("gpt2").load(train_text.FLOAT, MODELS / "tiny-gpt2").tokenizer
    ids = [words(part[0], verbose=False).input_ids for part in parts]
    bigram = tiny_gpt2.counted_perplexities(*ids, len(words))["bigram"]
    assert bigram == pytest.approx(said["gpt2"]["perplexity_of_a_bigram"], rel=1e-3)
    assert perplexity < 0.75 * bigram
