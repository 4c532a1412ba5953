"""The digits, their classifier and the embedded consistency model, as stored in the repository."""

import json

import numpy as np
import pytest
import torch
from image_sets import read_images
from sklearn.datasets import load_digits

import reference
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import read_json
from quantwatt.config import experiment
from quantwatt.data import digits
from quantwatt.formats.quantized_weight import load_format, quantize_to_nearest
from quantwatt.models.families import load_family
from quantwatt.score import digit_classifier
from training import digit_reader, loop, stages, tiny_consistency, train_digits

FAMILY = load_family("consistency")

MODELS = experiment.ROOT / "resources" / "models"


@pytest.fixture(scope="module")
def classifier():
    return digit_classifier.load(MODELS / "digits")


@pytest.fixture(scope="module")
def pipe():
    return FAMILY.load(train_digits.FLOAT, MODELS / "tiny-consistency")


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other make small networks very slow where other programs run."""
    torch.set_num_threads(1)


def test_held_out_digits_are_apart():
    (all_, classes), (held, _), (seen, _) = (digits.dataset(part) for part in (None, True, False))
    assert (len(all_), len(held), len(seen)) == (1797, 360, 1437)
    assert np.array_equal(np.concatenate([held, seen]), all_)
    assert all_.shape[1:] == (16, 16, 3) and all_.min() == 0 and all_.max() == 255
    assert np.array_equal(np.bincount(classes), np.bincount(load_digits().target))


def test_pictures_are_the_digits_enlarged():
    images, classes = digits.dataset()
    small = images[..., 0].reshape(-1, 8, 2, 8, 2).mean((2, 4)) / 255 * 16
    original = load_digits()
    order = np.random.default_rng(digits.SPLIT_SEED).permutation(len(images))
    assert np.abs(small - original.images[order]).mean() < 1 and np.array_equal(classes, original.target[order])


def test_reference_draws_digits_without_replacement(tmp_path):
    made = reference.make_reference("r", {"renderer": "digits", "seed": 3, "images": 40}, tmp_path)
    assert made["n_images"] == 40 and {image["prompt"] for image in made["images"]} <= set("0123456789")
    drawn = read_images(tmp_path / "manifest.json")
    known = {picture.tobytes(): digit for picture, digit in zip(*digits.dataset(), strict=True)}
    assert [str(known[picture.tobytes()]) for picture in drawn] == [image["prompt"] for image in made["images"]]
    assert len({picture.tobytes() for picture in drawn}) > 38
    with pytest.raises(DataError, match="1797 digits, and 1798"):
        reference.make_reference("r", {"renderer": "digits", "seed": 3, "images": 1798}, tmp_path)


def test_classifier_reads_digits_that_it_has_not_seen(classifier):
    images, classes = digits.dataset(held=True)
    features, found = digit_classifier.read(classifier, loop.to_tensor(images), batch=100)
    assert (found.numpy() == classes).mean() >= 0.97 and features.shape == (360, digit_classifier.FEATURES)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_model_draws_the_digits_it_is_asked_for(pipe, classifier, steps):
    said = read_json(MODELS / "evaluation-tiny-consistency.json")
    assert said["generated"]["1 step"]["accuracy"] >= 0.92 and said["images"] >= 1000
    found = digit_classifier.read(classifier, train_digits.draw(pipe, steps, 200))[1]
    accuracy = (found == torch.arange(200) % 10).float().mean().item()
    assert accuracy >= 0.88
    assert accuracy == pytest.approx(said["generated"][f"{steps} step{'s' * (steps > 1)}"]["accuracy"], abs=0.05)


def test_the_model_draws_as_many_kinds_of_a_digit_as_there_are(pipe):
    """Not the mean of each: the pixels of its digits vary as those of the real ones do."""

    def variance(pictures, classes):
        return torch.stack([pictures[classes == c, 0].var(0).mean() for c in range(10)]).mean()

    images, classes = digits.dataset(held=True)
    real = variance(loop.to_tensor(images), torch.from_numpy(classes))
    drawn = variance(train_digits.draw(pipe, 1, 200), torch.arange(200) % 10)
    assert 0.8 < drawn / real < 1.25


def test_models_are_small(pipe):
    assert stages.folder_mb(MODELS / "tiny-consistency") < 4 and stages.folder_mb(MODELS / "digits") < 0.5
    assert sum(p.numel() for p in pipe.unet.parameters()) < 1e6


def test_damage_grows_as_bits_shrink(pipe):
    """Round to nearest per channel, the first and the last layer too: 8 bits hardly seen, 2 plainly."""
    layers = {name: pipe.unet.get_submodule(name) for name in FAMILY.quantizable(pipe.unet)}
    original = {name: layer.weight.data.clone() for name, layer in layers.items()}
    whole, psnr = train_digits.draw(pipe, 1, 50), {}
    for bits in (8, 4, 2):
        settings = {"format": "integer", "bits": bits, "granularity": "channel", "group_size": None}
        weight_format = load_format({**settings, "symmetric": False})
        for name, layer in layers.items():
            rounded = quantize_to_nearest(original[name].flatten(1), weight_format).dequantize(weight_format)
            layer.weight.data.copy_(rounded.view_as(layer.weight))
        error = (train_digits.draw(pipe, 1, 50) - whole).pow(2).mean((1, 2, 3)) / 4
        psnr[bits] = float((-10 * error.log10()).mean())
    for name, layer in layers.items():
        layer.weight.data.copy_(original[name])
    assert psnr[8] > 45 and psnr[8] > psnr[4] + 8 and psnr[4] > psnr[2] + 8 and psnr[2] < 26, psnr


def test_unknown_stage_is_refused(capsys):
    with pytest.raises(SystemExit):
        train_digits.main(["modell"])
    assert "unknown stage modell" in capsys.readouterr().err


def test_a_short_training_saves_models_and_their_evaluation(tmp_path, monkeypatch):
    short = loop.Recipe(steps=2, batch=20, learning_rate=1e-3)
    monkeypatch.setattr(digit_reader.train, "__defaults__", (short,))
    monkeypatch.setattr(tiny_consistency.train, "__defaults__", ((short, short),))
    monkeypatch.setattr(train_digits, "STEPS", (1, 2))
    train_digits.main(["--models", str(tmp_path), "--checkpoints", str(tmp_path / "c"), "--images", "70"])
    said = read_json(tmp_path / "evaluation-tiny-consistency.json")
    assert set(said["generated"]) == {"1 step", "2 steps"} and said["images"] == 70
    assert [part["steps_done"] for part in said["training"].values()] == [2, 2, 2] and said["parameters"] < 1e6
    index = json.loads((tmp_path / "tiny-consistency" / "model_index.json").read_text())
    assert index["_class_name"] == "ConsistencyModelPipeline"
    (tmp_path / "c" / "digits.pt").unlink()
    train_digits.main(["evaluate", "--models", str(tmp_path), "--checkpoints", str(tmp_path / "c"), "--images", "70"])
    assert read_json(tmp_path / "evaluation-tiny-consistency.json") == said  # what it said of the lost one is kept
