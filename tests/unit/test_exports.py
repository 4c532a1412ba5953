"""Exports, read by independent readers in this file and by the libraries that they are made for."""

import itertools
import json
import subprocess
from pathlib import Path

import preloaded
import pytest
import tiny_text
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from quantwatt.artifacts import checkpoint_files, manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.config import experiment
from quantwatt.formats.library import library_of
from quantwatt.formats.quantized_weight import load_format, quantize_to_nearest
from quantwatt.inference import exports
from quantwatt.inference.exports import gptq as gptq_form
from quantwatt.models.families import load_family
from tools import export

ROOT = Path(__file__).parents[2]
MODEL = experiment.load_experiment("embedded")["models"]["tiny-sd3"] | {"dtype": "bfloat16"}  # as hubs store models
LOCATION = str(ROOT / MODEL["path"])
FAMILY = load_family("sd3")
WEIGHTS = "weights.safetensors"  # of a checkpoint in one file
BLOCK = "transformer_blocks.0."
LAYERS = [BLOCK + name for name in ("attn.to_q", "ff.net.0.proj", "ff.net.2", "norm1.linear")]
ACTIVATIONS = {"bits": 8, "granularity": "token", "dynamic": True, "symmetric": True}


def integer(bits, group_size=None, symmetric=False, **options):
    granularity = "group" if group_size else "channel"
    defaults = {"narrow": True, "zero_point": "integer", "clip_search": False}
    kind = {"format": "integer", "bits": bits, "granularity": granularity, "group_size": group_size}
    return {**kind, "symmetric": symmetric, **defaults, **options}


def block(name, size=64):
    return {"format": name, "bits": 4, "group_size": size, "clip_search": False}


class Checkpoint:
    """A checkpoint of a model with some layers rounded to nearest, and what its layers stand for."""

    def __init__(self, folder, weights, activations=None, change=None, layers=LAYERS, model=MODEL, location=LOCATION):
        self.folder, self.weights = folder, weights
        self.denoiser = load_family(model["family"]).load_denoiser(model, location)
        states, reports, self.quantized, self.values = {}, {}, {}, {}
        for name in layers:
            layer = self.denoiser.get_submodule(name)
            own = weights.get(name, {key: value for key, value in weights.items() if key not in layers})
            if own["format"] in ("torchao", "bitsandbytes-int8"):
                library = library_of(own)
                states[name] = library.state(library.convert(layer, torch.bfloat16))
                shape = {"in_features": layer.in_features, "out_features": layer.out_features}
                self.values[name] = library.dequantize(states[name], shape)
            else:
                weight_format = load_format(own)
                weight = quantize_to_nearest(layer.weight.detach().float(), weight_format)
                if change:
                    change(name, weight)
                self.quantized[name], states[name] = weight, weight.state(weight_format)
                self.values[name] = weight.dequantize(weight_format)
            reports[name] = {"weights": own, "activations": activations, "parts": sorted(states[name]),
                             "in_features": layer.in_features, "out_features": layer.out_features}  # fmt: skip
        details = {"status": "ok", "reason": None, "model_settings": model, "location": str(location),
                   "settings": {"solver": {"name": "gptq", "damping": 0.005, "static_groups": True}}}  # fmt: skip
        checkpoint_files.save(folder, self.denoiser, states, reports, details)

    def export(self, form, name="out"):
        exports.export(self.folder, form, self.folder / name)
        return self.folder / name

    def rounded_model(self):
        """The float denoiser with the values of the format in its quantized layers."""
        denoiser = FAMILY.load_denoiser(MODEL, LOCATION)
        for name, values in self.values.items():
            denoiser.get_submodule(name).weight.data = values.to(torch.bfloat16)
        return denoiser


def refused(caught, *words):
    return all(word in str(caught.value) for word in words) and str(caught.value).count("\n") == 0


def denoise(denoiser):
    generator = torch.Generator().manual_seed(0)
    config = denoiser.config
    shapes = {
        "hidden_states": (2, config.in_channels, config.sample_size, config.sample_size),
        "encoder_hidden_states": (2, 7, config.joint_attention_dim),
        "pooled_projections": (2, config.pooled_projection_dim),
    }
    inputs = {name: torch.randn(shape, generator=generator).to(torch.bfloat16) for name, shape in shapes.items()}
    with torch.no_grad():
        return denoiser(**inputs, timestep=torch.tensor([900.0, 100.0]), return_dict=False)[0].float()


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


# ---- GPTQ


def stream(words, bits, count):
    """Codes of one column of int32 words: all words as one number, lowest word first."""
    number = sum((int(word) & 0xFFFFFFFF) << 32 * place for place, word in enumerate(words))
    return [number >> bits * place & 2**bits - 1 for place in range(count)]


def read_gptq(tensors, name, bits, first_zero=1):
    """[rows, columns] float32 of a GPTQ layer, by the form's definition."""
    qweight, qzeros = tensors[f"{name}.qweight"].tolist(), tensors[f"{name}.qzeros"].tolist()
    scales, index = tensors[f"{name}.scales"], tensors[f"{name}.g_idx"].long()
    rows, columns = scales.shape[1], len(index)
    codes = torch.tensor([stream(words, bits, columns) for words in zip(*qweight, strict=True)])  # [rows, columns]
    zeros = torch.tensor([stream(words, bits, rows) for words in qzeros]) + first_zero  # [groups, rows]
    return (codes - zeros.T[:, index]) * scales.float().T[:, index]


GRIDS = {
    "w4-channel-asymmetric": integer(4),
    "w4-group-asymmetric": integer(4, 64),
    "w4-group-narrow": integer(4, 64, symmetric=True),
    "w4-group-wide": integer(4, 32, symmetric=True, narrow=False),
    "w3-channel-asymmetric": integer(3),
    "w3-group-narrow": integer(3, 64, symmetric=True),
    "w2-group-wide": integer(2, 64, symmetric=True, narrow=False),
    "w8-channel-narrow": integer(8, symmetric=True),
    "w8-group-asymmetric": integer(8, 128),
    "w4-tensor-narrow": {**integer(4, symmetric=True), "granularity": "tensor"},
}


@pytest.mark.parametrize("grid", GRIDS)
def test_gptq_form_holds_the_checkpoints_values(tmp_path, grid):
    saved = Checkpoint(tmp_path, GRIDS[grid])
    folder = saved.export("gptq")
    tensors, bits = load_file(folder / "model.safetensors"), GRIDS[grid]["bits"]
    for name, expected in saved.values.items():
        rows, columns = expected.shape
        groups = saved.quantized[name].scale.shape[1]
        shapes = {"qweight": (columns * bits // 32, rows), "qzeros": (groups, rows * bits // 32),
                  "scales": (groups, rows), "g_idx": (columns,)}  # fmt: skip
        for part, shape in shapes.items():
            assert tensors[f"{name}.{part}"].shape == shape
            assert tensors[f"{name}.{part}"].dtype == (torch.float16 if part == "scales" else torch.int32)
        torch.testing.assert_close(read_gptq(tensors, name, bits), expected, rtol=2**-10, atol=1e-12)
    config = manifest.read_json(folder / "quantize_config.json")
    group = GRIDS[grid]["group_size"] or -1
    wanted = {"quant_method": "gptq", "checkpoint_format": "gptq", "bits": bits, "group_size": group,
              "sym": GRIDS[grid]["symmetric"], "desc_act": False, "damp_percent": 0.005}  # fmt: skip
    assert {key: config[key] for key in wanted} == wanted
    assert manifest.read_json(folder / "config.json")["quantization_config"] == config
    assert manifest.read_json(folder / "config.json")["_class_name"] == "SD3Transformer2DModel"


def test_gptq_packs_symmetric_zero_points_as_every_reader_knows_them(tmp_path):
    tensors = load_file(Checkpoint(tmp_path, integer(4, 64, symmetric=True)).export("gptq") / "model.safetensors")
    assert (tensors[f"{LAYERS[0]}.qzeros"] == 0x77777777).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_packing_is_auto_gptqs(bits):
    """Its loops over 32 codes: ten or eleven codes of 3 bits to a word, two of them across its ends."""
    codes = torch.randint(0, 2**bits, (64, 5), generator=torch.Generator().manual_seed(bits), dtype=torch.int32)
    rows, words = codes.tolist(), []
    for start in range(0, 64, 32 if bits == 3 else 32 // bits):
        for column in [[row[c] for row in rows[start:]] for c in range(5)]:
            if bits == 3:
                first = sum(column[i] << 3 * i for i in range(10)) | column[10] << 30
                second = column[10] >> 2 & 1 | sum(column[11 + i] << 3 * i + 1 for i in range(10)) | column[21] << 31
                third = column[21] >> 1 & 3 | sum(column[22 + i] << 3 * i + 2 for i in range(10))
                words.append([word & 0xFFFFFFFF for word in (first, second, third)])
            else:
                words.append([sum(column[i] << bits * i for i in range(32 // bits))])
    per_column = [list(itertools.chain(*words[c::5])) for c in range(5)]
    packed = gptq_form.pack(codes, bits)
    assert packed.dtype == torch.int32 and packed.shape == (2 * bits, 5)
    assert [[word & 0xFFFFFFFF for word in packed[:, c].tolist()] for c in range(5)] == per_column


def reorder(name, weight):
    """Groups as activation order leaves them: of columns that are no neighbours."""
    columns = weight.codes.shape[1]
    order = torch.randperm(columns, generator=torch.Generator().manual_seed(columns))
    weight.group_index = (torch.arange(columns) // 64)[order].int()


def test_gptq_form_keeps_the_groups_of_activation_order(tmp_path):
    saved = Checkpoint(tmp_path, integer(4, 64), change=reorder)
    folder = saved.export("gptq")
    tensors = load_file(folder / "model.safetensors")
    for name, expected in saved.values.items():
        torch.testing.assert_close(read_gptq(tensors, name, 4), expected, rtol=2**-10, atol=1e-12)
    assert manifest.read_json(folder / "quantize_config.json")["desc_act"] is True


def test_gptq_zero_points_begin_with_1(tmp_path):
    def positive(name, weight):  # a group of weights that are all positive, and a dead one
        weight.zero[:, 0], weight.codes[:, :64] = 0, weight.codes[:, :64].clamp(max=14)
        weight.zero[3, 1], weight.codes[3, 64:128] = 0, 0

    saved = Checkpoint(tmp_path, integer(4, 64), change=positive)
    tensors = load_file(saved.export("gptq") / "model.safetensors")
    for name, expected in saved.values.items():
        torch.testing.assert_close(read_gptq(tensors, name, 4), expected, rtol=2**-10, atol=1e-12)

    def full(name, weight):
        weight.zero[5, 1], weight.codes[5, 64] = 0, 15

    with pytest.raises(DataError) as caught:
        Checkpoint(tmp_path / "full", integer(4, 64), change=full).export("gptq")
    assert refused(caught, LAYERS[0], "zero point 0", "code 15", "gptq-v2")


def test_gptq_v2_has_a_zero_point_0(tmp_path):
    saved = Checkpoint(tmp_path, integer(2, 64))  # with two bits such groups are found
    with pytest.raises(DataError) as caught:
        saved.export("gptq", "version-1")
    assert refused(caught, "zero point 0", "gptq-v2")
    folder = saved.export("gptq-v2")
    tensors = load_file(folder / "model.safetensors")
    for name, expected in saved.values.items():
        torch.testing.assert_close(read_gptq(tensors, name, 2, first_zero=0), expected, rtol=2**-10, atol=1e-12)
    assert manifest.read_json(folder / "quantize_config.json")["checkpoint_format"] == "gptq_v2"


READERS = {
    "auto-gptq": """
from auto_gptq.nn_modules.qlinear.qlinear_cuda import QuantLinear
def weight_of(parts, bits, group, sym, desc_act, version):
    rows, columns = parts["scales"].shape[1], len(parts["g_idx"])
    layer = QuantLinear(bits, group, columns, rows, False, weight_dtype=torch.float32)
    layer.load_state_dict(parts)
    return layer(torch.eye(columns)).T
""",
    "gptqmodel": """
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module
def weight_of(parts, bits, group, sym, desc_act, version):
    rows, columns = parts["scales"].shape[1], len(parts["g_idx"])
    layer = TorchLinear(bits, group, sym, desc_act, columns, rows)
    layer.load_state_dict(parts)
    if version == "gptq":
        convert_gptq_v1_to_v2_format_module(layer, bits, torch.int32)
    return layer.eval().dequantize_weight().T
""",
}
READ = """
import json, sys
import torch
from pathlib import Path
from safetensors.torch import load_file, save_file
{reader}
values = {{}}
for folder in map(Path, sys.argv[2:]):
    config = json.loads((folder / "quantize_config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    for name in [key[: -len(".qweight")] for key in tensors if key.endswith(".qweight")]:
        parts = {{part: tensors[name + "." + part] for part in ("qweight", "qzeros", "scales", "g_idx")}}
        with torch.no_grad():
            own = (config["bits"], config["group_size"], config["sym"], config["desc_act"], config["checkpoint_format"])
            values[folder.name + "/" + name] = weight_of(parts, *own).float().contiguous()
save_file(values, sys.argv[1])
"""


@pytest.mark.parametrize("library", READERS)
def test_gptqs_libraries_read_the_same_values(tmp_path, library):
    python = ROOT / ".venvs" / library / "bin/python"
    if not python.exists():
        pytest.skip("make backends has not run")
    folders, expected = [], {}
    for grid in (*GRIDS, "w4-activation-order"):
        change = reorder if grid.endswith("order") else None
        saved = Checkpoint(tmp_path / f"{grid}-checkpoint", GRIDS.get(grid, integer(4, 64)), change=change)
        exports.export(saved.folder, "gptq", tmp_path / grid)
        folders.append(tmp_path / grid)
        expected |= {f"{grid}/{name}": values for name, values in saved.values.items()}
    if library == "gptqmodel":
        saved = Checkpoint(tmp_path / "v2-checkpoint", integer(2, 64))
        exports.export(saved.folder, "gptq-v2", tmp_path / "v2")
        folders.append(tmp_path / "v2")
        expected |= {f"v2/{name}": values for name, values in saved.values.items()}
    command = [python, "-c", READ.format(reader=READERS[library]), tmp_path / "values.safetensors", *folders]
    subprocess.run([str(word) for word in command], check=True, cwd=tmp_path, capture_output=True)
    found = load_file(tmp_path / "values.safetensors")
    assert found.keys() == expected.keys()
    for name, values in expected.items():  # gptqmodel's products of code and scale are float16 too
        torch.testing.assert_close(found[name], values, rtol=2**-9, atol=1e-6, msg=lambda text, name=name: name + text)


# ---- bitsandbytes


@pytest.mark.parametrize("weights", [block("nf4"), block("fp4"), block("nf4", 128)], ids=str)
def test_bitsandbytes_reads_4_bit_weights(tmp_path, weights):
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit, Params4bit

    saved = Checkpoint(tmp_path, weights)
    tensors = load_file(saved.export("bitsandbytes") / "diffusion_pytorch_model.safetensors")
    for name, expected in saved.values.items():
        key = f"{name}.weight"
        parts = {part: tensor for part, tensor in tensors.items() if part.startswith(f"{key}.")}
        read = Params4bit.from_prequantized(tensors[key], dict(parts), device="cpu")
        assert torch.equal(dequantize_4bit(read.data, read.quant_state), expected.to(torch.bfloat16))
        # The same tensors that the library itself stores, down to the JSON.
        rows, columns = expected.shape
        own = Linear4bit(columns, rows, compress_statistics=False, quant_type=weights["format"])
        original = FAMILY.load_denoiser(MODEL, LOCATION).get_submodule(name)
        own.weight = Params4bit(original.weight.data, requires_grad=False, compress_statistics=False,
                                quant_type=weights["format"], blocksize=weights["group_size"], module=own)  # fmt: skip
        stored = own.to("cpu").state_dict()
        library = {f"{name}.{part}": tensor for part, tensor in stored.items() if part != "bias"}
        assert library.keys() == {key, *parts}
        for part, tensor in library.items():
            assert tensor.shape == tensors[part].shape and tensor.dtype == tensors[part].dtype, part
        state = f"{key}.quant_state.bitsandbytes__{weights['format']}"
        assert json.loads(bytes(tensors[state].tolist())) == json.loads(bytes(library[state].tolist()))


@pytest.mark.parametrize("weights", [block("nf4"), {"format": "bitsandbytes-int8", "threshold": 0.0}], ids=str)
def test_diffusers_loads_the_bitsandbytes_form(tmp_path, monkeypatch, weights):
    from bitsandbytes.nn import Linear4bit, Linear8bitLt
    from diffusers import SD3Transformer2DModel
    from diffusers.quantizers.bitsandbytes import BnB4BitDiffusersQuantizer, BnB8BitDiffusersQuantizer

    saved = Checkpoint(tmp_path, weights)
    folder = saved.export("bitsandbytes")
    for quantizer in (BnB4BitDiffusersQuantizer, BnB8BitDiffusersQuantizer):  # diffusers wants a GPU for it
        monkeypatch.setattr(quantizer, "validate_environment", lambda *args, **kwargs: None)
    loaded = SD3Transformer2DModel.from_pretrained(
        folder, dtype=torch.bfloat16, device_map={"": "cpu"}, local_files_only=True, use_safetensors=True
    ).eval()
    kind = Linear4bit if weights["format"] == "nf4" else Linear8bitLt
    quantized = {name for name, layer in loaded.named_modules() if isinstance(layer, kind)}
    assert quantized == set(saved.values)
    plain = denoise(FAMILY.load_denoiser(MODEL, LOCATION))
    error, effect = relative(denoise(loaded), denoise(saved.rounded_model())), relative(denoise(loaded), plain)
    assert error < (0.2 if kind is Linear4bit else 1.5) * effect  # LLM.int8 also rounds its activations
    assert 0 < effect < 0.2


# ---- torchao


@pytest.mark.parametrize(
    ("weights", "activations"),
    [
        (integer(8, symmetric=True), None),
        (integer(8, symmetric=True), ACTIVATIONS),
        ({"format": "torchao", "configuration": "int8-weight-only", "group_size": 128}, None),
        ({"format": "torchao", "configuration": "float8-weight-only", "group_size": 128}, None),
    ],
    ids=["w8a16", "w8a8", "torchao-int8", "torchao-float8"],
)
def test_diffusers_loads_the_torchao_form(tmp_path, weights, activations):
    from diffusers import SD3Transformer2DModel
    from torchao.utils import TorchAOBaseTensor

    saved = Checkpoint(tmp_path, weights, activations)
    folder = saved.export("torchao")
    loaded = SD3Transformer2DModel.from_pretrained(
        folder, dtype=torch.bfloat16, local_files_only=True, use_safetensors=True
    ).eval()
    layers = {name: layer for name, layer in loaded.named_modules() if isinstance(layer, torch.nn.Linear)}
    assert {name for name in layers if isinstance(layers[name].weight, TorchAOBaseTensor)} == set(saved.values)
    for name, expected in saved.values.items():
        assert torch.equal(layers[name].weight.dequantize(), expected.to(torch.bfloat16))
    plain, rounded = denoise(FAMILY.load_denoiser(MODEL, LOCATION)), denoise(saved.rounded_model())
    assert 0 < relative(denoise(loaded), plain) < 0.1
    assert relative(denoise(loaded), rounded) < relative(rounded, plain) * (3 if activations else 1.5)
    dynamic = getattr(layers[LAYERS[0]].weight, "act_quant_kwargs", None)
    assert (dynamic is not None) == (activations is not None)


# ---- what is common to all


FORMS = {"gptq": integer(4, 64), "gptq-v2": integer(4, 64), "bitsandbytes": block("nf4"),
         "torchao": integer(8, symmetric=True)}  # fmt: skip
# Family: (the layers that are quantized, the denoiser's part of a pipeline). All others are left out.
PARTLY = {
    "sd3": (["transformer_blocks.1.attn.to_q"], "transformer"),
    "sdxl": (["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"], "unet"),
    "distilbert": (["distilbert.transformer.layer.1.attention.q_lin"], ""),
    "gpt2": (["transformer.h.1.attn.c_attn", "transformer.h.1.mlp.c_proj"], ""),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """{family: (settings, folder)}: models whose Conv1D weights are square, too."""
    folder = tmp_path_factory.mktemp("models")
    image, text = {"dtype": "bfloat16"}, {"dtype": "float32"}  # as each is stored
    folders = {"sd3": Path(LOCATION), "sdxl": ROOT / "resources/models/tiny-sdxl",
               "distilbert": tiny_text.distilbert(folder / "distilbert", width=64),
               "gpt2": tiny_text.gpt2(folder / "gpt2", width=64)}  # fmt: skip
    own = {"sd3": image, "sdxl": image, "distilbert": text, "gpt2": text}
    return {name: (own[name] | {"family": name}, folders[name]) for name in folders}


def saved_partly(models, family, form, folder):
    (model, location), (layers, part) = models[family], PARTLY[family]
    return Checkpoint(folder, FORMS[form], layers=layers, model=model, location=location), location / part


@pytest.mark.parametrize(
    ("family", "form"),
    [*((family, form) for family in ("distilbert", "gpt2") for form in FORMS), ("sd3", "torchao"), ("sdxl", "gptq")],
)
def test_what_is_not_quantized_is_as_the_original_stores_it(tmp_path, models, family, form):
    """To the byte, under its names, in its layout; and config.json has the quantization and nothing else."""
    saved, original = saved_partly(models, family, form, tmp_path / "checkpoint")
    if (family, form) == ("gpt2", "torchao"):
        with pytest.raises(DataError) as caught:
            saved.export(form)
        assert refused(caught, "transformer.h.1.attn.c_attn", "Conv1D", "torchao")
        return
    folder = saved.export(form)
    (path,), (stored,) = folder.glob("*.safetensors"), original.glob("*.safetensors")
    found, expected = load_file(path), load_file(stored)
    for name in saved.values:
        del expected[f"{name}.weight"]
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype, name
    prefixes = tuple(f"{name}." for name in saved.values)
    assert all(name.startswith(prefixes) for name in found.keys() - expected.keys())
    config = manifest.read_json(folder / "config.json")
    quantization = config.pop("quantization_config")
    assert config == manifest.read_json(original / "config.json")
    if form.startswith("gptq"):
        left_out = {key.removeprefix("-:^").removesuffix("$").replace("\\.", ".") for key in quantization["dynamic"]}
        assert quantization["modules_in_block_to_quantize"] == [list(saved.values)]
        assert not left_out & saved.values.keys() and all(f"{name}.weight" in expected for name in left_out)
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "pt"


@pytest.mark.parametrize(
    ("family", "form"), [("gpt2", "bitsandbytes"), ("distilbert", "bitsandbytes"), ("distilbert", "torchao")]
)
def test_transformers_loads_a_text_model_with_layers_left_out(tmp_path, models, family, form):
    from transformers import AutoModelForSequenceClassification, GPT2LMHeadModel

    saved, original = saved_partly(models, family, form, tmp_path / "checkpoint")
    kind = GPT2LMHeadModel if family == "gpt2" else AutoModelForSequenceClassification
    options = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True}
    loaded, info = kind.from_pretrained(saved.export(form), **options, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = kind.from_pretrained(original, **options).eval()
    ids = torch.tensor([[3, 5, 7, 2]])
    with torch.no_grad():
        plain = expected(ids).logits
        for name, values in saved.values.items():
            weight = expected.get_submodule(name).weight
            weight.copy_(values.T if family == "gpt2" else values)
        error, effect = relative(loaded.eval()(ids).logits, expected(ids).logits), relative(plain, expected(ids).logits)
    assert error < 0.05 * effect
    assert loaded.config.use_cache is expected.config.use_cache if family == "gpt2" else True


def attach(**parts):
    """A change that gives the first layer parts which no form knows."""

    def change(name, weight):
        rows, columns = weight.codes.shape
        shapes = {"input_factor": (columns,), "down": (4, columns), "up": (rows, 4), "activation_scale": (1,),
                  "activation_zero": (1,), "group_index": (columns,), "rotation": (1,)}  # fmt: skip
        for part in parts if name == LAYERS[1] else ():
            setattr(weight, part, torch.zeros(shapes[part], dtype=torch.int32))

    return change


def tiny_scale(name, weight):
    weight.scale[0] *= 1e-6


W8 = integer(8, symmetric=True)
REFUSALS = {
    "smoothing-gptq": ("gptq", integer(4), None, attach(input_factor=1), (LAYERS[1], "input is scaled")),
    "smoothing-bitsandbytes": ("bitsandbytes", block("nf4"), None, attach(input_factor=1), (LAYERS[1], "scaled")),
    "smoothing-torchao": ("torchao", W8, None, attach(input_factor=1), (LAYERS[1], "input is scaled")),
    "rotation-gptq": ("gptq", integer(4), None, attach(input_factor=1, rotation=1), (LAYERS[1], "input is rotated")),
    "branch-gptq": ("gptq", integer(4), None, attach(down=1, up=1), (LAYERS[1], "low-rank")),
    "branch-bitsandbytes": ("bitsandbytes", block("fp4"), None, attach(down=1, up=1), (LAYERS[1], "low-rank")),
    "branch-torchao": ("torchao", W8, None, attach(down=1, up=1), (LAYERS[1], "low-rank")),
    "static-gptq": ("gptq", integer(4), None, attach(activation_scale=1, activation_zero=1), (LAYERS[1], "static")),
    "order-torchao": ("torchao", W8, None, attach(group_index=1), (LAYERS[1], "neighbouring")),
    "activations-gptq": ("gptq", integer(4), ACTIVATIONS, None, (LAYERS[0], "activations")),
    "activations-bitsandbytes": ("bitsandbytes", block("nf4"), ACTIVATIONS, None, (LAYERS[0], "activations")),
    "activations-torchao": ("torchao", W8, {**ACTIVATIONS, "granularity": "tensor"}, None, ("per token",)),
    "floats-torchao": ("torchao", W8, {"format": "mxfp8", "bits": 8, "dynamic": True}, None, ("per token",)),
    "nvfp4-gptq": ("gptq", {"format": "nvfp4", "bits": 4, "group_size": 16, "scale_rounding": "up"}, None, None,
                   ("not nvfp4",)),
    "group-gptq": ("gptq", integer(4, 96), None, None, (LAYERS[0], "96", "128 inputs")),
    "format-gptq": ("gptq", block("nf4"), None, None, ("2, 3, 4 or 8 bits", "nf4")),
    "format-bitsandbytes": ("bitsandbytes", integer(4), None, None, ("integer",)),
    "format-torchao": ("torchao", integer(4, symmetric=True), None, None, ("8 bits per output channel",)),
    "int4-torchao": ("torchao", {"format": "torchao", "configuration": "int4-weight-only", "group_size": 64}, None,
                     None, ("int4",)),
    "asymmetric-torchao": ("torchao", integer(8), None, None, ("symmetric",)),
    "float-zero-gptq": ("gptq", integer(4, zero_point="float"), None, None, (LAYERS[0], "zero points")),
    "scale-gptq": ("gptq", integer(4), None, tiny_scale, (LAYERS[0], "float16")),
    "mixed-gptq": ("gptq", {LAYERS[0]: integer(4), "format": "integer", **integer(8)}, None, None, ("grids differ",)),
    "mixed-bitsandbytes": ("bitsandbytes", {LAYERS[0]: block("nf4"), **block("fp4")}, None, None, ("nf4", "fp4")),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_what_a_form_cannot_express_is_refused_in_one_sentence(tmp_path, case):
    form, weights, activations, change, words = REFUSALS[case]
    saved = Checkpoint(tmp_path / "checkpoint", weights, activations, change)
    with pytest.raises(DataError) as caught:
        exports.export(saved.folder, form, tmp_path / "out")
    assert refused(caught, form, str(saved.folder), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_chunks_of_a_layer_are_refused(tmp_path):
    saved = Checkpoint(tmp_path, integer(4))
    details = manifest.read_json(tmp_path / "manifest.json")
    details["layers"][LAYERS[3]]["part_of"] = f"{BLOCK}norm1.whole"
    manifest.write_json(tmp_path / "manifest.json", details)
    with pytest.raises(DataError) as caught:
        saved.export("gptq")
    assert refused(caught, LAYERS[3], "one part of", "norm1.whole")


def test_shapes_that_do_not_fill_words_are_refused():
    layer = {"weights": integer(4), "activations": None, "in_features": 40, "out_features": 64}
    with pytest.raises(exports.NotExpressible, match="64 by 40"):
        gptq_form.tensors("layer", layer, {}, torch.bfloat16)


def test_the_command_exits_with_one_sentence(tmp_path):
    Checkpoint(tmp_path / "checkpoint", integer(4, 64))

    def arguments(form, output):
        return ["--checkpoint", str(tmp_path / "checkpoint"), "--form", form, "--output", str(tmp_path / output)]

    command = [preloaded.jobs().python, "workflow_scripts/tools/export.py", *arguments("bitsandbytes", "refused")]
    failed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode == 1 and failed.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in failed.stderr and not (tmp_path / "refused").exists()
    export.main(arguments("gptq", "out"))
    written = ["config.json", "model.safetensors", "quantize_config.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == written
    with pytest.raises(DataError, match="exists already"):
        export.main(arguments("gptq", "out"))


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    saved = Checkpoint(tmp_path / "checkpoint", integer(4, 64))

    def full(folder, tensors, configuration):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gptq_form, "finish", full)
    with pytest.raises(DataError, match="No space left"):
        exports.export(saved.folder, "gptq", tmp_path / "deep/out")
    assert [path.name for path in tmp_path.iterdir() if path.name != "deep"] == ["checkpoint"]
    assert not list((tmp_path / "deep").iterdir())


def test_a_damaged_checkpoint_is_refused(tmp_path):
    saved = Checkpoint(tmp_path, integer(4))
    content = bytearray((tmp_path / WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(DataError, match="corrupted"):
        saved.export("gptq")
