"""Networks that metrics need: entries of an experiment, their weights, and the jobs that read them."""

import json

import numpy as np
import plans
import pytest
import torch

import features
import fetch_weights
import score
from quantwatt import registry
from quantwatt.artifacts import feature_files, images
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import read_json
from quantwatt.config import inputs
from quantwatt.config.schemas import ConfigurationError
from quantwatt.registry import names, schema
from quantwatt.score import weights

REVISION = "0123456789abcdef0123456789abcdef01234567"
CELL = {"model": "tiny-sd3", "method": "gptq-w4a8", "sampling": "steps-20"}
R = "results/embedded"


def plan_with(extractors, *metrics):
    """The embedded experiment with further extractors and metrics."""

    def change(entries):
        entries["extractors"] = extractors
        entries["metrics"] |= dict.fromkeys(metrics)

    return plans.plan_of("embedded", change)


def test_a_metric_whose_weights_are_not_there_is_refused_before_any_job(tmp_path):
    pickled = tmp_path / "alexnet.pth"
    pickled.touch()
    for extractors, words in [
        (
            {},
            "extractors.lpips: missing, and metric 'lpips' needs its 'weights'. To get them: python .*convert_weights",
        ),
        ({"lpips": {}}, "extractors.lpips: the key 'weights' is missing"),
        ({"lpips": {"weights": "no/where"}}, "'no/where' does not exist; a repository .* needs its 'revision', too"),
        (
            {"lpips": {"weights": str(pickled)}},
            "is no safetensors file, .*convert_weights.py .*alexnet.pth alexnet",
        ),
        ({"lpips": {"weights": "a/b", "revision": "main"}}, "extractors.lpips.revision: 'main' does not fit"),
        ({"lpips": {"weights": "download"}}, "'download': they are published as a pickle, which no job reads. To get"),
        ({"lpisp": {"weights": "a/b"}}, "'lpisp' is not known .*did you mean 'lpips'"),
    ]:
        with pytest.raises(ConfigurationError, match=words):
            plan_with(extractors, "lpips")
    assert plan_with({"lpips": {"weights": "a/b", "revision": REVISION}}, "lpips").extractor_of("lpips") == "lpips"


def test_a_download_is_the_publishers_repository_at_a_commit():
    entry = plan_with({"dinov2": {"weights": "download"}}, "fd-dinov2").experiment["extractors"]["dinov2"]
    assert entry["weights"] == "facebook/dinov2-large" and len(entry["revision"]) == 40


def test_every_network_says_where_its_weights_are():
    for name in names("extractors"):
        assert schema(f"extractors/{name}")["x-where"] and "-" not in name.replace("lpips-", "lpips")


def test_the_jobs_of_a_network_of_pairs():
    plan = plan_with({"lpips": {"weights": "a/b", "revision": REVISION}}, "lpips")
    lpips = CELL | {"metric": "lpips", "extractor": "lpips"}
    assert inputs.files(plan, "features", lpips) == {
        "images": f"{R}/images/tiny-sd3/gptq-w4a8/steps-20/manifest.json",
        "weights": f"{R}/extractors/lpips.json",
        "baseline": f"{R}/images/tiny-sd3/float32/steps-20/manifest.json",
    }
    assert inputs.partner(plan, lpips) == f"--baseline {R}/images/tiny-sd3/float32/steps-20/manifest.json"
    assert inputs.partner(plan, CELL | {"extractor": "judge"}) == inputs.partner(plan, {"extractor": "judge"}) == ""
    assert inputs.files(plan, "score", lpips) == {"features": f"{R}/features/tiny-sd3/gptq-w4a8/steps-20/lpips.json"}
    of_baseline = inputs.arguments(plan, "score", lpips | {"method": "float32"})
    assert of_baseline.startswith("--images ") and of_baseline.endswith(" --is-baseline")
    assert inputs.fingerprint(plan, "fetch_weights", {"extractor": "lpips"}) is None


def test_features_are_shared_by_metrics():
    dino = {"dinov2": {"weights": "facebook/dinov2-large", "revision": REVISION}}
    plan = plan_with(dino, "fd-dinov2", "dino-similarity", "clip-similarity")
    found = {name: inputs.files(plan, "score", CELL | {"metric": name}) for name in plan.experiment["metrics"]}
    features = f"{R}/features/tiny-sd3/gptq-w4a8/steps-20"
    assert {found[name]["features"] for name in ("fd-dinov2", "dino-similarity")} == {f"{features}/dinov2.json"}
    assert {found[name]["features"] for name in ("clip-similarity", "clip-score", "fid")} == {f"{features}/judge.json"}
    assert found["dino-similarity"].keys() == {"features", "baseline_features"}
    assert found["fd-dinov2"].keys() == {"features", "reference_features", "baseline_features"}


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    """A folder with a small DINOv2 of random weights."""
    import quantwatt.jobs.torchvision_ops  # noqa: F401, I001  before transformers
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 224, "patch_size": 56}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    return folder


def test_dinov2_reads_images_as_clean_fid_resizes_them(dinov2, tmp_path):
    from cleanfid.resize import make_resizer
    from transformers import Dinov2Model

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 48, 64, 3), dtype=np.uint8)
    for name, found in (("float", pixels), ("w4", pixels // 2)):
        images.write_images(tmp_path / name, [(found, ["a", "b", "c"], [0, 1, 2])], {"method": name})
    settings = json.dumps({"weights": str(dinov2), "revision": None, "batch": 2})
    fetched = tmp_path / "dinov2.json"
    fetch_weights.main(["--extractor", "dinov2", "--settings", settings, "--output", str(fetched)])
    paths = {}
    for name in ("float", "w4"):
        paths[name] = tmp_path / "features" / name / "dinov2.json"
        features.extract(tmp_path / name / "manifest.json", fetched, "cpu", paths[name])
    resize = make_resizer("PIL", False, "bicubic", (224, 224))
    x = torch.from_numpy(np.stack([resize(image) for image in pixels])).permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(dinov2)(x).pooler_output.numpy()
    fields, arrays = feature_files.read_features(paths["float"])
    np.testing.assert_allclose(arrays["image"], expected, atol=1e-4)
    assert (fields["dims"], fields["method"], fields["resize"][:9]) == (16, "float", "clean-fid")
    output = tmp_path / "score.json"
    arguments = ["--features", paths["w4"], "--baseline-features", paths["float"], "--output", output]
    score.main(list(map(str, ["--metric", "dino-similarity", *arguments])))
    found, other = read_json(output), feature_files.read_features(paths["w4"])[1]["image"]
    cosines = (other * expected).sum(1) / np.linalg.norm(other, axis=1) / np.linalg.norm(expected, axis=1)
    assert found["values"] == pytest.approx(cosines, abs=1e-4) and (found["status"], found["change"]) == ("ok", None)
    assert found["reference_sha256"] == images.images_sha256(read_json(tmp_path / "float/manifest.json"))


def test_spatial_features_are_those_of_the_whole_inception(monkeypatch, tmp_path):
    from cleanfid import inception_pytorch
    from safetensors.torch import save_file
    from torchvision.models import inception_v3

    torch.manual_seed(0)
    small = {"num_classes": 1008, "aux_logits": False, "init_weights": False, "weights": None}
    monkeypatch.setattr(inception_pytorch, "_inception_v3", lambda **_: inception_v3(**small))
    monkeypatch.setattr(inception_pytorch, "load_state_dict_from_url", lambda *_, **__: None)
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda self, found, **_: None if found is None else 1 / 0)
    whole = inception_pytorch.fid_inception_v3().eval()  # clean-fid's copy of pytorch-fid's network
    monkeypatch.undo()
    save_file(whole.state_dict(), tmp_path / "inception.safetensors")
    read = []
    whole.Mixed_6d.branch1x1.conv.register_forward_hook(lambda module, inputs, output: read.append(output))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 299, 299, 3), dtype=np.uint8)
    with torch.no_grad():
        whole(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1)
    images.write_images(tmp_path / "set", [(pixels, ["a", "b"], [0, 1])], {"method": "float"})
    settings = {"weights": str(tmp_path / "inception.safetensors"), "revision": None, "batch": 2}
    found = registry.load("extractors", "spatial").load(settings, "cpu")
    features_found = found.image(images.image_files(tmp_path / "set/manifest.json"))
    assert features_found.shape == (2, 7 * 17 * 17)
    np.testing.assert_allclose(features_found, read[0][:, :7].flatten(1).numpy(), rtol=1e-4, atol=1e-4)


def test_the_aesthetic_rating_is_linear_in_the_normalized_embedding(tmp_path):
    from safetensors.torch import save_file

    from quantwatt.jobs.fingerprints import ROOT
    from quantwatt.score.extractors import judge

    clip = ROOT / "resources/models/judge"
    for file in clip.iterdir():
        (tmp_path / file.name).symlink_to(file)
    settings = {"weights": str(tmp_path), "revision": None, "batch": 2}
    aesthetic = registry.load("extractors", "aesthetic")
    with pytest.raises(DataError, match="there is no head.safetensors"):
        aesthetic.load(settings, "cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    images.write_images(tmp_path / "set", [(pixels, ["a", "b", "c"], [0, 1, 2])], {"method": "float"})
    files = images.image_files(tmp_path / "set/manifest.json")
    embedded = judge.load({"model": f"local-dir:{clip}"}, "cpu").image(files)
    weight = torch.randn(1, embedded.shape[1], generator=torch.Generator().manual_seed(0))
    save_file({"weight": weight, "bias": torch.tensor([5.0])}, tmp_path / "head.safetensors")
    found = aesthetic.load(settings, "cpu").rate(files, ["a", "b", "c"])["rating"]
    unit = embedded / np.linalg.norm(embedded, axis=1, keepdims=True)
    np.testing.assert_allclose(found, unit @ weight[0].numpy() + 5, atol=1e-4)
    assert found.std() > 1e-3
    save_file({"weight": weight[:, :3].contiguous(), "bias": torch.tensor([5.0])}, tmp_path / "head.safetensors")
    with pytest.raises(DataError, match="weight of .* is needed, and it is of"):
        aesthetic.load(settings, "cpu")


def test_weights_of_the_hub_are_asked_for_at_their_commit(monkeypatch, tmp_path):
    import huggingface_hub

    asked = []

    def download(name, **options):
        asked.append((name, options["revision"], options["local_files_only"]))
        if name == "a/gone":
            raise huggingface_hub.errors.LocalEntryNotFoundError("no")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    (tmp_path / "config.json").touch()
    settings = {"weights": "a/b", "revision": REVISION}
    with pytest.raises(DataError, match="there are no safetensors; tools/convert_weights.py"):
        weights.fetch(settings)
    (tmp_path / "model.safetensors").touch()
    assert [path.name for path in weights.fetch(settings)] == ["config.json", "model.safetensors"]
    assert weights.file(settings) == tmp_path / "model.safetensors"
    assert [offline for _, _, offline in asked] == [False, False, True]
    (tmp_path / "other.safetensors").touch()
    with pytest.raises(DataError, match="one safetensors file is needed, and there are 2"):
        weights.file(settings)
    with pytest.raises(DataError, match="a/gone at 0123456789ab: not on this machine, and it was not fetched"):
        weights.file(settings | {"weights": "a/gone"})
