"""SmoothQuant: the product is unchanged, outliers move, and every layer kind applies the factor."""

import pytest
import torch

from quantwatt import linear
from quantwatt.formats import load_format
from quantwatt.sequential import _solve
from quantwatt.solvers import gptq, rtn
from quantwatt.transforms import smoothing

INT8 = {"format": "integer", "bits": 8, "granularity": "channel", "group_size": None, "symmetric": True}
NF4 = {"format": "nf4", "block": 64}
TOKEN = {"bits": 8, "granularity": "token"}


def layer(columns=128):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(300, columns, generator=generator)
    inputs[:, 3] *= 80  # an outlier channel, as in transformers
    return torch.randn(32, columns, generator=generator), inputs


def observed(inputs, *observers):
    statistics = {observer: observer.new_statistics(inputs.shape[1]) for observer in observers}
    for part in inputs.split(100):
        for each in statistics.values():
            each.observe(part)
    return statistics


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_product_is_unchanged(alpha):
    weight, inputs = layer()
    inputs[:, 7] = 0
    statistics = observed(inputs, smoothing)[smoothing]
    smoothed, factor = smoothing.apply(weight, {"alpha": alpha}, statistics)
    assert torch.allclose((inputs * factor) @ smoothed.T, inputs @ weight.T, rtol=1e-4, atol=1e-2)
    assert factor[7] == 1 and factor.isfinite().all()
    if alpha == 1:
        assert torch.allclose((inputs * factor).abs().amax(dim=0)[:7], torch.ones(7), rtol=2**-8)  # bf16


@pytest.mark.parametrize("kind", ["Int8Linear", "SimulatedLinear"])
def test_smoothing_halves_the_error_of_eight_bit_activations_with_an_outlier(kind):
    weight, inputs = layer()
    weight_format = load_format(INT8)
    errors = []
    for transforms in ([], [(smoothing, {"alpha": 0.5})]):
        quantized, _ = _solve(weight, weight_format, rtn, {}, transforms, observed(inputs, smoothing))
        built = getattr(linear, kind).build(quantized, weight_format, TOKEN, None, torch.float32)
        errors.append((built(inputs) - inputs @ weight.T).norm().item())
    assert errors[1] < 0.5 * errors[0]


def test_four_bit_layer_applies_the_factor():
    weight, inputs = layer()
    weight_format = load_format(NF4)
    quantized, _ = _solve(weight, weight_format, rtn, {}, [(smoothing, {"alpha": 0.3})], observed(inputs, smoothing))
    real, simulated = (
        getattr(linear, kind).build(quantized, weight_format, None, None, torch.float32)(inputs)
        for kind in ("FourBitLinear", "SimulatedLinear")
    )
    assert torch.allclose(real, simulated, rtol=1e-3, atol=1e-2 * simulated.abs().max())


def test_gptq_sees_the_transformed_inputs():
    weight, inputs = layer()
    weight_format = load_format({**INT8, "bits": 3, "symmetric": False})
    settings = {"damping": 0.01, "act_order": True, "static_groups": True, "block_size": 128}
    transforms = [(smoothing, {"alpha": 0.5})]
    quantized, report = _solve(weight, weight_format, gptq, settings, transforms, observed(inputs, smoothing, gptq))
    found = (inputs * quantized.input_factor) @ quantized.dequantize(weight_format).T
    truth = inputs @ weight.T
    assert report["error_of"] == "outputs"
    assert report["relative_error"] == pytest.approx(((found - truth).norm() / truth.norm()).item(), rel=0.01)
