"""An incomplete model folder, or one of another family, is refused before any job, from file names and JSON alone."""

import json
import os
import shutil

import pytest
from linked_models import edit_json, linked

from quantwatt.artifacts.errors import DataError
from quantwatt.config import experiment
from quantwatt.jobs import fingerprints
from quantwatt.models import model_folder

MODELS = experiment.ROOT / "resources/models"
SD3 = {"family": "sd3", "text_encoder_3": False}
SDXL, BERT, GPT2, ANY = ({"family": name} for name in ("sdxl", "distilbert", "gpt2", "diffusers"))


@pytest.fixture
def sdxl(tmp_path):
    return linked(MODELS / "tiny-sdxl", tmp_path / "m")


@pytest.fixture
def bert(tmp_path):
    return linked(MODELS / "tiny-distilbert", tmp_path / "m")


def refusal(folder, settings):
    with pytest.raises(DataError) as caught:
        model_folder.parts(folder, settings)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [("sdxl", "StableDiffusionXLInpaintPipeline", "family 'diffusers' takes any pipeline that draws images from texts"),
     ("sdxl", "StableDiffusion3Pipeline", "this is StableDiffusion3Pipeline; write family: sd3."),
     ("sd3", "StableDiffusion3ControlNetPipeline", "family 'sd3' takes StableDiffusion3Pipeline, and this is"),
     ("consistency", "StableDiffusionXLPipeline", "write family: sdxl."),
     ("diffusers", ["my_pipeline", "MyPipeline"], "own code, which is never run"),
     ("diffusers", None, "_class_name: it names no class")],
)  # fmt: skip
def test_a_pipeline_of_another_class_is_refused_with_the_way_out(sdxl, name, kind, words):
    edit_json(sdxl / "model_index.json", _class_name=kind)
    assert words in refusal(sdxl, {"family": name})


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"model_type": "bert", "architectures": ["BertForSequenceClassification"]},
      "config.json: model_type: family 'distilbert' takes distilbert, and this is bert; families of text models are"),
     ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "write family: gpt2."),
     ({"architectures": ["DistilBertForMaskedLM"]}, "trained and saved as DistilBertForSequenceClassification."),
     ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantized already (bitsandbytes)"),
     ({"transformers_weights": "other.safetensors"}, "transformers_weights: 'other.safetensors'; drop the key")],
)  # fmt: skip
def test_a_text_model_of_another_class_or_form_is_refused(bert, changes, words):
    edit_json(bert / "config.json", **changes)
    assert words in refusal(bert, BERT)


def test_a_text_model_that_names_no_class_is_taken(bert):
    edit_json(bert / "config.json", architectures=None)
    assert model_folder.parts(bert, BERT)[""].kind == "DistilBertForSequenceClassification"


def test_what_is_no_models_folder_is_refused_with_the_way_out(tmp_path):
    assert "there is no such folder" in refusal(tmp_path / "none", SD3)
    (tmp_path / "empty").mkdir()
    assert "the folder is empty" in refusal(tmp_path / "empty", BERT)
    (tmp_path / "one").mkdir()
    file = tmp_path / "one/xl.safetensors"
    file.write_bytes(b"")
    for path in (file, file.parent):
        assert "StableDiffusionXLPipeline.from_single_file(" in refusal(path, SDXL)
    assert "save the model with save_pretrained, in safetensors" in refusal(file, GPT2)
    assert "give the folder of the whole pipeline" in refusal(MODELS / "tiny-sd3/transformer", SD3)
    assert "name a family of image models" in refusal(MODELS / "tiny-sd3", GPT2)


def test_a_file_of_settings_that_is_no_json_object_is_refused(bert):
    for text, words in (("[1]", "expected a JSON object, got [1]"), ("{", "config.json: not a JSON file")):
        (bert / "config.json").unlink()
        (bert / "config.json").write_text(text)
        assert words in refusal(bert, BERT)


def move(folder, old, new):
    (folder / old).rename(folder / new)


def write(path, text):
    path.unlink(missing_ok=True)
    path.write_text(text)


UNET = "unet/diffusion_pytorch_model"
WHOLE = {
    "part": (lambda f: shutil.rmtree(f / "vae"), "vae: model_index.json names this part (AutoencoderKL), and"),
    "scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "scheduler: model_index.json names this part"),
    "configuration": (lambda f: (f / "unet/config.json").unlink(), "unet: has no config.json, which UNet2DConditionM"),
    "weights": (lambda f: (f / f"{UNET}.safetensors").unlink(), "unet: has no weights (diffusion_pytorch_model.saf"),
    "pickles": (
        lambda f: move(f, f"{UNET}.safetensors", f"{UNET}.bin"), "in diffusion_pytorch_model.bin only, and pickled",
    ),
    "sharded pickles": (
        lambda f: move(f, f"{UNET}.safetensors", f"{UNET}-00001-of-00002.bin"), "00002.bin only, and pickled ones",
    ),
    "another name": (
        lambda f: move(f, f"{UNET}.safetensors", "unet/unet_ema.safetensors"), "unet_ema.safetensors is not read",
    ),
    "a library's other name": (
        lambda f: move(f, "text_encoder/model.safetensors", "text_encoder/diffusion_pytorch_model.safetensors"),
        "has no model.safetensors, and diffusion_pytorch_model.safetensors is not read under this name",
    ),
    "a pointer": (
        lambda f: write(f / f"{UNET}.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "is a pointer of Git LFS and not the weights; run `git lfs pull`",
    ),
    "an adapter": (lambda f: write(f / "unet/adapter_config.json", "{}"), "holds an adapter (adapter_config.json)"),
    "a shard": (
        lambda f: write(f / f"{UNET}.safetensors.index.json", '{"weight_map": {"a": "x-00001-of-00002.safetensors"}}'),
        "index.json: names x-00001-of-00002.safetensors, and the file is missing",
    ),
    "a file elsewhere": (
        lambda f: write(f / f"{UNET}.safetensors.index.json", '{"weight_map": {"a": "../vae/x.safetensors"}}'),
        "names '../vae/x.safetensors', which is no safetensors file of its folder",
    ),
    "an empty index": (lambda f: write(f / f"{UNET}.safetensors.index.json", "{}"), "has no weight_map of tensors"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WHOLE)
def test_a_pipeline_that_is_not_whole_is_refused_by_part_and_file(sdxl, kind):
    change, words = WHOLE[kind]
    change(sdxl)
    assert words in refusal(sdxl, SDXL)


def test_stable_diffusion_3_without_its_t5(tmp_path):
    folder = linked(MODELS / "tiny-sd3", tmp_path / "m")
    with_t5 = SD3 | {"text_encoder_3": True}
    assert "text_encoder_3: the pipeline has no text_encoder_3; set text_encoder_3: false" in refusal(folder, with_t5)
    edit_json(folder / "model_index.json", text_encoder_3=["transformers", "T5EncoderModel"],
              tokenizer_3=["transformers", "T5TokenizerFast"])  # fmt: skip
    assert "the folder is missing; set text_encoder_3: false to leave it out" in refusal(folder, with_t5)
    assert "text_encoder_3" not in model_folder.parts(folder, SD3)


def test_variants(sdxl):
    def variants(settings):
        return {name: part.weights.variant for name, part in model_folder.parts(sdxl, settings).items() if part.weights}

    def link(name):
        (sdxl / name).symlink_to(MODELS / "tiny-sdxl" / f"{UNET}.safetensors")

    plain = dict.fromkeys(("text_encoder", "text_encoder_2", "unet", "vae"))
    link(f"{UNET}.fp16.safetensors")
    assert variants(SDXL) == plain and variants(SDXL | {"variant": "fp16"}) == plain | {"unet": "fp16"}
    (sdxl / f"{UNET}.safetensors").unlink()
    assert variants(SDXL) == plain | {"unet": "fp16"}
    link(f"{UNET}.non_ema.safetensors")
    assert "of the variants fp16, non_ema and no plain ones; name one of them (variant: fp16)" in refusal(sdxl, SDXL)
    assert variants(SDXL | {"variant": "non_ema"}) == plain | {"unet": "non_ema"}
    assert "no part has weights of variant 'fp8'" in refusal(MODELS / "tiny-sdxl", SDXL | {"variant": "fp8"})


@pytest.mark.parametrize(
    "index",
    ["model.safetensors.index.json", "model.safetensors.index.fp16.json", "model.safetensors.fp16.index.json"],
)
def test_shards_of_every_naming_are_found(bert, index):
    shard = "model.fp16-00001-of-00001.safetensors"
    move(bert, "model.safetensors", shard)
    write(bert / index, json.dumps({"weight_map": {"a": shard}}))
    weights = model_folder.parts(bert, BERT)[""].weights
    assert weights == model_folder.Weights((index, shard), "fp16" if "fp16" in index else None)


def test_only_what_is_read_counts(sdxl, monkeypatch):
    monkeypatch.setattr(fingerprints, "ROOT", sdxl)
    names = model_folder.read_files(sdxl, SDXL)
    assert set(names) == {str(p.relative_to(MODELS / "tiny-sdxl")) for p in (MODELS / "tiny-sdxl").rglob("*.*")}
    first = fingerprints.fingerprint(".", names)
    for name in ("README.md", "unet/diffusion_pytorch_model.bin", "unet/x.fp16.safetensors", ".git/HEAD", "ema/w.json",
                 f"{UNET}.fp16.safetensors"):  # fmt: skip
        (sdxl / name).parent.mkdir(exist_ok=True)
        (sdxl / name).write_text("x")
    assert model_folder.read_files(sdxl, SDXL) == names and fingerprints.fingerprint(".", names) == first
    (sdxl / "tokenizer/merges.of").write_text("x")  # whatever a tokenizer may read
    assert model_folder.read_files(sdxl, SDXL) == sorted([*names, "tokenizer/merges.of"])
    write(sdxl / "tokenizer/tokenizer_config.json", "{}")
    assert fingerprints.fingerprint(".", names) != first


def test_folders_of_parts_may_be_links_and_lead_in_circles(sdxl, tmp_path):
    (sdxl / "unet").rename(tmp_path / "unet")
    (sdxl / "unet").symlink_to(tmp_path / "unet")
    (tmp_path / "other").mkdir()
    (tmp_path / "unet/on").symlink_to(tmp_path / "other")
    (tmp_path / "other/back").symlink_to(tmp_path / "unet")
    assert f"{UNET}.safetensors" in model_folder.read_files(sdxl, SDXL)


def test_planning_refuses_such_a_folder_by_entry(tmp_path):
    raw = experiment.read_yaml(experiment.EXPERIMENTS / "embedded-text.yaml", "x.yaml")
    folder = linked(MODELS / "tiny-distilbert", tmp_path / "m")
    edit_json(folder / "config.json", model_type="bert")
    raw["models"]["tiny-distilbert"]["path"] = os.path.relpath(folder, experiment.ROOT)
    with pytest.raises(experiment.ConfigurationError, match="^x.yaml: models.tiny-distilbert.path: .*and this is bert"):
        experiment.check_experiment(raw, "x.yaml")
