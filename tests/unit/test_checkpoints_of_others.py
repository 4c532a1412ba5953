"""Checkpoints that others have quantized: exports read back with equal images, libraries' files, what is refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_exports import LAYERS, ROOT, Checkpoint, block, integer
from test_gguf_export import LAYERS as JOINED
from test_gguf_export import format_of

import fetch_checkpoint
import import_checkpoint
import model as model_rule
from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError, Unsupported
from quantwatt.config import experiment
from quantwatt.config.schemas import ConfigurationError
from quantwatt.formats import convolution
from quantwatt.formats.library import library_of
from quantwatt.formats.quantized_weight import QuantizedWeight, load_format
from quantwatt.inference import checkpoint
from quantwatt.inference.loaders import gptq
from quantwatt.models.families import load_family

MODEL = experiment.load_experiment("embedded")["models"]["tiny-sd3"]  # in float32
PROMPTS = ["a large red circle on a white background"]


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "manifest.json"
    model_rule.main(["--model", "tiny-sd3", "--settings", json.dumps(MODEL), "--output", str(path)])
    return path


def imported(described, folder, **entry):
    """The manifest of a checkpoint of others, from its entry."""
    method = experiment.complete_method({"checkpoint": entry}, "mine.yaml", "methods.theirs")
    source, made = folder / "source.json", folder / "imported/manifest.json"
    fetch_checkpoint.main(["--settings", json.dumps(method["checkpoint"]), "--output", str(source)])
    options = {"model": described, "source": source, "method-name": "theirs", "output": made}
    options["method"] = json.dumps(method)
    import_checkpoint.main([word for name, value in options.items() for word in (f"--{name}", str(value))])
    return made


def images(made):
    pipeline = checkpoint.load_pipeline(made, simulate=True)
    return pipeline.generate(PROMPTS, seeds=[0], steps=2, guidance=3.0, height=64, width=64)


FORMS = {  # {form: (format, layers, loader, whether images are equal bit for bit)}; GPTQ rounds scales to float16
    "gguf": (format_of("q4_0"), JOINED, True),
    "gptq": (integer(4, 64), LAYERS, False),
    "gptq-v2": (integer(3, 32, symmetric=True, narrow=False), LAYERS, False),
    "bitsandbytes": (block("nf4"), LAYERS, True),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_export_is_read_back_with_equal_images(tmp_path, described, form):
    weights, layers, equal = FORMS[form]
    saved = Checkpoint(tmp_path / "own", weights, layers=layers, model=MODEL)
    made = imported(described, tmp_path, loader=form.partition("-")[0], path=str(saved.export(form)))
    told = manifest.read_json(made)
    assert told["layers"].keys() == set(layers) and told["solver"] == form.partition("-")[0]
    assert all(0 < layer["relative_error"] < 0.4 for layer in told["layers"].values())
    own = manifest.read_json(saved.folder / "manifest.json")
    found, expected = images(made), images(saved.folder / "manifest.json")
    assert np.array_equal(found, expected) if equal else np.abs(found.astype(int) - expected).max() <= 4
    assert own["layers"][layers[0]]["weights"]["format"] == told["layers"][layers[0]]["weights"]["format"]


def test_codes_of_a_gptq_layer_are_the_columns_bits():
    words = torch.tensor([[0x76543210, -1]], dtype=torch.int32).T.contiguous().T
    assert gptq.unpack(words, 4).T.tolist() == [list(range(8)), [15] * 8]


@pytest.fixture(scope="module")
def gptq_folder(tmp_path_factory):
    return Checkpoint(tmp_path_factory.mktemp("gptq") / "own", integer(4, 64), model=MODEL).export("gptq")


def spoiled(folder, target, change, name="model.safetensors"):
    """A copy of a checkpoint's folder with other tensors."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, target / name)
    return target


def more_groups(held):
    held[f"{LAYERS[0]}.g_idx"] = held[f"{LAYERS[0]}.g_idx"] + 1000


def nan(held):
    held[f"{LAYERS[0]}.scales"][0, 0] = float("nan")


def another_models(held):
    for name in [name for name in held if name.endswith("qweight")]:
        held[name] = torch.randint(-(2**31), 2**31, held[name].shape, dtype=torch.int64).to(torch.int32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda held: held.pop("proj_out.bias"), "lacks proj_out.bias"),
        (lambda held: held.update(more=torch.zeros(2)), "has no tensor more"),
        (lambda held: held.pop(f"{LAYERS[0]}.scales"), "there is no scales"),
        (more_groups, "g_idx names groups that are not there"),
        (nan, "holds NaN"),
        (another_models, "of another model"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_in_a_sentence(tmp_path, described, gptq_folder, change, words):
    folder = spoiled(gptq_folder, tmp_path / "spoiled", change)
    with pytest.raises(DataError, match=words) as caught:
        imported(described, tmp_path, loader="gptq", path=str(folder))
    assert "\n" not in str(caught.value) and not (tmp_path / "imported/manifest.json").exists()


def test_pickles_are_refused_before_anything_is_read(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(DataError, match="only pickles, which can run code"):
        fetch_checkpoint.fetch({"loader": "gptq", "path": str(tmp_path)})


FUNCTIONS = """
import torch

def halves(pipeline, device):
    pipeline.transformer.transformer_blocks.to(torch.bfloat16)
    return pipeline

def nothing(pipeline, device):
    pass

def same(pipeline, device):
    return pipeline

def lacks(pipeline, device):
    import a_package_that_is_not_there
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code/recipe.py").write_text(FUNCTIONS + "\n")
    return {"loader": "function", "path": str(tmp_path / "code")}


def test_a_function_that_saves_nothing_is_simulated_unless_it_says_otherwise(tmp_path, described, recipe):
    made = imported(described, tmp_path, **recipe, function="recipe:same")
    assert checkpoint.compute_of(made, "cpu")[0] == "simulated"
    with pytest.raises(Unsupported, match="100% of the unquantized bytes"):
        checkpoint.load_pipeline(made)
    plain = checkpoint.load_pipeline(made, simulate=True)
    assert plain.compute == "simulated" and plain.pipeline.max_sequence_length == 1
    made = imported(described, tmp_path, **recipe, function="recipe:same", real=True)
    assert checkpoint.compute_of(made, "cpu") == ("real", "recipe:same", None)


def test_a_function_that_holds_half_the_bytes_is_real(tmp_path, described, recipe):
    made = imported(described, tmp_path, **recipe, function="recipe:halves")
    told = manifest.read_json(made)
    assert 16 < told["weight_bits"] < 20 and told["computes"]["compute"] == "real" and told["files"] == {}


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("recipe:nothing", "returned NoneType, and not a pipeline"),
        ("recipe:absent", "has no function absent"),
        ("recip:same", "holds no recip.py"),
    ],
)
def test_a_function_that_is_none_is_refused(tmp_path, described, recipe, function, words):
    with pytest.raises(DataError, match=words):
        imported(described, tmp_path, **recipe, function=function)


THEIRS = {"loader": "gptq", "path": "resources/models"}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (
            {"checkpoint": THEIRS, "weights": {"format": "nf4"}},
            "methods.m.weights: the checkpoint of others is quantized",
        ),
        ({"checkpoint": {"loader": "gptq"}}, "methods.m.checkpoint: give either 'path', or 'hub' with 'revision'"),
        ({"checkpoint": {"loader": "gguff", "path": "x"}}, "methods.m.checkpoint.loader.*gguf"),
        ({"checkpoint": {**THEIRS, "hub": "a/b"}}, "give either 'path', or 'hub'"),
        ({"checkpoint": {"loader": "function", "path": "x", "function": "os.system"}}, "checkpoint.function"),
        ({"checkpoint": {"loader": "function", "function": "a:b"}}, "the key 'path' is missing"),
    ],
)
def test_an_entry_that_cannot_be_is_refused(entry, words):
    with pytest.raises(ConfigurationError, match=words) as caught:
        experiment.complete_method(entry, "mine.yaml", "methods.m")
    assert "\n" not in str(caught.value)


def library_file(folder, layers, configuration, told=None):
    """The folder of a checkpoint with a library's own tensors, {name: tensor}, in place of the layers' weights."""
    denoiser = load_family("sd3").load_denoiser(MODEL, ROOT / MODEL["path"])
    held = {name: part for name, part in denoiser.state_dict().items() if name.removesuffix(".weight") not in LAYERS}
    for name in LAYERS:
        held |= layers(name, denoiser.get_submodule(name))
    folder.mkdir()
    save_file({name: part.contiguous() for name, part in held.items()}, folder / "model.safetensors")
    manifest.write_json(folder / "config.json", {"quantization_config": configuration})
    if told:
        manifest.write_json(folder / told, {name: {"weights": "qint4", "activations": "none"} for name in LAYERS})
    return folder


def test_magnitudes_that_bitsandbytes_has_quantized_again(tmp_path, described):
    functional = pytest.importorskip("bitsandbytes.functional")
    values = {}

    def nf4(name, layer):
        codes, state = functional.quantize_4bit(
            layer.weight.data, blocksize=64, compress_statistics=True, quant_type="nf4"
        )
        values[name] = functional.dequantize_4bit(codes, state).float()
        parts = {f"{name}.weight.{part}": tensor for part, tensor in state.as_dict(packed=True).items()}
        return {f"{name}.weight": codes, **parts}

    folder = library_file(tmp_path / "theirs", nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True})
    made = imported(described, tmp_path, loader="bitsandbytes", path=str(folder))
    check_values(made, values)


def check_values(made, expected):
    """The layers of a checkpoint dequantize to these values."""
    details, stored = manifest.read_json(made), load_file(made.parent / "weights.safetensors")
    for name, values in expected.items():
        layer = details["layers"][name]
        state = {part: stored[f"{name}.{part}"] for part in layer["parts"]}
        if library := library_of(layer["weights"]):
            found = library.dequantize(state, layer)
        else:
            weight_format = load_format(layer["weights"])
            found = QuantizedWeight.from_state(state, weight_format, layer["in_features"]).dequantize(weight_format)
        assert torch.allclose(found, values, atol=1e-5 * values.abs().max()), name


def test_layers_of_quanto(tmp_path, described):
    pytest.importorskip("optimum.quanto")
    library, values = library_of({"format": "quanto", "weights": "qint4", "group_size": 128}), {}

    def qint4(name, layer):
        frozen = library.convert(layer, torch.float32)
        values[name] = library.dequantize(library.state(frozen), convolution.describe(layer))
        return {f"{name}.{part}": tensor for part, tensor in frozen.state_dict().items()}

    folder = library_file(tmp_path / "theirs", qint4, {}, told="quanto_qmap.json")
    made = imported(described, tmp_path, loader="quanto", path=str(folder))
    check_values(made, values)
    assert manifest.read_json(made)["layers"][LAYERS[0]]["library"] == "optimum-quanto"
