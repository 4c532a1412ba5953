"""LoRA adapters: fused, kept beside quantized layers, or left out; what is refused; how much of the effect survives."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_exports import Checkpoint, denoise, relative
from test_gguf_export import format_of

from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.config import experiment, methods
from quantwatt.config.schemas import ConfigurationError
from quantwatt.inference import checkpoint
from quantwatt.models import adapters
from quantwatt.models.families import load_family
from quantwatt.report import adapter_effect
from quantwatt.report.cells import Cell

MODEL = experiment.load_experiment("embedded")["models"]["tiny-sd3"] | {"dtype": "bfloat16"}
LOCATION = str(experiment.ROOT / MODEL["path"])
FAMILY = load_family("sd3")
LAYER = "transformer_blocks.0.ff.net.0.proj"
RANK = 4


def lora(path, change=None, metadata=None, layers=(LAYER, "transformer_blocks.3.attn.to_q"), alpha=None):
    generator, denoiser, held = torch.Generator().manual_seed(0), FAMILY.meta_denoiser(LOCATION), {}
    for layer in layers:
        rows, columns = denoiser.get_submodule(layer).weight.shape
        held[f"transformer.{layer}.lora_A.weight"] = torch.randn(RANK, columns, generator=generator) * 0.3
        held[f"transformer.{layer}.lora_B.weight"] = torch.randn(rows, RANK, generator=generator) * 0.3
        if alpha:
            held[f"transformer.{layer}.alpha"] = torch.tensor(float(alpha))
    if change:
        change(held)
    save_file(held, path, metadata)
    return {"path": str(path), "scale": 1.0}


@pytest.fixture
def entry(tmp_path):
    return lora(tmp_path / "lora.safetensors")


def test_an_adapter_is_added_to_the_weights_of_a_model(entry, tmp_path):
    plain, fused = (FAMILY.load_denoiser(model, LOCATION) for model in (MODEL, MODEL | {"adapters": [entry]}))
    down, up = adapters.read(entry)[LAYER]
    expected = (plain.get_submodule(LAYER).weight.float() + up @ down).bfloat16()
    assert torch.equal(fused.get_submodule(LAYER).weight, expected)
    whole = FAMILY.load(MODEL | {"adapters": [entry]}, LOCATION).transformer
    assert torch.equal(whole.get_submodule(LAYER).weight, expected)
    adapters.keep(plain, [entry], torch.bfloat16)
    assert relative(denoise(plain), denoise(fused)) < 0.1 * relative(
        denoise(FAMILY.load_denoiser(MODEL, LOCATION)), denoise(fused)
    )


@pytest.mark.parametrize(
    ("alpha", "metadata", "factor"),
    [
        (2, None, 0.5),
        (None, {"transformer.lora_alpha": 8}, 2),
        (None, {"transformer.lora_alpha": 4, "transformer.use_rslora": True}, 2),
    ],
)
def test_alpha_is_divided_by_the_rank(tmp_path, entry, alpha, metadata, factor):
    told = metadata and {adapters.METADATA: json.dumps(metadata)}
    other = lora(tmp_path / "other.safetensors", alpha=alpha, metadata=told) | {"scale": 0.5}
    assert torch.allclose(adapters.read(other)[LAYER][1], adapters.read(entry)[LAYER][1] * factor * 0.5)


def test_an_adapter_is_kept_beside_quantized_layers(tmp_path, entry):
    saved = Checkpoint(tmp_path / "own", format_of("q8_0"), layers=[LAYER], model=MODEL)
    path = saved.folder / "manifest.json"
    details = manifest.read_json(path)
    manifest.write_json(path, details | {"adapters": [entry]})
    kept = checkpoint.load_pipeline(path, simulate=True).pipeline.transformer
    assert isinstance(kept.get_submodule(LAYER), adapters.Adapted)
    fused = FAMILY.load_denoiser(MODEL | {"adapters": [entry]}, LOCATION)
    plain = FAMILY.load_denoiser(MODEL, LOCATION)
    assert relative(denoise(kept), denoise(fused)) < 0.2 * relative(denoise(plain), denoise(fused))


def dora(held):
    held["transformer.x.lora_magnitude_vector"] = torch.ones(3)


def transposed(held):
    held[f"transformer.{LAYER}.lora_B.weight"] = held[f"transformer.{LAYER}.lora_B.weight"].T.contiguous()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dora, "is no part of a denoiser's LoRA"),
        (transposed, "is not a LoRA of a linear layer"),
        (lambda held: held[f"transformer.{LAYER}.lora_A.weight"].fill_(torch.nan), "finite"),
        (lambda held: held.update({"transformer.no.lora_A.weight": torch.ones(1, 2),
                                   "transformer.no.lora_B.weight": torch.ones(2, 1)}), "has no linear layer no"),
    ],
)  # fmt: skip
def test_what_is_no_adapter_of_the_model_is_refused(tmp_path, change, words):
    bad = lora(tmp_path / "bad.safetensors", change)
    with pytest.raises(DataError, match=words) as caught:
        adapters.fuse(FAMILY.load_denoiser(MODEL, LOCATION), [bad])
    assert "\n" not in str(caught.value)


def test_a_method_says_what_it_does_with_them():
    def settings(**entry):
        method = experiment.complete_method(entry, "mine.yaml", "methods.m")
        model = {"dtype": "float32", "adapters": ["a"]}
        return methods.computing_in(model, method).get("adapters"), methods.kept_adapters(model, method)

    theirs = {"loader": "gptq", "path": "x"}
    assert settings() == settings(adapters="fused") == (["a"], {})
    assert settings(adapters="none") == (None, {}) == settings(adapters="none", checkpoint=theirs)
    assert settings(adapters="kept") == settings(checkpoint=theirs) == (None, {"adapters": ["a"]})
    with pytest.raises(ConfigurationError, match="takes no adapter into its weights"):
        settings(adapters="fused", checkpoint=theirs)


def cell(method, psnr, adapters="fused", layers=()):
    settings, scores = {"adapters": adapters}, {"psnr": {"values": np.asarray(psnr, float)}}
    return Cell("m", method, "s", {"settings": settings, "layers": {layer: {} for layer in layers}}, {}, {}, scores)


def test_the_effect_that_survives_is_one_minus_the_share_of_its_distance():
    cells = [cell("16", [90] * 8), cell("without", [20] * 8, "none"), cell("w4", [40] * 8, layers="a"),
             cell("w2", [20] * 8, layers="a"), cell("w4-none", [19] * 8, "none", layers="a")]  # fmt: skip
    table = adapter_effect.adapters_table(cells).set_index("method")
    assert table["kept"].to_dict() == pytest.approx(
        {"16": 1 - 10**-3.5, "w4": 0.9, "w2": 0, "w4-none": 1 - 10**0.05}, abs=1e-9
    )
    assert (table["without"] == "without").all() and (table["kept_low"] <= table["kept_high"]).all()
    assert adapter_effect.adapters_table(cells[:1]).empty
