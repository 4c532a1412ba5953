"""A model whose files lack or add tensors of its classes is refused; every legitimate model is accepted."""

import json

import pytest
import tiny_pipelines
import tiny_text
import torch
from linked_models import edit_json, edit_tensors, linked
from safetensors.torch import load_file, save_file

import model
from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.config import experiment
from quantwatt.models import model_folder, tensor_check
from quantwatt.models.families import load_family, pipelines

MODELS = experiment.ROOT / "resources/models"
SD3 = {"family": "sd3", "dtype": "float32", "text_encoder_3": False}
SDXL = {"family": "sdxl", "dtype": "float32"}
BERT = {"family": "distilbert", "dtype": "float32"}
GPT2 = {"family": "gpt2", "dtype": "float32"}
ANY = {"family": "diffusers", "dtype": "float32", "arguments": {}}
UNET = "diffusion_pytorch_model.safetensors"


def check(folder, settings):
    return tensor_check.check(folder, settings, model_folder.parts(folder, settings))


def refusal(folder, settings):
    with pytest.raises(DataError) as caught:
        check(folder, settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """{name: folder} of tiny models of random weights, as their libraries save them."""
    top = tmp_path_factory.mktemp("built")
    folders = {name: build(top / name) for name, build in tiny_pipelines.BUILDERS.items()}
    return folders | {"distilbert": tiny_text.distilbert(top / "distilbert"), "gpt2": tiny_text.gpt2(top / "gpt2")}


@pytest.mark.parametrize("name", [*tiny_pipelines.BUILDERS, "distilbert", "gpt2"])
def test_what_the_libraries_save_is_taken(built, name):
    settings = {"distilbert": BERT, "gpt2": GPT2}.get(name, ANY)
    found = check(built[name], settings)
    assert all(part["variant"] is None and part["stored"] == ["float32"] for part in found.values())
    assert name in ("distilbert", "gpt2") or {"vae"} < found.keys()


@pytest.mark.parametrize(
    ("name", "settings"),
    [("tiny-sd3", SD3), ("tiny-sdxl", SDXL), ("tiny-consistency", {"family": "consistency", "dtype": "float32"}),
     ("tiny-distilbert", BERT), ("tiny-gpt2", GPT2)],
)  # fmt: skip
def test_the_embedded_models_are_taken_through_links(tmp_path, name, settings):
    assert check(linked(MODELS / name, tmp_path / "m"), settings)


def prefixed(prefix):
    return lambda tensors: {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def base_layers(tensors):
    """As PEFT names the layers under an adapter."""
    return {name.replace("_proj.", "_proj.base_layer."): tensor for name, tensor in tensors.items()}


def headless(tensors):
    """As DistilBertModel saves itself."""
    return {n.removeprefix("distilbert."): t for n, t in tensors.items() if n.startswith("distilbert.")}


def weight_norm(tensors):
    """One layer as weight norm's two halves."""
    weight = tensors.pop("pre_classifier.weight")
    norm = weight.norm(dim=1, keepdim=True)
    return tensors | {"pre_classifier.weight_g": norm, "pre_classifier.weight_v": weight}


def without(*names):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def cut(name):
    return lambda tensors: tensors | {name: tensors[name][:-1]}


def int8(tensors):
    """As a library that quantizes stores a layer: codes and their scale."""
    name = "distilbert.transformer.layer.0.ffn.lin1.weight"
    return tensors | {name: tensors[name].to(torch.int8), name.replace("weight", "SCB"): torch.ones(64)}


BROKEN_TEXT = {
    "no head": (headless, "distilbert", ["lacks", "classifier.bias, classifier.weight"]),
    "head under another name": (
        lambda t: {n.replace("pre_classifier", "dense"): x for n, x in t.items()},
        "distilbert", ["lacks", "pre_classifier.weight", "has dense.bias, dense.weight, which nothing takes"],
    ),
    "torch.compile": (prefixed("_orig_mod."), "distilbert", ["lacks", "torch.compile's prefix"]),
    "data parallel": (prefixed("module."), "distilbert", ["lacks", "DataParallel's prefix"]),
    "fully sharded": (prefixed("_fsdp_wrapped_module."), "distilbert", ["lacks", "FSDP's prefix"]),
    "weight norm": (weight_norm, "distilbert", ["lacks", "pre_classifier.weight", "weight norm"]),
    "one tensor left over": (
        lambda t: t | {"vocab_projector.bias": torch.ones(3)}, "distilbert", ["does not take: vocab_projector.bias"],
    ),
    "another width": (cut("classifier.weight"), "distilbert", ["classifier.weight is 1x32, and", "needs 2x32"]),
    "codes": (int8, "distilbert", ["SCB", "quantized already"]),
    "codes without a scale": (
        lambda t: t | {"classifier.weight": t["classifier.weight"].to(torch.int8)},
        "distilbert", ["1 tensors are stored as I8 (classifier.weight is one)"],
    ),
    "float8": (
        lambda t: {n: x.to(torch.float8_e4m3fn) if "lin" in n else x for n, x in t.items()},
        "distilbert", ["are stored as F8_E4M3", "float16"],
    ),
    "embeddings lost, which the head is tied to": (without("transformer.wte.weight"), "gpt2", ["lacks", "wte.weight"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN_TEXT)
def test_a_text_model_with_other_tensors_is_refused_by_their_names(built, tmp_path, kind):
    change, name, words = BROKEN_TEXT[kind]
    folder = linked(built[name], tmp_path / "m")
    edit_tensors(folder / "model.safetensors", change)
    said = refusal(folder, {"distilbert": BERT, "gpt2": GPT2}[name])
    assert said.startswith(f"{folder / 'model.safetensors'}: ") and all(word in said for word in words), said


def test_a_head_that_is_said_not_to_be_tied_must_be_there(built, tmp_path):
    folder = linked(built["gpt2"], tmp_path / "m")
    edit_json(folder / "config.json", tie_word_embeddings=False)
    assert "lacks what GPT2LMHeadModel needs: lm_head.weight." in refusal(folder, GPT2)


def untied(tensors):
    return tensors | {"lm_head.weight": tensors["transformer.wte.weight"] + 1}


OLD_NAMES = {
    "tied head, stored": lambda t: t | {"lm_head.weight": t["transformer.wte.weight"].clone()},
    "head that is not the embeddings": untied,
    "masks as buffers": lambda t: t | {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 24, 24).bool() for i in (0, 1)},
    "without the prefix": lambda t: {n.removeprefix("transformer."): x for n, x in t.items()},
    "half precision": lambda t: {n: x.half() for n, x in t.items()},
}


@pytest.mark.parametrize("kind", OLD_NAMES)
def test_names_and_types_that_the_library_knows_are_taken(built, tmp_path, kind):
    folder = linked(built["gpt2"], tmp_path / "m")
    edit_tensors(folder / "model.safetensors", OLD_NAMES[kind])
    assert check(folder, GPT2)[""]["stored"] == (["float16"] if kind == "half precision" else ["float32"])


def test_positions_that_old_files_store_are_taken(built, tmp_path):
    folder = linked(built["stable-diffusion"], tmp_path / "m")
    positions = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    edit_tensors(folder / "text_encoder/model.safetensors", lambda tensors: tensors | positions)
    assert check(folder, ANY)


def shards(folder, stem, halves):
    """Two files of weights and their index, in place of one."""
    weights = folder / f"{stem}.safetensors"
    tensors = load_file(weights)
    names, listed = sorted(tensors), {}
    for i, part in enumerate(halves(names), 1):
        file = f"{stem}-{i:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        listed |= dict.fromkeys(part, file)
    weights.unlink()
    index = {"metadata": {}, "weight_map": listed}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_shards_are_taken_and_an_index_that_says_otherwise_is_refused(built, tmp_path):
    folder = linked(built["dit"], tmp_path / "m")
    index = shards(folder / "transformer", "diffusion_pytorch_model", lambda names: (names[::2], names[1::2]))
    assert len(check(folder, ANY)["transformer"]["weights"]) == 3
    path = folder / "transformer/diffusion_pytorch_model.safetensors.index.json"
    moved = min(index["weight_map"])
    index["weight_map"][moved] = max(index["weight_map"].values())
    path.unlink()
    path.write_text(json.dumps(index))
    assert f"does not say what diffusion_pytorch_model-00001-of-00002.safetensors holds ({moved})" in refusal(
        folder, ANY
    )
    del index["weight_map"][moved]
    path.write_text(json.dumps(index))
    assert moved in refusal(folder, ANY)


BROKEN_PARTS = {
    "PEFT's names": ("text_encoder", "model", base_layers, ["lacks", ".base_layer.", "merge_and_unload"]),
    "a denoiser's weight": (
        "unet", "diffusion_pytorch_model", without("conv_in.weight"), ["unet/", "lacks", "conv_in.weight"],
    ),
    "a single file's names": (
        "unet", "diffusion_pytorch_model", prefixed("model.diffusion_model."), ["lacks", "from_single_file"],
    ),
    "an autoencoder's shape": ("vae", "diffusion_pytorch_model", cut("decoder.conv_out.bias"), ["is 2,", "needs 3"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN_PARTS)
def test_a_pipelines_part_with_other_tensors_is_refused_by_their_names(built, tmp_path, kind):
    part, stem, change, words = BROKEN_PARTS[kind]
    folder = linked(built["stable-diffusion"], tmp_path / "m")
    edit_tensors(folder / part / f"{stem}.safetensors", change)
    said = refusal(folder, ANY)
    assert said.startswith(f"{folder / part / stem}.safetensors: ") and all(word in said for word in words), said


def test_a_configuration_that_does_not_fit_the_weights_is_refused(built, tmp_path):
    folder = linked(built["stable-diffusion"], tmp_path / "m")
    edit_json(folder / "unet/config.json", block_out_channels=[16, 64])
    said = refusal(folder, ANY)
    assert "of its tensors have other shapes than config.json says" in said and "UNet2DConditionModel needs" in said
    edit_json(folder / "unet/config.json", down_block_types=["NoBlock2D", "DownBlock2D"])
    assert "UNet2DConditionModel cannot be built from its config.json and weights: NoBlock2D" in refusal(folder, ANY)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"unet": ["diffusers", "UNet9D"]}, "unet: UNet9D of 'diffusers' is not in diffusers 0"),
     ({"text_encoder": ["transformers", "NoModel"]}, "NoModel of 'transformers' is not in"),
     ({"vae": ["os", "path"]}, "path of 'os' is not in"),
     ({"_class_name": "NextYearsPipeline"}, "_class_name: diffusers .* has no NextYearsPipeline"),
     ({"vae": None}, "names no vae, which StableDiffusionPipeline needs")],
)  # fmt: skip
def test_classes_that_are_not_installed_and_parts_that_are_not_named_are_refused(built, tmp_path, changes, words):
    import re

    folder = linked(built["stable-diffusion"], tmp_path / "m")
    edit_json(folder / "model_index.json", **changes)
    assert re.search(words, refusal(folder, ANY))


def renamed(folder, variant):
    """All weights of a pipeline under the names of a variant."""
    for path in list(folder.rglob("*.safetensors")):
        path.rename(path.with_name(f"{path.stem}.{variant}.safetensors"))


def test_the_only_variant_is_read_by_all_and_said_in_the_manifest(built, tmp_path, capsys):
    folder = linked(built["stable-diffusion"], tmp_path / "m")
    (folder / "vae" / UNET).rename(tmp_path / UNET)
    renamed(folder, "fp16")
    (tmp_path / UNET).rename(folder / "vae" / UNET)
    settings = ANY | {"path": str(folder)}
    output = tmp_path / "manifest.json"
    model.main(["--model", "m", "--settings", json.dumps(settings), "--output", str(output)])
    found = manifest.read_json(output)
    assert {name: part["variant"] for name, part in found["parts"].items()} == {
        "text_encoder": "fp16", "unet": "fp16", "vae": None,
    }  # fmt: skip
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in found["files"]
    assert "unet: weights of the variant 'fp16' are read" in capsys.readouterr().err
    loaded = pipelines.load("StableDiffusionPipeline", settings, folder)
    denoiser = pipelines.load_denoiser("unet", "UNet2DConditionModel", settings, folder)
    plain = load_file(built["stable-diffusion"] / "unet" / UNET)["conv_in.weight"]
    assert torch.equal(loaded.unet.conv_in.weight, plain) and torch.equal(denoiser.conv_in.weight, plain)


def test_the_variant_that_the_settings_name_is_read(built, tmp_path):
    folder = linked(built["distilbert"], tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    save_file({n: x + 1 for n, x in tensors.items()}, folder / "model.ema.safetensors", metadata={"format": "pt"})
    plain, named = BERT, BERT | {"variant": "ema"}
    assert [check(folder, settings)[""]["variant"] for settings in (plain, named)] == [None, "ema"]
    loaded = [load_family("distilbert").load_denoiser(settings, folder).classifier.bias for settings in (plain, named)]
    assert torch.equal(loaded[0] + 1, loaded[1])
