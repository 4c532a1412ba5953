"""GGUF files: read by the gguf package, and loaded by diffusers with the outputs of the dequantized model."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from test_exports import (
    ACTIVATIONS,
    BLOCK,
    LOCATION,
    MODEL,
    ROOT,
    Checkpoint,
    attach,
    denoise,
    integer,
    refused,
    relative,
)

from quantwatt.allocate.allocation import allocate
from quantwatt.artifacts import checkpoint_files, manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.config.experiment import complete_method
from quantwatt.formats import convolution
from quantwatt.inference import checkpoint, exports
from quantwatt.models.families import load_family
from quantwatt.quantize import sequential

gguf = pytest.importorskip("gguf")
FAMILY = load_family("sd3")
QKV = [f"{BLOCK}attn.to_{part}" for part in "qkv"]
# A modulation whose halves are swapped in the original, too: that of the last block's texts.
LAYERS = [*QKV, f"{BLOCK}ff.net.0.proj", "transformer_blocks.5.norm1_context.linear", "norm_out.linear"]
FLOAT32 = MODEL | {"dtype": "float32"}
K_QUANTS = ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k"]
TYPES = ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl"]


def format_of(name):
    return {"format": name, "bits": int(name.removeprefix("i")[1])}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A pipeline's folder whose transformer has random weights and the width of a K-quant's block."""
    from diffusers import SD3Transformer2DModel

    folder = tmp_path_factory.mktemp("wide")
    shutil.copytree(LOCATION, folder, dirs_exist_ok=True)
    shutil.rmtree(folder / "transformer")
    torch.manual_seed(0)
    config = SD3Transformer2DModel.load_config(LOCATION, subfolder="transformer")
    wider = {"num_attention_heads": 8, "caption_projection_dim": 256, "dual_attention_layers": [0]}
    SD3Transformer2DModel.from_config({**config, **wider}).save_pretrained(folder / "transformer")
    return folder


def load(folder, dtype=torch.float32):
    from diffusers import GGUFQuantizationConfig, SD3Transformer2DModel

    options = {"config": str(folder), "quantization_config": GGUFQuantizationConfig(compute_dtype=dtype)}
    path = str(folder / "diffusion_pytorch_model.gguf")
    return SD3Transformer2DModel.from_single_file(path, **options, dtype=dtype, local_files_only=True).eval()


def outputs(denoiser):
    """Of inputs in float32."""
    config, generator = denoiser.config, torch.Generator().manual_seed(0)
    shapes = {"hidden_states": (2, config.in_channels, config.sample_size, config.sample_size),
              "encoder_hidden_states": (2, 7, config.joint_attention_dim),
              "pooled_projections": (2, config.pooled_projection_dim)}  # fmt: skip
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    with torch.no_grad():
        return denoiser(**inputs, timestep=torch.tensor([900.0, 100.0]), return_dict=False)[0]


@pytest.mark.parametrize("name", [*TYPES, *K_QUANTS])
def test_diffusers_loads_it_with_equal_outputs(tmp_path, wide, name):
    from diffusers.quantizers.gguf.utils import GGUFLinear, dequantize_gguf_tensor

    location = wide if name in K_QUANTS else LOCATION
    saved = Checkpoint(tmp_path, format_of(name), layers=LAYERS, model=FLOAT32, location=location)
    loaded = load(saved.export("gguf"))
    layers = {name: layer for name, layer in loaded.named_modules() if isinstance(layer, GGUFLinear)}
    assert layers.keys() == saved.values.keys()
    for layer, values in saved.values.items():
        # diffusers multiplies by a scale in float16.
        found = dequantize_gguf_tensor(layers[layer].weight).float()
        assert torch.allclose(found, values, rtol=2**-9, atol=2**-9 * values.abs().max()), layer
    plain, rounded = (FAMILY.load_denoiser(FLOAT32, location) for _ in range(2))
    for layer, values in saved.values.items():
        rounded.get_submodule(layer).weight.data = values
    expected = outputs(rounded)
    error, effect = relative(outputs(loaded), expected), relative(outputs(plain), expected)
    assert error < min(5e-3, 0.2 * effect)


def test_the_file_says_what_it_is_and_holds_the_blocks_and_all_the_rest(tmp_path):
    saved = Checkpoint(tmp_path, format_of("q5_1"), layers=LAYERS)
    folder = saved.export("gguf")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "diffusion_pytorch_model.gguf"]
    assert manifest.read_json(folder / "config.json") == manifest.read_json(Path(LOCATION) / "transformer/config.json")
    reader = gguf.GGUFReader(folder / "diffusion_pytorch_model.gguf")
    assert reader.get_field("general.architecture").contents() == "sd3"
    assert reader.get_field("general.quantization_version").contents() == gguf.GGML_QUANT_VERSION
    assert reader.get_field("general.file_type").contents() == gguf.LlamaFileType.MOSTLY_Q5_1
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    joined = tensors["joint_blocks.0.x_block.attn.qkv.weight"]
    assert joined.tensor_type == gguf.GGMLQuantizationType.Q5_1 and joined.shape.tolist() == [128, 384]
    values = torch.cat([saved.values[name] for name in QKV]).numpy()
    assert np.array_equal(gguf.quants.dequantize(joined.data, joined.tensor_type), values)
    state = FAMILY.load_denoiser(MODEL, LOCATION).state_dict()
    kept = tensors["joint_blocks.3.x_block.mlp.fc1.weight"]
    assert kept.tensor_type == gguf.GGMLQuantizationType.BF16
    expected = state["transformer_blocks.3.ff.net.0.proj.weight"].float().numpy()
    assert np.array_equal(gguf.quants.dequantize(kept.data, kept.tensor_type), expected)
    for name, own in (("x_embedder.proj.weight", "pos_embed.proj.weight"), ("t_embedder.mlp.0.bias",
                      "time_text_embed.timestep_embedder.linear_1.bias")):  # fmt: skip
        assert tensors[name].tensor_type == gguf.GGMLQuantizationType.F32
        assert np.array_equal(tensors[name].data, state[own].float().numpy())


def test_diffusers_loads_a_model_in_bfloat16(tmp_path):
    saved = Checkpoint(tmp_path, format_of("q8_0"), layers=LAYERS)
    loaded = load(saved.export("gguf"), torch.bfloat16)
    plain = denoise(FAMILY.load_denoiser(MODEL, LOCATION))
    rounded = denoise(saved.rounded_model())
    assert relative(denoise(loaded), rounded) < 0.02 and 0 < relative(rounded, plain) < 0.1


def test_a_unet_has_the_names_that_diffusers_reads(tmp_path):
    from diffusers import GGUFQuantizationConfig, UNet2DConditionModel

    model, location = MODEL | {"family": "sdxl", "dtype": "float32"}, ROOT / "resources/models/tiny-sdxl"
    layers = [f"mid_block.attentions.0.transformer_blocks.0.attn1.to_{part}" for part in "qkv"]
    saved = Checkpoint(tmp_path, format_of("q4_0"), layers=layers, model=model, location=location)
    folder = saved.export("gguf")
    loaded = UNet2DConditionModel.from_single_file(
        str(folder / "diffusion_pytorch_model.gguf"), config=str(folder), local_files_only=True,
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32), dtype=torch.float32,
    ).eval()  # fmt: skip
    rounded = load_family("sdxl").load_denoiser(model, location)
    for name, values in saved.values.items():
        rounded.get_submodule(name).weight.data = values
    generator = torch.Generator().manual_seed(0)
    texts = torch.randn(1, 5, rounded.config.cross_attention_dim, generator=generator)
    pooled = rounded.config.projection_class_embeddings_input_dim - 6 * rounded.config.addition_time_embed_dim
    added = {"text_embeds": torch.randn(1, pooled, generator=generator), "time_ids": torch.ones(1, 6)}
    sample = torch.randn(1, 4, 16, 16, generator=generator)
    with torch.no_grad():
        found, expected = (
            unet(sample, 500, texts, added_cond_kwargs=added, return_dict=False)[0] for unet in (loaded, rounded)
        )
    assert relative(found, expected) < 1e-3
    reader = gguf.GGUFReader(folder / "diffusion_pytorch_model.gguf")
    assert reader.get_field("general.architecture").contents() == "sdxl"


def test_mixed_types_are_named_by_the_most_frequent(tmp_path):
    weights = {f"{BLOCK}ff.net.0.proj": format_of("q4_0"), **format_of("q8_0")}
    folder = Checkpoint(tmp_path, weights, layers=LAYERS).export("gguf")
    reader = gguf.GGUFReader(folder / "diffusion_pytorch_model.gguf")
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["joint_blocks.0.x_block.mlp.fc1.weight"] == "Q4_0" and types["final_layer.linear.weight"] == "BF16"
    assert reader.get_field("general.file_type").contents() == gguf.LlamaFileType.MOSTLY_Q8_0


@pytest.mark.parametrize("solver", ["rtn", "hqq"])
def test_a_method_goes_from_its_entry_to_diffusers(tmp_path, solver, capsys):
    """Allocated with fallbacks, quantized, loaded as a checkpoint, exported."""
    entry = {"solver": {"name": solver}, "weights": {"format": "q4_k"}, "allocation": {"name": "uniform"}}
    method = complete_method(entry, "test", "q4")
    denoiser = FAMILY.load_denoiser(FLOAT32, LOCATION)
    names = FAMILY.quantizable(denoiser)
    described = {name: convolution.describe(denoiser.get_submodule(name)) for name in names}
    allocated = allocate(described, method, "q4")
    narrow = {name for name, layer in described.items() if layer["in_features"] % 256}
    assert narrow and narrow == {name for name in names if allocated[name]["weights"]["format"] == "q5_0"}
    assert f"{len(narrow)} of {len(names)} layers have q5_0 weights instead of q4_k" in capsys.readouterr().err
    states, reports = sequential.quantize(denoiser, FAMILY, allocated, method)
    bits = {report["weights"]["format"]: report["weight_bits"] for report in reports.values()}
    assert bits == {"q4_k": 4.5, "q5_0": 5.5}
    details = {"status": "ok", "reason": None, "model_settings": FLOAT32, "location": LOCATION, "settings": method}
    checkpoint_files.save(tmp_path / "made", denoiser, states, reports, details)
    loaded = checkpoint.load_pipeline(tmp_path / "made", simulate=True)
    assert loaded.compute == "real"
    exports.export(tmp_path / "made", "gguf", tmp_path / "out")
    expected = outputs(denoiser)
    assert relative(outputs(FAMILY.denoiser(loaded.pipeline)), expected) < 1e-5  # C adds up in another order
    assert relative(outputs(load(tmp_path / "out")), expected) < 5e-3


Q4, Q8 = format_of("q4_0"), format_of("q8_0")
REFUSALS = {
    "format": (integer(4, 32, symmetric=True), None, None, ("GGUF has no 'integer' weights",)),
    "activations": (Q8, ACTIVATIONS, None, (QKV[0], "activations are quantized")),
    "smoothing": (Q8, None, attach(input_factor=1), ("input is scaled",)),
    "order": (Q8, None, attach(group_index=1), ("do not hold neighbouring inputs",)),
    "types": ({QKV[1]: Q8, **Q4}, None, None, ("joint_blocks.0.x_block.attn.qkv.weight", "Q4_0", "Q8_0")),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_gguf_cannot_hold_is_refused_in_one_sentence(tmp_path, case):
    weights, activations, change, words = REFUSALS[case]
    saved = Checkpoint(tmp_path / "checkpoint", weights, activations, change, layers=LAYERS)
    with pytest.raises(DataError) as caught:
        saved.export("gguf")
    assert refused(caught, "written as gguf", str(saved.folder), *words)
    assert not (saved.folder / "out").exists()


def test_a_part_left_out_of_a_joined_layer_is_refused(tmp_path):
    saved = Checkpoint(tmp_path, Q8, layers=QKV[:2])
    with pytest.raises(DataError) as caught:
        saved.export("gguf")
    assert refused(caught, "attn.qkv.weight", "its parts differ", f"{QKV[2]}.weight: BF16")


def test_a_text_model_is_refused(tmp_path):
    import tiny_text

    location = tiny_text.distilbert(tmp_path / "model", width=64)
    model = {"family": "distilbert", "dtype": "float32"}
    layers = ["distilbert.transformer.layer.1.attention.q_lin"]
    saved = Checkpoint(tmp_path / "checkpoint", Q8, layers=layers, model=model, location=location)
    with pytest.raises(DataError, match="the original names of a"):
        saved.export("gguf")
