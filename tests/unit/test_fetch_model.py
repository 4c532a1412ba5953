"""A model that cannot be fetched: one sentence that says what to do."""

import json

import httpx2 as httpx
import pytest

import model as model_rule
from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.config import experiment
from quantwatt.models import model_folder
from quantwatt.registry import schema

HUB = {"family": "sd3", "hub": "somebody/model", "revision": "0" * 40, "text_encoder_3": False, "dtype": "bfloat16"}
STUDIES = sorted(path.stem for path in experiment.EXPERIMENTS.glob("*.yaml"))
MODEL = experiment.load_experiment("embedded")["models"]["tiny-sd3"]


def test_a_local_model_is_described_from_its_files(tmp_path, monkeypatch):
    monkeypatch.chdir(experiment.ROOT)
    model_rule.main(["--model", "m", "--settings", json.dumps(MODEL), "--output", str(tmp_path / "manifest.json")])
    found = manifest.read_json(tmp_path / "manifest.json")
    weights = experiment.ROOT / MODEL["path"] / "transformer/diffusion_pytorch_model.safetensors"
    stored = weights.stat().st_size  # in bfloat16, where the model computes in float32
    assert abs(found["denoiser_bytes"] - 2 * stored) < 2 * 60_000  # all but the file's header
    assert found["files"]["transformer/diffusion_pytorch_model.safetensors"]["sha256"] == manifest.sha256(weights)
    assert len(found["blocks"]) >= 4 and all(name.startswith("transformer_blocks.") for name in found["layers"])


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("GatedRepoError", "HF_TOKEN"),
        ("RepositoryNotFoundError", "no such repository"),
        ("RevisionNotFoundError", "no such commit"),
        ("LocalEntryNotFoundError", "the hub cannot be reached"),
        ("OfflineModeIsEnabled", "the hub cannot be reached"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(monkeypatch, error, words):
    import huggingface_hub
    from huggingface_hub import errors

    def refuse(*args, **kwargs):
        kind = getattr(errors, error)
        if issubclass(kind, errors.HfHubHTTPError) and error != "LocalEntryNotFoundError":
            raise kind("refused", response=httpx.Response(403, request=httpx.Request("GET", "https://example.org")))
        raise kind("refused")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(DataError, match=words) as caught:
        model_rule.fetch(HUB)
    assert str(caught.value).startswith("somebody/model at 000000000000: ") and "\n" not in str(caught.value)


def test_only_the_parts_of_the_pipeline_are_fetched_at_the_fixed_commit(monkeypatch, tmp_path):
    import huggingface_hub

    index = {"transformer": ["diffusers", "T"], "vae": ["diffusers", "V"],
             "text_encoder_3": ["transformers", "T5"], "tokenizer_3": ["transformers", "T5Tokenizer"],
             "image_encoder": [None, None]}  # fmt: skip
    asked = {}
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: tmp_path / "model_index.json")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: asked.update(k) or str(tmp_path))

    def folders_of(settings):
        [kind, *_] = schema(f"families/{settings['family']}").get("x-classes", ["FluxPipeline"])
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": kind, **index}))
        assert model_rule.fetch(settings) == str(tmp_path) and asked["revision"] == settings["revision"]
        return {pattern.split("/")[0] for pattern in asked["allow_patterns"]}

    assert folders_of(HUB) == {"model_index.json", "transformer", "vae"}
    asked_for = [model for name in STUDIES for model in experiment.load_experiment(name)["models"].values()]
    for model in asked_for:  # as experiments complete their entries
        if "hub" in model and model_folder.index_of(model["family"]) == model_folder.PIPELINE:
            assert folders_of(model) >= {"model_index.json", "transformer", "vae"}
    assert {"sd3", "sdxl", "consistency"} <= {model["family"] for model in asked_for}


def test_parts_that_have_weights_of_a_variant_only_are_fetched_again_with_it(monkeypatch, tmp_path):
    import huggingface_hub

    index = {"_class_name": "StableDiffusion3Pipeline", "transformer": ["diffusers", "T"], "vae": ["diffusers", "V"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for name in ("transformer/config.json", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    calls = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: tmp_path / "model_index.json")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: calls.append(k) or str(tmp_path))
    model_rule.fetch(HUB)
    assert [call.get("ignore_patterns") for call in calls] == [["*.fp16*"], None]
    assert calls[1]["allow_patterns"] == ["transformer/*.safetensors*"]
    calls.clear()
    model_rule.fetch(HUB | {"variant": "fp16"})
    assert [call["ignore_patterns"] for call in calls] == [[]]
