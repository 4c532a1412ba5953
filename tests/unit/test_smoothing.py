"""SmoothQuant: the product is unchanged, outliers move, and every kind of layer applies the factor."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from quantwatt import registry
from quantwatt.config import experiment, schemas
from quantwatt.formats.activations import ActivationFormat
from quantwatt.formats.quantized_weight import load_format
from quantwatt.inference import linear
from quantwatt.inference.kernels import bitsandbytes_four_bit, onednn_int8
from quantwatt.quantize.observers import Hessian, Observers
from quantwatt.quantize.solvers import gptq, rtn
from quantwatt.quantize.transforms import smoothing

INT8 = {"format": "integer", "bits": 8, "granularity": "channel", "group_size": None, "symmetric": True}
NF4 = {"format": "nf4", "bits": 4, "group_size": 64}
TOKEN = {"bits": 8, "granularity": "token"}
SEARCH = {"alpha": "search", "grid": 20}


def layer(columns=128):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(300, columns, generator=generator)
    inputs[:, 3] *= 80  # an outlier channel, as in transformers
    return torch.randn(32, columns, generator=generator), inputs


def statistics_of(inputs, settings):
    found = Observers.new(smoothing.Transform(**{"grid": 20, **settings}).needs, inputs.shape[1])
    for part in inputs.split(100):
        found.observe(part)
    return found


def smooth(weight, inputs, settings, weight_format=None, activations=None):
    return smoothing.Transform(**{"grid": 20, **settings}).apply(
        weight, weight_format, ActivationFormat.from_settings(activations), statistics_of(inputs, settings)
    )


def rounded(transformed, weight_format):
    """What a method of that transform and rounding to nearest stores."""
    solution = rtn.Solver().solve(transformed.weight, weight_format)
    return replace(solution.weight, input_factor=transformed.input_factor)


def output_error(transformed, weight, inputs, weight_format, activations):
    """Squared error of the layer's output, by the layer itself."""
    built = linear.SimulatedLinear.build(
        rounded(transformed, weight_format), weight_format, activations, None, torch.float32
    )
    return (built(inputs) - inputs @ weight.T).square().sum().item()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_product_is_unchanged(alpha):
    weight, inputs = layer()
    inputs[:, 7] = 0
    found = smooth(weight, inputs, {"alpha": alpha})
    factor = found.input_factor
    assert torch.allclose((inputs * factor) @ found.weight.T, inputs @ weight.T, rtol=1e-4, atol=1e-2)
    assert factor[7] == 1 and factor.isfinite().all()
    if alpha == 1:
        assert torch.allclose((inputs * factor).abs().amax(dim=0)[:7], torch.ones(7), rtol=2**-8)  # bf16


@pytest.mark.parametrize("kind", [onednn_int8.Layer, linear.SimulatedLinear])
def test_smoothing_halves_the_error_of_eight_bit_activations_with_an_outlier(kind):
    weight, inputs = layer()
    weight_format = load_format(INT8)
    plain = rtn.Solver().solve(weight, weight_format).weight
    smoothed = rounded(smooth(weight, inputs, {"alpha": 0.5}), weight_format)
    errors = []
    for quantized in (plain, smoothed):
        built = kind.build(quantized, weight_format, TOKEN, None, torch.float32)
        errors.append((built(inputs) - inputs @ weight.T).norm().item())
    assert errors[1] < 0.5 * errors[0]


def test_four_bit_layer_applies_the_factor():
    weight, inputs = layer()
    weight_format = load_format(NF4)
    quantized = rounded(smooth(weight, inputs, {"alpha": 0.3}), weight_format)
    real, simulated = (
        kind.build(quantized, weight_format, None, None, torch.float32)(inputs)
        for kind in (bitsandbytes_four_bit.Layer, linear.SimulatedLinear)
    )
    assert torch.allclose(real, simulated, rtol=1e-3, atol=1e-2 * simulated.abs().max())


def test_a_solver_on_the_smoothed_layer_minimises_the_error_of_the_true_output():
    """The Hessian of scaled inputs and the scaled weight belong together: any other pair would do worse."""
    weight, inputs = layer()
    weight_format = load_format({**INT8, "bits": 3, "symmetric": False})
    settings = {"damping": 0.01, "act_order": True, "static_groups": True, "block_size": 128}
    found = smooth(weight, inputs, {"alpha": 0.5})
    errors = {}
    for name, factor in (("scaled", found.input_factor), ("unscaled", torch.ones(weight.shape[1]))):
        hessian = Hessian(weight.shape[1])
        hessian.observe(inputs * factor)
        solved = gptq.Solver(**settings).solve(found.weight, weight_format, SimpleNamespace(hessian=hessian)).weight
        outputs = (inputs * found.input_factor) @ solved.dequantize(weight_format).T
        errors[name] = (outputs - inputs @ weight.T).norm().item()
    errors["rtn"] = output_error(found, weight, inputs, weight_format, None) ** 0.5
    assert errors["scaled"] < 0.95 * min(errors["unscaled"], errors["rtn"])


@pytest.mark.parametrize("activations", [None, TOKEN, {**TOKEN, "granularity": "tensor", "bits": 4}])
def test_search_finds_the_best_of_the_grid(activations):
    weight, inputs = layer()
    weight_format = load_format({**INT8, "bits": 4})
    error = {
        alpha: output_error(smooth(weight, inputs, {"alpha": alpha}), weight, inputs, weight_format, activations)
        for alpha in [step / 20 for step in range(1, 20)]
    }
    plain = smooth(weight, inputs, {"alpha": 0.5})
    plain.weight, plain.input_factor = weight, torch.ones(weight.shape[1])
    error["none"] = output_error(plain, weight, inputs, weight_format, activations)
    found = smooth(weight, inputs, SEARCH, weight_format, activations)
    least = output_error(found, weight, inputs, weight_format, activations)
    assert least == pytest.approx(min(error.values()), rel=1e-5) and least < error[0.5]
    assert (min(error, key=error.get) == "none") == bool((found.input_factor == 1).all())


def test_search_leaves_a_layer_that_smoothing_only_harms():
    """Weights already on their grid, 16-bit activations: any factor moves them off it."""
    weight, inputs = layer()
    weight_format = load_format({**INT8, "bits": 4})
    weight = rtn.Solver().solve(weight, weight_format).weight.dequantize(weight_format)
    found = smooth(weight, inputs, SEARCH, weight_format)
    assert torch.equal(found.weight, weight) and (found.input_factor == 1).all()


def test_search_with_a_static_activation_grid_takes_it_from_the_sampled_tokens():
    weight, inputs = layer()
    inputs[0, 5] = 4000  # one token alone decides a grid for the whole tensor
    weight_format = load_format(INT8)
    static = {"bits": 8, "granularity": "tensor", "dynamic": False, "symmetric": False}
    dynamic = {**static, "dynamic": True}
    found, same = (smooth(weight, inputs, SEARCH, weight_format, a) for a in (static, dynamic))
    assert torch.equal(found.input_factor, same.input_factor) and not (found.input_factor == 1).all()


def test_search_reads_tokens_and_a_given_alpha_does_not():
    assert set(smoothing.Transform(**SEARCH).needs) == {"maximum", "tokens"}
    assert set(smoothing.Transform(alpha=0.5, grid=20).needs) == {"maximum"}


@pytest.mark.parametrize(
    ("alpha", "valid"), [(0.5, True), (0, True), ("search", True), (1.5, False), ("best", False), (None, False)]
)
def test_schema_takes_a_number_or_search(alpha, valid):
    schema = json.loads((registry.SCHEMAS / "transforms/smoothing.schema.json").read_text())
    if valid:
        assert schemas.complete({"name": "smoothing", "alpha": alpha}, schema, "f", "m")["grid"] == 20
    else:
        with pytest.raises(experiment.ConfigurationError, match=r"m\.alpha: give a number from 0 to 1, or 'search'"):
            schemas.complete({"name": "smoothing", "alpha": alpha}, schema, "f", "m")


def awq_search(weight, inputs, weight_format, grid):
    """AWQ's search as its code has it (llm-awq, auto_scale.py), on all tokens: (scales, error)."""
    outputs, mean = inputs @ weight.T, inputs.abs().mean(dim=0)
    best = None
    for step in range(grid):
        scales = mean.pow(step / grid).clamp(min=1e-4)
        scales = scales / (scales.max() * scales.min()).sqrt()
        rounded = rtn.Solver().solve(weight * scales, weight_format).weight.dequantize(weight_format) / scales
        error = (inputs @ rounded.T - outputs).square().mean().item()
        if best is None or error < best[1]:
            best = scales, error
    return best


def test_awqs_rule_finds_the_scales_of_its_own_code():
    weight, inputs = layer()
    inputs[:, 40] = 0.01 * inputs[:, 40]
    grouped = load_format({**INT8, "bits": 3, "granularity": "group", "group_size": 32})
    scales, error = awq_search(weight, inputs, grouped, 20)
    found = smooth(weight, inputs, {**SEARCH, "rule": "awq"}, grouped)
    assert torch.allclose(1 / found.input_factor, scales, rtol=2**-7)  # rounded to bfloat16
    stored = output_error(found, weight, inputs, grouped, None) / (300 * 32)
    assert stored == pytest.approx(error, rel=0.05)
    plain = smooth(weight, inputs, {"alpha": 1e-6, "rule": "awq"}, grouped)
    assert stored < 0.5 * output_error(plain, weight, inputs, grouped, None) / (300 * 32)


def test_awqs_rule_reads_the_mean_and_leaves_unused_columns():
    transform = smoothing.Transform(alpha=0.5, grid=20, rule="awq")
    assert transform.needs == ("mean",) and smoothing.Transform(**SEARCH, rule="awq").needs == ("mean", "tokens")
    weight, inputs = layer()
    inputs[:, 7], inputs[:, 9] = 0, torch.inf
    found = smooth(weight, inputs, {"alpha": 0.5, "rule": "awq"})
    assert found.input_factor[7] == found.input_factor[9] == 1 and found.input_factor.isfinite().all()
    inputs[:, 9] = 0
    assert torch.allclose((inputs * found.input_factor) @ found.weight.T, inputs @ weight.T, rtol=1e-3, atol=1e-2)
    nothing = smooth(weight, torch.zeros_like(inputs), {"alpha": 0.5, "rule": "awq"})
    assert torch.equal(nothing.weight, weight)
