"""Inputs as floats: in blocks as torchao's MX and NVFP4, per token or tensor as float8, static grids as calibrated."""

import pytest
import torch
from torchao.prototype.mx_formats import mx_tensor, nvfp4_tensor
from torchao.prototype.mx_formats.config import ScaleCalculationMode as Mode

from quantwatt.config.experiment import ConfigurationError, complete_method
from quantwatt.config.methods import formats_of, needs_calibration
from quantwatt.formats import convolution
from quantwatt.formats.activations import ActivationFormat, IntegerActivations
from quantwatt.formats.convolution import Convolution
from quantwatt.formats.quantized_weight import load_format, quantize_to_nearest
from quantwatt.inference import kernel_choice
from quantwatt.quantize.observers import Range

WEIGHTS = {"format": "mxfp8"}
KINDS = {
    "mxfp8": {"format": "mxfp8"},
    "mxfp6": {"format": "mxfp6", "element": "e3m2"},
    "mxfp4": {"format": "mxfp4", "scale_rounding": "floor"},
    "nvfp4": {"format": "nvfp4"},
    "nvfp4 static": {"format": "nvfp4", "dynamic": False},
    "float8": {"format": "float8"},
    "float8 tensor": {"format": "float8", "granularity": "tensor", "element": "e5m2"},
    "float8 static": {"format": "float8", "granularity": "tensor", "dynamic": False},
}


def method_of(activations, **entry):
    return complete_method({"weights": WEIGHTS, "activations": activations, **entry}, "mine.yaml", "methods.m")


def activations_of(kind):
    return ActivationFormat.from_settings(method_of(KINDS[kind])["activations"])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * torch.exp2(torch.arange(shape[-1]) / 20)


def grid_of(activation_format, inputs):
    if activation_format.dynamic:
        return None
    observed = Range(inputs.shape[-1])
    observed.observe(inputs.reshape(-1, inputs.shape[-1]))
    return activation_format.calibrated(observed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_blocks_are_rounded_as_torchao_rounds_them(dtype):
    inputs = normal(3, 5, 96).to(dtype)
    modes = {"mxfp8": (torch.float8_e4m3fn, Mode.RCEIL), "mxfp6": ("fp6_e3m2", Mode.RCEIL),
             "mxfp4": (torch.float4_e2m1fn_x2, Mode.FLOOR)}  # fmt: skip
    for kind, (element, mode) in modes.items():
        scale, data = mx_tensor.to_mx(inputs.reshape(15, 96), element, 32, mode)
        expected = mx_tensor.to_dtype(data, scale, element, 32, torch.float32).to(dtype)
        assert torch.equal(activations_of(kind).fake_quantize(inputs), expected.reshape(inputs.shape))
    flat = inputs.reshape(15, 96)
    scale = nvfp4_tensor.per_tensor_amax_to_scale(flat.abs().amax())
    expected = nvfp4_tensor.NVFP4Tensor.to_nvfp4(flat, per_tensor_scale=scale).dequantize(torch.float32).to(dtype)
    assert torch.equal(activations_of("nvfp4").fake_quantize(inputs), expected.reshape(inputs.shape))
    static = activations_of("nvfp4 static")
    assert torch.equal(static.fake_quantize(inputs, grid_of(static, inputs)), expected.reshape(inputs.shape))


def test_float8_has_a_scale_per_token_or_tensor():
    inputs = normal(3, 5, 40)
    largest = {"float8": inputs.abs().amax(dim=-1, keepdim=True), "float8 tensor": inputs.abs().amax(),
               "float8 static": 2 * inputs.abs().amax()}  # fmt: skip
    for kind, magnitude in largest.items():
        element = torch.float8_e5m2 if kind == "float8 tensor" else torch.float8_e4m3fn
        scale = magnitude / torch.finfo(element).max
        expected = (inputs / scale).to(element).float() * scale
        activation_format = activations_of(kind)
        assert torch.equal(activation_format.fake_quantize(inputs, grid_of(activation_format, 2 * inputs)), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_type_shape_and_zeros_are_kept_and_a_nan_shows(kind):
    activation_format = activations_of(kind)
    for shape in ((2, 3, 70), (1, 16), (4, 1)):
        inputs = normal(*shape).half()
        values = activation_format.fake_quantize(inputs, grid_of(activation_format, inputs))
        assert values.dtype == inputs.dtype and values.shape == inputs.shape
        assert (values - inputs).float().norm() < 0.2 * inputs.float().norm()
    zeros = torch.zeros(2, 64)
    assert torch.equal(activation_format.fake_quantize(zeros, grid_of(activation_format, zeros)), zeros)
    bad = normal(2, 64)
    bad[1, 5] = torch.nan
    values = activation_format.fake_quantize(bad, grid_of(activation_format, normal(2, 64)))
    assert values[1, 5].isnan()


@pytest.mark.parametrize("kind", KINDS)
def test_calibration_is_asked_for_where_a_grid_is_static_and_can_be_done_without(kind):
    method, activation_format = method_of(KINDS[kind]), activations_of(kind)
    static = kind.endswith("static")
    assert needs_calibration(method) == static == (not activation_format.dynamic)
    inputs = normal(6, 64)
    if static:
        scale, zero = grid_of(activation_format, inputs)
        assert scale.shape == zero.shape == (1,) and zero == 0
        found = activation_format.at_run_time().fake_quantize(inputs)
        assert torch.equal(found, activation_format.fake_quantize(inputs, (scale, zero)))
        ratio = torch.tensor([-1e6, 1.0, 400.0, 1e6])
        assert activation_format.inside(ratio, ratio).tolist() == [False, True, True, False]
        with pytest.raises(ValueError, match="needs the grid"):
            activation_format.fake_quantize(inputs)
    else:
        assert activation_format.at_run_time() == activation_format


def test_blocks_of_a_convolutions_inputs_are_of_channels():
    inputs = torch.randn(2, 64, 3, 5, generator=torch.Generator().manual_seed(0))
    inputs *= torch.exp2(torch.arange(64).float() / 4)[:, None, None]
    geometry = Convolution((1, 1), (1, 1), (0, 0, 0, 0), "zeros", (1, 1), 1)
    activation_format = activations_of("mxfp4")
    found = convolution.rounded(inputs, activation_format, None, geometry)
    positions = inputs.permute(0, 2, 3, 1).reshape(-1, 64)
    expected = activation_format.fake_quantize(positions).reshape(2, 3, 5, 64).permute(0, 3, 1, 2)
    assert torch.equal(found, expected)
    static = activations_of("float8 static")
    grid = grid_of(static, positions)
    expected = static.fake_quantize(positions, grid).reshape(2, 3, 5, 64).permute(0, 3, 1, 2)
    assert torch.equal(convolution.rounded(inputs, static, grid, geometry), expected)


def test_integers_mean_what_they_meant():
    for entry in ({"bits": 8}, {"format": "integer", "bits": 8}):
        completed = method_of(entry)["activations"]
        assert completed == {"bits": 8, "granularity": "token", "dynamic": True, "symmetric": True}
        assert ActivationFormat.from_settings(completed) == IntegerActivations(8)
    assert ActivationFormat.from_settings(None) is None and method_of(None)["activations"] is None


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"format": "fp8"}, "mine.yaml: methods.m.activations.format: 'fp8' is not known"),
        ({"format": "mxfp8-e5m2"}, "; write {format: mxfp8}, with element: e4m3 or e5m2."),
        ({"format": "mxfp8", "granularity": "token"}, "methods.m.activations: unknown key 'granularity'"),
        ({"format": "mxfp8", "element": "e3m4"}, "methods.m.activations.element: 'e3m4' is none of e4m3, e5m2"),
        ({"format": "mxfp4", "dynamic": False}, "methods.m.activations.dynamic: True was expected (always true"),
        (
            {"format": "mxfp4", "scale_rounding": "rceil"},
            "scale_rounding: 'rceil' is none of floor, even, up; write up.",
        ),
        ({"format": "float8", "dynamic": False}, "methods.m.activations.granularity: a static grid"),
        ({"format": "nvfp4", "bits": 8}, "methods.m.activations.bits: 4 was expected (always 4)."),
        ({"granularity": "tensor"}, "mine.yaml: methods.m.activations: the key 'bits' is missing."),
    ],
)
def test_wrong_entries_are_refused_in_a_sentence(entry, sentence):
    with pytest.raises(ConfigurationError) as caught:
        method_of(entry)
    assert sentence in str(caught.value)


def test_an_override_may_have_another_format():
    overrides = {"a": {"activations": {"format": "nvfp4"}}, "b": {"weights": {"format": "nf4"}},
                 "c": {"activations": {"scale_rounding": "floor"}}}  # fmt: skip
    method = method_of({"format": "mxfp4"}, allocation={"name": "uniform", "overrides": overrides})
    found = method["allocation"]["overrides"]
    assert found["a"]["activations"]["group_size"] == 16 and found["b"]["weights"]["group_size"] == 64
    assert found["c"]["activations"] == {**method["activations"], "scale_rounding": "floor"}
    assert formats_of([method, *found.values()]) == ["mxfp8", "mxfp4", "nvfp4", "nf4"]


@pytest.mark.parametrize(
    ("method", "override"),
    [
        ({"weights": WEIGHTS}, {"format": "torchao", "configuration": "int8-weight-only"}),
        ({"weights": {"format": "bitsandbytes-int8"}}, {"format": "nvfp4"}),
        ({"weights": {"format": "integer", "bits": 4}, "solver": {"name": "auto-gptq"}}, {"format": "mxfp4"}),
    ],
)
def test_an_override_leaves_a_library_its_format(method, override):
    allocation = {"name": "uniform", "overrides": {"a": {"weights": override}}}
    with pytest.raises(ConfigurationError, match="overrides.a.weights.format: where a library rounds or stores"):
        complete_method({**method, "allocation": allocation}, "mine.yaml", "methods.m")


@pytest.mark.parametrize("kind", KINDS)
def test_what_computes_with_float_inputs_is_told_to_be_simulated(kind):
    for weights in ({"format": "mxfp8"}, {"format": "integer", "bits": 8, "symmetric": True}):
        method = complete_method({"weights": weights, "activations": KINDS[kind]}, "mine.yaml", "methods.m")
        layer = {"weights": method["weights"], "activations": method["activations"], "in_features": 64,
                 "out_features": 8, "parts": []}  # fmt: skip
        compute, kernels, reason = kernel_choice.compute_of({"to_q": layer}, "cpu")
        assert (compute, kernels) == ("simulated", None)
        assert f"no kernel computes {weights['format']} W8A{method['activations']['bits']}" in reason
        assert f"{KINDS[kind]['format']} inputs" in reason and reason.endswith("on cpu (layer to_q)")


def test_products_of_formats_are_near_those_of_floats():
    weight, inputs = normal(24, 64), normal(10, 64, seed=1)
    exact, errors = inputs @ weight.T, {}
    for kind in KINDS:
        weights = load_format(complete_method({"weights": {"format": "mxfp8"}}, "mine.yaml", "m")["weights"])
        rounded = quantize_to_nearest(weight, weights).dequantize(weights)
        activation_format = activations_of(kind)
        outputs = activation_format.fake_quantize(inputs, grid_of(activation_format, inputs)) @ rounded.T
        errors[kind] = ((outputs - exact).norm() / exact.norm()).item()
    assert errors["mxfp8"] < errors["mxfp6"] < errors["nvfp4"] < errors["mxfp4"] < 0.2, errors
