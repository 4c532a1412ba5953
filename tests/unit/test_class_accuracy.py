"""Class accuracy: the metric, its classifiers, and prompts that repeat."""

import quantwatt.jobs.torchvision_ops  # noqa: F401  before torchvision
from quantwatt.models.sampling import Sampling

# isort: split
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import get_model

import features
import fetch_weights
import generate
import score
from quantwatt import registry
from quantwatt.artifacts import feature_files, images
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import read_json
from quantwatt.data import digits, prompts
from quantwatt.measuring import fresh_process
from quantwatt.score import digit_classifier
from quantwatt.score.metrics import class_accuracy
from training import loop


def test_value_is_the_share_of_right_ones_and_its_interval_holds_the_truth():
    asked = np.arange(400) % 10
    inside = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        seen = np.where(rng.random(400) < 0.8, asked, (asked + 1) % 10)
        found = class_accuracy.score(seen, asked, resamples=300)
        assert found.value == pytest.approx((seen == asked).mean())
        inside += found.low <= 0.8 <= found.high
    assert 88 <= inside <= 99


def test_a_change_is_drawn_in_pairs():
    asked = np.arange(200) % 10
    baseline = np.where(asked < 3, asked, -1)
    worse = np.where(asked < 2, asked, -1)  # a tenth fewer, always where the baseline was right
    change = class_accuracy.change(worse, baseline, asked, resamples=500)
    assert change.value == pytest.approx(-0.1) and -0.16 < change.low < change.high < -0.05
    with pytest.raises(DataError, match="have different shapes"):
        class_accuracy.score(asked[:5], asked)


@pytest.fixture
def image_set(tmp_path):
    found = digits.dataset(held=True)[0][:12]
    images.write_images(tmp_path / "set", [(found, [str(i % 10) for i in range(12)], [None] * 12)], {"method": "m"})
    return tmp_path / "set" / "manifest.json", found


@pytest.fixture
def digits_folder(tmp_path):
    torch.manual_seed(0)
    digit_classifier.save(digit_classifier.DigitClassifier(8), tmp_path / "digits")
    return tmp_path / "digits"


def extracted(manifest, settings, output):
    weights = str(output.parent / "weights.json")
    fetch_weights.main(["--extractor", "classifier", "--settings", json.dumps(settings), "--output", weights])
    features.main(["--images", str(manifest), "--weights", weights, "--output", str(output)])
    return feature_files.read_features(output)


def test_features_are_the_digit_classifiers(image_set, digits_folder, tmp_path):
    manifest, found = image_set
    fields, tensors = extracted(
        manifest, {"network": "digits", "path": str(digits_folder), "batch": 5}, tmp_path / "x.json"
    )
    expected, seen = digit_classifier.read(digit_classifier.load(digits_folder), loop.to_tensor(found))
    np.testing.assert_allclose(tensors["image"], expected.numpy(), atol=1e-5)
    assert np.array_equal(tensors["classes"], seen.numpy()) and tensors["asked"].tolist() == [*range(10), 0, 1]
    assert (fields["extractor"], fields["dims"], fields["resize"]) == ("classifier", 64, "PIL bicubic to 16x16")


def test_features_are_torchvisions(image_set, tmp_path):
    manifest, found = image_set
    torch.manual_seed(0)
    network = get_model("resnet18", weights=None).eval()
    save_file(network.state_dict(), tmp_path / "resnet18.safetensors")
    settings = {"network": "resnet18", "path": str(tmp_path / "resnet18.safetensors"), "batch": 12}
    fields, tensors = extracted(manifest, settings, tmp_path / "x.json")
    resized = np.stack([np.asarray(Image.fromarray(p).resize((224, 224), Image.Resampling.BICUBIC)) for p in found])
    x = torch.from_numpy(resized).permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    with torch.no_grad():
        logits = network(x)
    assert tensors["image"].shape == (12, 512) and np.array_equal(tensors["classes"], logits.argmax(-1).numpy())
    np.testing.assert_allclose(network.fc(torch.tensor(tensors["image"])).detach(), logits, atol=1e-3)
    assert "resnet18" in fields["library"] and fields["resize"] == "PIL bicubic to 224x224"


def test_a_classifier_that_cannot_be_loaded_is_one_sentence(digits_folder, tmp_path):
    (tmp_path / "pickled.pth").write_bytes(b"PK\x03\x04 not safetensors")
    for settings, words in (
        ({"network": "digits", "path": str(tmp_path / "nowhere")}, "classifier digits: .*nowhere cannot be loaded"),
        ({"network": "resnet17", "path": str(tmp_path / "pickled.pth")}, "classifier resnet17: .*[Uu]nknown model"),
        ({"network": "resnet18", "path": str(tmp_path / "pickled.pth")}, "classifier resnet18: .*cannot be loaded"),
        (
            {"network": "resnet18", "path": str(digits_folder / "model.safetensors")},
            "classifier resnet18: .*Missing key",
        ),
    ):
        with pytest.raises(DataError, match=words) as caught:
            registry.load("extractors", "classifier").load(settings, "cpu")
        assert "\n" not in str(caught.value)


def test_the_script_scores_classes_against_those_asked_for(image_set, digits_folder, tmp_path):
    manifest, _ = image_set
    settings = {"network": "digits", "path": str(digits_folder)}
    _, tensors = extracted(manifest, settings, tmp_path / "x.json")
    fields = {"status": "ok", "reason": None, **dict.fromkeys(score.EXTRACTION, "same"), "prompts_sha256": "c"}
    for name, seen in (("here", tensors["classes"]), ("baseline", tensors["asked"])):
        found = {"image": tensors["image"], "classes": seen, "asked": tensors["asked"]}
        feature_files.write_features(tmp_path / f"{name}.json", found, fields)
    arguments = ["--features", f"{tmp_path}/here.json", "--baseline-features", f"{tmp_path}/baseline.json"]
    score.main(["--metric", "class-accuracy", "--output", f"{tmp_path}/score.json", *arguments])
    found, right = read_json(tmp_path / "score.json"), (tensors["classes"] == tensors["asked"]).mean()
    assert found["value"] == pytest.approx(right) and found["change"]["value"] == pytest.approx(right - 1)
    assert found["reference"] is None and found["higher_is_better"] and found["n_images"] == 12
    feature_files.write_features(tmp_path / "judge.json", {"image": tensors["image"]}, fields)
    with pytest.raises(DataError, match="class-accuracy needs a classifier, and class numbers as prompts"):
        score.score_features("class-accuracy", {}, tmp_path / "judge.json")


def test_images_without_class_numbers_are_read_and_not_asked_for(image_set, digits_folder, tmp_path):
    images.write_images(tmp_path / "other", [(image_set[1][:3], ["a", "7", "8"], [None] * 3)], {})
    settings = {"network": "digits", "path": str(digits_folder)}
    _, tensors = extracted(tmp_path / "other" / "manifest.json", settings, tmp_path / "x.json")
    assert set(tensors) == {"image", "classes"}


def test_prompts_are_taken_again_where_the_sampling_says_so(tmp_path):
    (tmp_path / "p.txt").write_text("0\n1\n2\n")
    path = tmp_path / "p.txt"
    assert prompts.first(path, 2) == ["0", "1"] and prompts.first(path, 5) == ["0", "1", "2"]
    assert prompts.first(path, 7, cycle=True) == list("0120120")
    batches = fresh_process.batches_of(None, Sampling(prompts=str(path), steps=1, seed=5, cycle=True), 2, 2)
    assert batches == [(["0", "1"], [5, 6]), (["2", "0"], [7, 8])]
    (tmp_path / "p.txt").write_text("")
    with pytest.raises(DataError, match="the file is empty"):
        prompts.first(path, 7, cycle=True)


def test_generate_gives_every_image_its_own_seed(tmp_path):
    """Prompts that come again are drawn from other seeds."""

    class Pipeline:
        def generate(self, asked, seeds, sampling, first):
            return np.zeros((len(asked), 8, 8, 3), np.uint8)

    (tmp_path / "p.txt").write_text("0\n1\n2\n")
    sampling = Sampling(prompts=str(tmp_path / "p.txt"), steps=1, cycle=True, batch_size=4, seed=10)
    found = [(asked, seeds) for _, asked, seeds in generate.batches(Pipeline(), range(5), sampling, "x")]
    assert found == [(list("0120"), [10, 11, 12, 13]), (["1"], [14])]


def test_classes_that_count_from_one_are_refused(image_set, digits_folder, tmp_path):
    """They would all be wrong, and nothing would say why."""
    images.write_images(tmp_path / "other", [(image_set[1][:3], ["1", "9", "10"], [None] * 3)], {})
    settings = {"network": "digits", "path": str(digits_folder)}
    with pytest.raises(DataError, match="class 10 is asked for, and the classifier knows 10, from 0"):
        extracted(tmp_path / "other" / "manifest.json", settings, tmp_path / "x.json")
    assert not (tmp_path / "x.json").exists()
