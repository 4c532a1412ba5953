"""Extractors, run on small random models through the code of open_clip and clean-fid."""

import quantwatt.jobs.torchvision_ops  # noqa: F401  open_clip imports torchvision

# isort: split
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import features
import fetch_weights
import score
from quantwatt import registry
from quantwatt.artifacts import feature_files, images
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import read_json
from quantwatt.jobs import command

PROMPTS = ["a red circle", "a blue square", "a green ring on a white background"]


@pytest.fixture(scope="module")
def image_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    found = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), dtype=np.uint8)
    images.write_images(folder, [(found, PROMPTS, [0, 1, 2])], {"method": "bf16"})
    return folder / "manifest.json", found


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A random open_clip model of 32 x 32 pixels that reads text with CLIP's own vocabulary."""
    folder = tmp_path_factory.mktemp("clip")
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic"}
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    (folder / "open_clip_config.json").write_text(text)
    torch.manual_seed(0)
    model = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """A random TorchScript network called as clean-fid calls Inception: `.layers(x)` of [b, 3, 299, 299]."""

    class Layers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3 * 23 * 23, 2048)

        def forward(self, x):
            return self.linear(torch.nn.functional.avg_pool2d(x, 13).flatten(1))

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = Layers()

        def forward(self, x, return_features: bool = False):
            return self.layers(x)

    torch.manual_seed(0)
    network = Network()
    path = tmp_path_factory.mktemp("inception") / "weights.pt"
    torch.jit.script(network).save(str(path))
    return path, network


def fetch(name, settings, output):
    fetch_weights.main(["--extractor", name, "--settings", json.dumps(settings), "--output", str(output)])
    return output


def run(manifest, name, settings, output):
    weights = fetch(name, settings, output.parent / "weights" / f"{name}.json")
    features.main(["--images", str(manifest), "--weights", str(weights), "--output", str(output)])
    return feature_files.read_features(output)


@pytest.mark.parametrize("name", ["judge"])
def test_clip_features_are_open_clips_own(image_set, clip_folder, tmp_path, name):
    manifest, found = image_set
    settings = {"model": f"local-dir:{clip_folder}", "batch": 2}
    fields, tensors = run(manifest, name, settings, tmp_path / f"{name}.json")

    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{clip_folder}")
    with torch.no_grad():
        image = model.encode_image(torch.stack([preprocess(Image.fromarray(picture)) for picture in found]))
        text = model.encode_text(open_clip.get_tokenizer(f"local-dir:{clip_folder}")(PROMPTS))
    assert tensors["image"].dtype == np.float32
    np.testing.assert_allclose(tensors["image"], image.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(tensors["text"], text.numpy(), rtol=1e-4, atol=1e-5)
    assert np.abs(tensors["image"][0] - tensors["image"][1]).max() > 1e-3
    assert (fields["extractor"], fields["n_images"], fields["dims"]) == (name, 3, 8)
    assert fields["resize"] == "open_clip preprocessing to 32x32" and "open_clip" in fields["library"]
    assert fields["images_sha256"] == images.images_sha256(read_json(manifest))


def test_inception_features_are_clean_fids(image_set, inception_file, tmp_path):
    manifest, found = image_set
    path, network = inception_file
    fields, tensors = run(manifest, "inception", {"weights": str(path), "batch": 2}, tmp_path / "inception.json")

    resized = np.stack(
        [
            [
                np.asarray(Image.fromarray(picture[..., c].astype(np.float32)).resize((299, 299), Image.BICUBIC))
                for c in range(3)
            ]
            for picture in found
        ]
    )
    with torch.no_grad():
        expected = network.layers((torch.from_numpy(resized.clip(0, 255)) - 128) / 128)
    np.testing.assert_allclose(tensors["image"], expected.numpy(), rtol=1e-4, atol=1e-5)
    assert set(tensors) == {"image"} and fields["dims"] == 2048
    assert "299x299" in fields["resize"] and len(fields["weights_sha256"]) == 64


def test_missing_and_broken_weights_are_one_sentence(clip_folder, inception_file, tmp_path, monkeypatch):
    for name, settings, message in [
        ("judge", {"model": f"local-dir:{tmp_path}/nowhere"}, "does not exist"),
        ("judge", {"model": "ViT-B-32", "pretrained": "openia"}, "its weights are: openai"),
        ("judge", {"model": "ViT-B-33"}, "the model is unknown"),
        ("inception", {"weights": f"{tmp_path}/nowhere.pt"}, "no such file of Inception weights"),
    ]:
        with pytest.raises(DataError, match=message):
            registry.load("extractors", name).load(settings, "cpu")
    truncated = tmp_path / "truncated.pt"
    truncated.write_bytes(inception_file[0].read_bytes()[:5000])
    with pytest.raises(DataError, match="truncated"):
        registry.load("extractors", "inception").load({"weights": str(truncated)}, "cpu")
    for file in clip_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: 5000 if file.suffix == ".safetensors" else None])
    with pytest.raises(DataError, match="open_clip model local-dir:.*cannot be loaded") as caught:
        registry.load("extractors", "judge").load({"model": f"local-dir:{tmp_path}"}, "cpu")
    assert "\n" not in str(caught.value)


def test_a_download_that_fails_leaves_no_file(tmp_path, monkeypatch):
    def interrupted(fpath):
        (Path(fpath) / "inception-2015-12-05.pt").write_bytes(b"half")
        raise ConnectionResetError("the network is gone")

    monkeypatch.setattr("cleanfid.downloads_helper.check_download_inception", interrupted)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(DataError, match="the network is gone.*by hand"):
        fetch("inception", {"weights": "download"}, tmp_path / "inception.json")
    assert not list((tmp_path / "checkpoints").iterdir()) and not (tmp_path / "inception.json").exists()


def test_what_was_downloaded_is_what_features_are_extracted_with(image_set, inception_file, tmp_path, monkeypatch):
    asked, settings, output = [], {"weights": "download", "batch": 3}, tmp_path / "inception.json"

    def downloaded(fpath):
        asked.append(fpath)
        return shutil.copy(inception_file[0], Path(fpath) / "inception-2015-12-05.pt")

    monkeypatch.setattr("cleanfid.downloads_helper.check_download_inception", downloaded)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    weights = fetch("inception", settings, tmp_path / "weights.json")
    fetch("inception", settings, tmp_path / "weights.json")
    arguments = ["--images", str(image_set[0]), "--weights", str(weights), "--output", str(output)]
    features.main(arguments)
    assert len(asked) == 1 and read_json(output)["dims"] == 2048
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "of another node"))
    with pytest.raises(DataError, match="no such file of Inception weights"):
        features.main(arguments)
    (tmp_path / "cache").rename(tmp_path / "not shared")
    with pytest.raises(
        DataError,
        match="this machine cannot see the folder with the .*'s weights; set HF_HOME, TORCH_HOME and XDG_CACHE_HOME",
    ):
        features.main(arguments)
    assert len(asked) == 1  # and nothing is fetched by it


def test_other_weights_than_those_that_were_fetched_are_refused(image_set, clip_folder, tmp_path):
    shutil.copytree(clip_folder, tmp_path / "clip")
    weights = fetch("judge", {"model": f"local-dir:{tmp_path}/clip"}, tmp_path / "judge.json")
    assert set(read_json(weights)["files"]) == {"open_clip_model.safetensors", "open_clip_config.json"}
    with (tmp_path / "clip/open_clip_config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(DataError, match="open_clip_config.json: .* bytes instead of .*; delete .*judge.json"):
        features.main(["--images", str(image_set[0]), "--weights", str(weights), "--output", str(tmp_path / "x.json")])


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """A hub's cache, empty, on a machine without a network; the addresses that were asked for all the same."""
    asked = []

    def refused(self, address):
        asked.append(address)
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("socket.socket.connect", refused)
    yield asked
    assert asked == []


def test_a_judge_of_a_hub_is_read_from_the_cache_without_a_network(image_set, clip_folder, tmp_path, offline):
    folder = tmp_path / "hub/models--somebody--judge"
    shutil.copytree(clip_folder, folder / "snapshots" / ("0" * 40))
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("0" * 40)
    fields, tensors = run(image_set[0], "judge", {"model": "hf-hub:somebody/judge"}, tmp_path / "judge.json")
    _, local = run(image_set[0], "judge", {"model": f"local-dir:{clip_folder}"}, tmp_path / "local.json")
    assert np.array_equal(tensors["image"], local["image"]) and np.array_equal(tensors["text"], local["text"])
    weights = read_json(tmp_path / "weights/judge.json")
    assert fields["weights_sha256"] == weights["files"]["open_clip_model.safetensors"]["sha256"]


def test_a_judge_that_is_not_in_the_cache_is_one_sentence_without_a_network(tmp_path, offline):
    with pytest.raises(DataError, match="open_clip model ViT-B-32: cannot be loaded") as caught:
        fetch("judge", {"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}, tmp_path / "judge.json")
    assert "\n" not in str(caught.value) and not (tmp_path / "judge.json").exists()


def test_a_judge_with_a_text_tower_of_a_hub_is_loaded_where_there_is_a_network(clip_folder, tmp_path, offline):
    """Its configuration is asked of a hub even where its weights are local: mlfoundations/open_clip#772."""
    shutil.copytree(clip_folder, tmp_path / "clip")
    config = json.loads((clip_folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_model_name": "somebody/bert", "hf_tokenizer_name": "somebody/bert"}
    (tmp_path / "clip/open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="open_clip model local-dir:.*cannot be loaded .We couldn't connect"):
        fetch("judge", {"model": f"local-dir:{tmp_path}/clip"}, tmp_path / "judge.json")


@pytest.mark.parametrize(("fetches", "offline"), [(False, "1"), (True, "0")])
def test_only_the_scripts_that_fetch_may_ask_a_hub(fetches, offline, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit):
        command.run(lambda: None, fetches)
    assert os.environ["HF_HUB_OFFLINE"] == offline


def test_a_cell_without_images_has_features_without_tensors(image_set, clip_folder, tmp_path):
    output, settings = tmp_path / "judge.json", {"model": f"local-dir:{clip_folder}"}
    run(image_set[0], "judge", settings, output)
    assert output.with_name(f"{output.stem}-image.npy").exists()
    images.write_no_images(tmp_path / "none", "oom", "too large", {})
    fields, tensors = run(tmp_path / "none" / "manifest.json", "judge", settings, output)
    assert (fields["status"], fields["reason"], fields["n_images"]) == ("oom", "too large", 0)
    assert tensors == {} and not output.with_name(f"{output.stem}-image.npy").exists()


def test_features_of_a_reference_come_chunk_by_chunk_with_their_moments(image_set, clip_folder, tmp_path, monkeypatch):
    settings, judge = {"model": f"local-dir:{clip_folder}"}, tmp_path / "judge.json"
    _, whole = run(image_set[0], "judge", settings, judge)
    assert not judge.with_name("judge-mean.npy").exists()
    images.write_images(tmp_path / "set", [(image_set[1], [None] * 3, [None] * 3)], {"reference": "coco"})
    monkeypatch.setattr(features, "CHUNK", 2)
    _, found = run(tmp_path / "set" / "manifest.json", "judge", settings, judge)
    np.testing.assert_allclose(found["image"], whole["image"], rtol=1e-4, atol=1e-6)
    fields, moments = feature_files.read_moments(judge)
    np.testing.assert_allclose(moments.mean, found["image"].mean(axis=0, dtype=np.float64), rtol=1e-9)
    assert moments.n == 3 and set(fields["files"]) == {"judge-image.npy", "judge-mean.npy", "judge-covariance.npy"}
    expected = {"judge.json", *fields["files"], "set", "weights"}
    assert {path.name for path in tmp_path.iterdir()} == expected  # and nothing that they were made of


def test_features_without_prompts_have_no_text(image_set, clip_folder, tmp_path):
    images.write_images(tmp_path / "set", [(image_set[1], [None] * 3, [None] * 3)], {"reference": "coco"})
    settings = {"model": f"local-dir:{clip_folder}"}
    fields, tensors = run(tmp_path / "set" / "manifest.json", "judge", settings, tmp_path / "clip.json")
    assert set(tensors) == {"image"} and fields["reference"] == "coco"


def test_features_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(DataError, match="image features have NaN"):
        feature_files.write_features(tmp_path / "x.json", {"image": np.array([[1, np.inf]], np.float32)}, {})
    assert not list(tmp_path.iterdir())


def test_prompts_beyond_what_the_judge_reads_are_counted(clip_folder, capsys):
    """The model reads 16 tokens with the two at the ends: 14 words fit, and 15 do not."""
    judge = registry.load("extractors", "judge").load({"model": f"local-dir:{clip_folder}", "batch": 2}, "cpu")
    judge.text(["a " * 14, "a", "a " * 3])
    assert judge.cut == 0 and capsys.readouterr().err == ""
    judge.text(["a " * 15, "a " * 14, "a " * 40])
    assert judge.cut == 2
    expected = "2 of 3 prompts are longer than 16 tokens: the judge truncates them.\n"
    assert capsys.readouterr().err == expected


def test_clip_iqa_and_hpsv2_are_open_clips_own_arithmetic(image_set, clip_folder, tmp_path):
    """CLIP-IQA by two texts, HPSv2 as the cosine with the prompt; both of a network of random weights."""
    manifest, found = image_set
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{clip_folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{clip_folder}")
    with torch.no_grad():
        image = model.encode_image(
            torch.stack([preprocess(Image.fromarray(picture)) for picture in found]), normalize=True
        )
        texts = model.encode_text(tokenizer([*PROMPTS, "Good photo.", "Bad photo."]), normalize=True)
    cosines = image @ texts.T
    for metric, name, settings, expected in (
        ("clip-iqa", "judge", {"model": f"local-dir:{clip_folder}"}, (100 * cosines[:, 3:]).softmax(1)[:, 0]),
        ("hpsv2", "hpsv2", {"weights": str(clip_folder), "revision": None, "batch": 2}, 100 * cosines.diagonal()),
    ):
        features_path, output = tmp_path / f"{name}.json", tmp_path / f"{metric}-score.json"
        run(manifest, name, settings, features_path)
        arguments = ["--features", features_path, "--baseline-features", features_path, "--output", output]
        score.main(list(map(str, ["--metric", metric, *arguments])))
        scored = read_json(output)
        assert scored["values"] == pytest.approx(expected.tolist(), rel=1e-4)
        assert scored["change"] == {"value": 0, "low": 0, "high": 0} and scored["features"] == name
