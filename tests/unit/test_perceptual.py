"""Perceptual metrics against the values that their authors' libraries computed (tests/peers/record_perceptual.py)."""

import json
from pathlib import Path

import numpy as np
import perceptual_cases as cases
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import features
import fetch_weights
import score
from quantwatt import registry
from quantwatt.artifacts import feature_files, images
from quantwatt.artifacts.errors import DataError, Unsupported
from quantwatt.artifacts.manifest import read_json
from quantwatt.score.lpips import BACKBONES, HEADS
from quantwatt.score.metrics import Undefined, cmmd, flip, image_precision, image_recall, ms_ssim

ROOT = Path(__file__).parents[2]
RECORDED = json.loads((ROOT / "tests/peers/perceptual.json").read_text())
MODELS = {name: model for name, (_, model) in cases.NETWORKS.items()} | {"dists": "vgg16"}


@pytest.fixture(scope="module")
def weights_of(tmp_path_factory):
    """A function of a torchvision model's name: its random weights in torchvision's names, without its classifier."""
    import quantwatt.jobs.torchvision_ops  # noqa: F401, I001  before torchvision
    from torchvision.models import get_model

    folder = tmp_path_factory.mktemp("weights")

    def made(model):
        path = folder / f"{model}.safetensors"
        if not path.exists():
            with torch.device("meta"):
                state = get_model(model).features.state_dict()
            found = cases.weights({name: tuple(value.shape) for name, value in state.items()})
            save_file({f"features.{name}": torch.from_numpy(value) for name, value in found.items()}, path)
        return path

    return made


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Manifests of a method's images and of the baseline's: the three small pairs."""
    folder, found = tmp_path_factory.mktemp("sets"), list(cases.pairs("small"))
    for name, side in (("float", 0), ("w4", 1)):
        pixels = np.stack([pair[side] for pair in found])
        images.write_images(folder / name, [(pixels, ["a", "b", "c"], [0, 1, 2])], {"method": name})
    return {name: folder / name / "manifest.json" for name in ("w4", "float")}


@pytest.mark.parametrize("name", MODELS)
def test_a_network_of_pairs_goes_through_the_stages(name, weights_of, sets, tmp_path):
    settings = {"weights": str(weights_of(MODELS[name])), "revision": None, "batch": 2}
    weights, read, scored = (tmp_path / part / f"{name}.json" for part in ("weights", "features", "score"))
    fetch_weights.main(["--extractor", name, "--settings", json.dumps(settings), "--output", str(weights)])
    arguments = ["--images", sets["w4"], "--baseline", sets["float"], "--weights", weights, "--output", read]
    features.main(list(map(str, arguments)))
    score.main(["--metric", name, "--features", str(read), "--output", str(scored)])
    found = read_json(scored)
    assert found["values"] == pytest.approx(RECORDED[name], rel=1e-3, abs=1e-5)
    assert found["value"] == pytest.approx(np.mean(RECORDED[name]), abs=1e-4)
    assert found["low"] < found["value"] < found["high"] and found["change"] is None
    assert (found["status"], found["features"], found["reference"]) == ("ok", name, "float")
    assert found["reference_sha256"] == images.images_sha256(read_json(sets["float"]))


def test_of_the_baseline_itself_no_features_are_needed(sets, tmp_path):
    score.main(["--metric", "lpips", "--images", str(sets["float"]), "--is-baseline", "--output", f"{tmp_path}/x.json"])
    found = read_json(tmp_path / "x.json")
    assert (found["status"], found["value"], found["library"][:11]) == ("reference", None, "torchvision")


@pytest.mark.parametrize("name", MODELS)
def test_too_small_images_are_a_result_with_a_reason(name, weights_of, tmp_path):
    least = 16 if name == "dists" else BACKBONES[cases.NETWORKS[name][0]].least
    network = registry.load("extractors", name).load(
        {"weights": str(weights_of(MODELS[name])), "revision": None, "batch": 2}, "cpu"
    )
    files = []
    for side in (least, least - 1):
        files.append(tmp_path / f"{side}.png")
        Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(files[-1])
    assert network.rate(files[:1], files[:1])["distance"] == pytest.approx([0], abs=1e-6)
    with pytest.raises(Unsupported, match=f"from {least} pixels on, and these have {least - 1}"):
        network.rate(files[1:], files[1:])


def test_images_that_cannot_be_read_are_a_cell_without_a_value(weights_of, tmp_path):
    for name in ("float", "w4"):
        pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
        images.write_images(tmp_path / name, [(pixels, ["a", "b"], [0, 1])], {"method": name})
    settings = {"weights": str(weights_of("alexnet")), "revision": None, "batch": 2}
    weights = tmp_path / "lpips-weights.json"
    fetch_weights.main(["--extractor", "lpips", "--settings", json.dumps(settings), "--output", str(weights)])
    features.extract(
        tmp_path / "w4/manifest.json", weights, "cpu", tmp_path / "lpips.json", tmp_path / "float/manifest.json"
    )
    found = feature_files.read_features(tmp_path / "lpips.json")[0]
    assert found["status"] == "unsupported" and "from 31 pixels on" in found["reason"]


def test_other_weights_are_refused_in_one_sentence(weights_of, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    for path, words in [
        (weights_of("vgg16"), r"features.0.weight of \[64, 3, 11, 11\] is needed, and it is of \[64, 3, 3, 3\]"),
        (HEADS / "dists.safetensors", "features.0.weight of .* is needed, and it is missing"),
        (tmp_path / "broken.safetensors", "no readable safetensors"),
    ]:
        with pytest.raises(DataError, match=words):
            registry.load("extractors", "lpips").load({"weights": str(path), "revision": None, "batch": 2}, "cpu")


def test_flip_and_ms_ssim_are_those_of_their_libraries():
    small, large = (list(cases.pairs(size)) for size in ("small", "large"))
    assert flip.score(*zip(*small, strict=True)).of_items.values == pytest.approx(RECORDED["flip"], abs=1e-4)
    assert ms_ssim.score(*zip(*large, strict=True)).of_items.values == pytest.approx(RECORDED["ms-ssim"], abs=1e-4)
    image = small[0][0]
    assert flip.score([image], [image]).value == 0
    with pytest.raises(ms_ssim.Undefined, match="needs 161 x 161 pixels, and images are 64 x 80"):
        ms_ssim.score([image], [image])


def test_precision_and_recall_are_prdcs():
    samples, reference = cases.features()
    precision, recall = image_precision.score(samples, reference), image_recall.score(samples, reference)
    assert precision.value == pytest.approx(RECORDED["image-precision"])
    assert recall.value == pytest.approx(RECORDED["image-recall"])
    for found, module in ((precision, image_precision), (recall, image_recall)):
        assert 0 <= found.low < found.value < found.high <= 1
        same = module.change(samples, samples, reference)
        assert tuple(same[:3]) == (0, 0, 0)
        with pytest.raises(Undefined, match="it takes 4 to 10000 images on each side"):
            module.score(samples[:3], reference)


def test_recalls_interval_covers_what_other_samples_have():
    rng, reference = np.random.default_rng(0), np.random.default_rng(1).normal(size=(100, 4))
    scores = [image_recall.score(0.7 * rng.normal(size=(80, 4)) + 0.4, reference, 100) for _ in range(120)]
    expected = np.mean([found.value for found in scores])
    assert np.mean([found.low <= expected <= found.high for found in scores]) > 0.88


def test_cmmd_is_its_definition():
    """1000 (mean k(x, x') + mean k(y, y') - 2 mean k(x, y)), k = exp(-|x - y|²/200) of vectors of length 1."""
    x, y = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in cases.features())

    def mean(one, other):
        return np.exp(-((one[:, None] - other) ** 2).sum(-1) / 200).mean()

    found = cmmd.score(3 * x, 5 * y, resamples=200)
    assert found.value == pytest.approx(1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y)), rel=1e-9)
    assert found.low < found.value < found.high
    worse = cmmd.change(y[:90], x, y, resamples=200)
    assert worse.value == pytest.approx(cmmd.score(y[:90], y).value - found.value) and worse.high < 0
    assert np.isnan(cmmd.score(x, y, resamples=0).low)
