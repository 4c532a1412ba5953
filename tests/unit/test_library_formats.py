"""Formats that a library rounds, stores and computes with: against its documented arithmetic, and across processes."""

import os
import subprocess
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import preloaded
import pytest
import torch
from safetensors.torch import load_file, save_file

from quantwatt.artifacts.errors import DataError
from quantwatt.config import experiment, methods
from quantwatt.formats import trial
from quantwatt.formats.library import library_of
from quantwatt.inference.checkpoint import QuantizedPipeline
from quantwatt.models.sampling import Drawing

ROOT = Path(__file__).parents[2]
ROWS, COLUMNS, TOKENS = 48, 256, 20
LAYER = {"in_features": COLUMNS, "out_features": ROWS}
CUDA = torch.cuda.is_available()

FORMATS = {
    "llm-int8": {"format": "bitsandbytes-int8", "threshold": 6.0},
    "llm-int8-all": {"format": "bitsandbytes-int8", "threshold": 0.0},
    "torchao-int8": {"format": "torchao", "configuration": "int8-weight-only", "group_size": 128},
    "torchao-int8-dynamic": {"format": "torchao", "configuration": "int8-dynamic", "group_size": 128},
    "torchao-float8": {"format": "torchao", "configuration": "float8-weight-only", "group_size": 128},
    "torchao-int4": {"format": "torchao", "configuration": "int4-weight-only", "group_size": 128},
    "torchao-int4-32": {"format": "torchao", "configuration": "int4-weight-only", "group_size": 32},
    "quanto-qint8": {"format": "quanto", "weights": "qint8", "group_size": 128},
    "quanto-qint4": {"format": "quanto", "weights": "qint4", "group_size": 128},
    "quanto-qint2": {"format": "quanto", "weights": "qint2", "group_size": 128},
    "quanto-qfloat8": {"format": "quanto", "weights": "qfloat8", "group_size": 128},
}
FLOAT8_DYNAMIC = {"format": "torchao", "configuration": "float8-dynamic", "group_size": 128}


def module_of(settings):
    return library_of(settings)


def linear(dtype=torch.bfloat16, rows=ROWS, columns=COLUMNS, bias=True):
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(columns, rows, bias=bias, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(rows, columns, generator=generator))
        if bias:
            layer.bias.copy_(torch.randn(rows, generator=generator))
    return layer


def inputs(dtype=torch.bfloat16, outlier=None):
    values = torch.randn(2, TOKENS, COLUMNS, generator=torch.Generator().manual_seed(1)).clamp(-4, 4)
    if outlier is not None:
        values[:, 3, outlier] = 40.0
    return values.to(dtype)


def convert(name, dtype=torch.bfloat16, **shape):
    settings = FORMATS[name]
    return module_of(settings).convert(linear(dtype, **shape), dtype)


def relative(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("name", FORMATS)
def test_the_library_computes_it_on_the_cpu(name):
    assert module_of(FORMATS[name]).unsupported("cpu") is None


RESTORE = """
import sys
import torch
from safetensors.torch import load_file, save_file
from quantwatt.formats.library import library_of
stored, formats = load_file(sys.argv[1]), eval(sys.argv[2])
outputs = {}
for name, (settings, layer) in formats.items():
    state = {key.split("/")[1]: part for key, part in stored.items() if key.startswith(name + "/")}
    module = library_of(settings)
    restored = module.restore(state, layer, stored["bias"], torch.bfloat16, "cpu")
    with torch.no_grad():
        outputs[name] = restored(stored["inputs"])  # a view into the file, as the tensors of the state are
        assert torch.equal(outputs[name], restored(stored["inputs"])), name
save_file(outputs, sys.argv[3])
"""


def test_a_fresh_process_restores_the_same_outputs_bit_by_bit(tmp_path):
    outlying, stored, expected = inputs(outlier=7), {}, {}
    for name, settings in FORMATS.items():
        layer = convert(name)
        before = module_of(settings).state(layer)
        with torch.no_grad():
            expected[name] = layer(outlying)
        after = module_of(settings).state(layer)  # LLM.int8's layer moves its tensors in its first forward pass
        assert before.keys() == after.keys() and all(torch.equal(before[part], after[part]) for part in before)
        stored |= {f"{name}/{part}": tensor for part, tensor in after.items()}
    save_file({**stored, "bias": linear().bias.detach(), "inputs": outlying}, tmp_path / "stored.safetensors")
    formats = {name: (settings, LAYER) for name, settings in FORMATS.items()}
    arguments = [tmp_path / "stored.safetensors", repr(formats), tmp_path / "outputs.safetensors"]
    (tmp_path / "program.py").write_text(RESTORE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow_scripts")}
    command = [preloaded.jobs().python, tmp_path / "program.py", *arguments]
    subprocess.run(command, check=True, env=environment)
    found = load_file(tmp_path / "outputs.safetensors")
    plain = torch.nn.functional.linear(outlying, linear().weight, linear().bias)
    for name, outputs in expected.items():
        assert outputs.dtype == torch.bfloat16 and torch.equal(found[name], outputs), name
        assert 0 < relative(outputs, plain) < 0.7, name  # it is quantized, and not garbage


def misaligned(tensor):
    """The same values at an address that is no multiple of 16 bytes, as a tensor of a safetensors file may have."""
    memory = torch.empty(tensor.numel() * tensor.element_size() + 64, dtype=torch.uint8)
    view = memory[8 : 8 + tensor.numel() * tensor.element_size()].view(tensor.dtype).reshape(tensor.shape)
    assert view.data_ptr() % 16 == 8
    return view.copy_(tensor)


def plain_tensors(tensor):
    """The tensors that a library's tensor is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        return [part for name in tensor.__tensor_flatten__()[0] for part in plain_tensors(getattr(tensor, name))]
    return [tensor, *(part for part in (getattr(tensor, "CB", None), getattr(tensor, "SCB", None)) if part is not None)]


@pytest.mark.parametrize("name", FORMATS)
def test_restored_layers_lie_in_aligned_memory(name):
    """torch's int8 product, which is quanto's, crashes on others: on some CPUs of the weights, on all of the inputs."""
    module, layer = module_of(FORMATS[name]), convert(name)
    state = {part: misaligned(tensor) for part, tensor in module.state(layer).items()}
    bias = misaligned(linear().bias.detach())
    restored = module.restore(state, LAYER, bias, torch.bfloat16, "cpu")
    tensors = [part for tensor in (*restored.parameters(), *restored.buffers()) for part in plain_tensors(tensor)]
    assert len(tensors) >= 3 and all(tensor.data_ptr() % 64 == 0 for tensor in tensors)
    values = misaligned(inputs()) if name == "quanto-qint8" else inputs()
    with torch.no_grad():
        assert torch.equal(restored(values), layer(inputs()))


@pytest.mark.parametrize("columns", [20, 36, 40, 100])
def test_quantos_int8_product_ends_with_a_row(columns):
    """torch's own reads 8 or 16 columns at once, and what follows the row with the last of them, or crashes."""
    module = module_of(FORMATS["quanto-qint8"])
    layer = convert("quanto-qint8", columns=columns, bias=False)
    weight = module.dequantize(module.state(layer), {"in_features": columns, "out_features": ROWS})
    values = inputs()[..., :columns]
    with torch.no_grad():
        assert relative(layer(values), values.float() @ weight.T) < 5e-3


def rounded(values, scale, low, high):
    return (values / scale).round().clamp(low, high)


def by_hand(name, weight):
    """(codes, [rows, columns] values) by each library's documented arithmetic, in float32."""
    largest = weight.abs().amax(dim=1, keepdim=True)
    if name.startswith("llm-int8"):  # 127 steps to the largest magnitude
        codes = rounded(weight, largest / 127, -127, 127)
        return codes, codes * largest / 127
    if name in ("torchao-int8", "torchao-int8-dynamic"):  # 255 steps over twice of it
        codes = rounded(weight, largest / 127.5, -128, 127)
        return codes, codes * largest / 127.5
    if name == "quanto-qint8":
        codes = rounded(weight, largest / 127, -127, 127)
        return codes, codes * largest / 127
    if name.endswith("float8"):
        codes = (weight / (largest / 448)).to(torch.float8_e4m3fn).float()
        return codes, codes * largest / 448
    steps = 3 if name == "quanto-qint2" else 15
    groups = weight.reshape(-1, 32 if name == "torchao-int4-32" else 128)
    low, high = groups.amin(dim=1, keepdim=True), groups.amax(dim=1, keepdim=True)
    scale = (high - low) / steps
    codes = rounded(groups - low, scale, 0, steps)
    return codes.reshape(weight.shape), (codes * scale + low).reshape(weight.shape)


@pytest.mark.parametrize("name", FORMATS)
def test_a_pipeline_is_timed_with_the_librarys_layers(name):
    """As it is loaded from a checkpoint, in the context that the timed functions compute in."""
    module = module_of(FORMATS[name])
    layer = module.restore(module.state(convert(name)), LAYER, None, torch.bfloat16, "cpu")
    family = SimpleNamespace(DEFAULTS={}, prepare=lambda model, batch, seeds, settings: lambda: model(batch))
    pipeline = QuantizedPipeline(layer, family, "real", name, None)
    assert torch.equal(pipeline.prepare(inputs(), [0], Drawing())(), layer(inputs()))


@pytest.mark.parametrize("name", FORMATS)
def test_weights_are_the_librarys_documented_grid(name):
    settings, float_layer = FORMATS[name], linear(torch.float32)
    module = module_of(settings)
    layer = module.convert(float_layer, torch.float32)
    state = module.state(layer)
    weight = float_layer.weight.detach()
    codes, values = by_hand(name, weight.half().float() if name.startswith("llm") else weight)
    found = module.dequantize(state, LAYER)
    stored = {"torchao-int8": "qdata", "torchao-int8-dynamic": "qdata", "quanto-qint8": "data"}
    if name.startswith("llm") or name in stored:
        assert (state[stored.get(name, "codes")].float() != codes).float().mean() < 1e-3  # ties
    step = (values - weight).abs().max()
    assert (found - values).abs().max() < 0.02 * step or ((found - values).abs() > 1e-5).float().mean() < 1e-3
    with torch.no_grad():  # and the layer computes with them: rows of the identity bring them out
        products = layer(torch.eye(COLUMNS)) - float_layer.bias
    assert relative(products.T, found) < (5e-3 if name.startswith(("llm", "torchao-int8-")) else 1e-5)


def test_int4_codes_are_stored_in_order_whatever_the_processors_layout():
    from quantwatt.formats.packing import unpack

    module = module_of(FORMATS["torchao-int4"])
    layer = convert("torchao-int4", torch.float32)
    codes = unpack(module.state(layer)["codes"], 4, COLUMNS)
    expected, _ = by_hand("torchao-int4", linear(torch.float32).weight.detach())
    assert (codes.float() != expected).float().mean() < 1e-3
    plain = layer.weight.qdata.reshape(ROWS, COLUMNS // 2)
    assert not torch.equal(plain, module.state(layer)["codes"])  # the kernel's own layout is another


def test_dynamic_int8_quantizes_its_inputs_per_token():
    layer, values = convert("torchao-int8-dynamic", torch.float32, bias=False), inputs(torch.float32)
    _, weight = by_hand("torchao-int8-dynamic", linear(torch.float32).weight.detach())
    scale = values.abs().amax(dim=-1, keepdim=True) / 127.5
    with torch.no_grad():
        found = layer(values)
    assert relative(found, rounded(values, scale, -128, 127) * scale @ weight.T) < 1e-3
    assert relative(found, values @ weight.T) > 5e-3


@pytest.mark.parametrize("name", ["llm-int8", "llm-int8-all"])
def test_llm_int8_multiplies_inputs_beyond_the_threshold_in_16_bits(name):
    layer, values = convert(name, torch.float16, bias=False), inputs(torch.float16, outlier=7)
    _, weight = by_hand(name, linear(torch.float16).weight.detach().float())
    flat = values.float().reshape(-1, COLUMNS)
    apart = torch.zeros(COLUMNS, dtype=torch.bool)
    if FORMATS[name]["threshold"]:
        apart = (flat.abs() >= FORMATS[name]["threshold"]).any(dim=0)
        assert apart.sum() == 1
    rest = flat.masked_fill(apart, 0.0)
    scale = rest.abs().amax(dim=1, keepdim=True) / 127
    expected = rounded(rest, scale, -127, 127) * scale @ weight.T + flat[:, apart] @ weight[:, apart].T
    with torch.no_grad():
        found = layer(values).float().reshape(-1, ROWS)
    assert relative(found, expected) < 2e-3
    # The token with the outlier has a coarse grid without the split.
    assert (relative(found[3], flat[3] @ weight.T) > 2e-2) == (name == "llm-int8-all")


def test_llm_int8_says_whether_its_product_is_one_of_integers():
    module, layer = module_of(FORMATS["llm-int8-all"]), convert("llm-int8-all")
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        layer(inputs())
    integers = any(event.key == "aten::_int_mm" for event in profile.key_averages())
    reason = module.simulated("cpu")
    assert (reason is None) == integers
    assert integers or "float32" in reason


@pytest.mark.skipif(CUDA, reason="this machine may compute it")
def test_float8_dynamic_is_refused_on_the_cpu_with_torchaos_reason():
    reason = module_of(FLOAT8_DYNAMIC).unsupported("cpu")
    assert "float8-dynamic on cpu" in reason and "8.9" in reason and reason.count("\n") == 0
    with pytest.raises(DataError, match="8.9"):
        module_of(FLOAT8_DYNAMIC).convert(linear(), torch.bfloat16)


@pytest.mark.skipif(CUDA, reason="this machine has the device")
def test_a_device_that_is_not_there_is_one_sentence():
    for settings in FORMATS.values():
        reason = module_of(settings).unsupported("cuda")
        assert reason.endswith(".") and "cuda" in reason and "\n" not in reason


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("name", FORMATS)
def test_cuda_computes_what_the_cpu_computes(name):
    settings, layer = FORMATS[name], convert(name)
    module = module_of(settings)
    if reason := module.unsupported("cuda"):
        pytest.skip(reason)
    restored = module.restore(module.state(layer), LAYER, linear().bias, torch.bfloat16, "cuda")
    with torch.no_grad():
        assert relative(restored(inputs().cuda()).cpu(), layer(inputs())) < 1e-2


def test_a_missing_package_is_named(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(trial.metadata, "version", missing)
    for settings in FORMATS.values():
        module = module_of(settings)
        assert module.unsupported("cpu") == f"{module.LIBRARY} is not installed."


def test_a_trial_with_wrong_values_is_a_refusal(monkeypatch):
    settings = {**FORMATS["torchao-int8"], "group_size": 64}  # not tried before, so not remembered
    module = module_of(settings)
    original = module.state

    def flipped(self, layer):
        return {**original(layer), "qdata": original(layer)["qdata"].flip(0)}

    monkeypatch.setattr(type(module), "state", flipped)
    assert "outputs are off" in module.unsupported("cpu")
    trial._trial.cache_clear()


def test_a_trial_leaves_random_numbers_as_they_are():
    trial._trial.cache_clear()
    before = torch.random.get_rng_state()
    assert module_of(FORMATS["quanto-qint2"]).unsupported("cpu") is None
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(("name", "shape"), [("torchao-int4", (48, 192)), ("torchao-int4", (40, 256)),
                                             ("quanto-qint4", (40, 256))])  # fmt: skip
def test_a_shape_that_a_library_does_not_take_is_refused(name, shape):
    if name == "quanto-qint4" and CUDA:
        pytest.skip("the CPU's kernel")
    with pytest.raises(DataError, match=rf"\[{shape[0]}, {shape[1]}\]"):
        convert(name, rows=shape[0], columns=shape[1])


@pytest.mark.parametrize("name", FORMATS)
def test_stored_bytes_are_those_of_the_described_bits(name):
    bits, _ = module_of(FORMATS[name]).bits
    rows, columns = 64, 1024
    state = module_of(FORMATS[name]).state(convert(name, rows=rows, columns=columns))
    stored = 8 * sum(part.numel() * part.element_size() for part in state.values()) / (rows * columns)
    group = FORMATS[name].get("group_size")
    assert bits <= stored <= bits + (32 / group if bits < 8 else 0.1)


@pytest.mark.parametrize(("columns", "group"), [(256, 64), (96, 32), (64, 64), (80, 80)])
def test_quanto_has_the_groups_asked_for_or_the_next_smaller_that_divide(columns, group):
    settings, layer = FORMATS["quanto-qint4"] | {"group_size": 64}, linear(rows=64, columns=columns)
    module, quanto = module_of(settings), {"in_features": columns, "out_features": 64}
    state = module.state(module.convert(layer, torch.bfloat16))
    assert state["scale"].numel() == 64 * columns // group
    restored = module.restore(state, quanto, layer.bias, torch.bfloat16, "cpu")
    values = torch.randn(5, columns, generator=torch.Generator().manual_seed(2)).bfloat16()
    expected = values.float() @ module.dequantize(state, quanto).T + layer.bias.float()
    assert (restored(values).float() - expected).norm() < 0.01 * expected.norm()


def test_describe_knows_dynamic_activations():
    assert module_of(FLOAT8_DYNAMIC).bits == (8, 8)
    expected = {
        "llm-int8": (8, 8), "torchao-int8": (8, None), "torchao-int8-dynamic": (8, 8), "torchao-int4": (4, None),
        "torchao-float8": (8, None), "quanto-qint2": (2, None), "quanto-qfloat8": (8, None),
    }  # fmt: skip
    for name, bits in expected.items():
        assert module_of(FORMATS[name]).bits == bits


def test_schemas_complete_an_entry_to_what_the_formats_read():
    raw = experiment.read_yaml(experiment.EXPERIMENTS / "embedded.yaml", "embedded.yaml")
    for settings in (*FORMATS.values(), FLOAT8_DYNAMIC):
        short = {key: value for key, value in settings.items() if key not in ("group_size", "threshold")}
        raw["methods"]["library"] = {"solver": {"name": "rtn"}, "weights": short}
        completed = experiment.check_experiment(raw, "embedded.yaml")["methods"]["library"]
        grouped = {"group_size": 128}
        defaults = {"torchao": grouped, "bitsandbytes-int8": {"threshold": 6.0}, "quanto": grouped}
        assert completed["weights"] == {**short, **defaults[settings["format"]]}
        assert methods.is_library(completed)
