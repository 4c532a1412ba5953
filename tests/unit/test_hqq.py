"""HQQ against recordings of its authors' package (tests/peers/record_hqq.py), and its properties in every format."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from quantwatt.formats.quantized_weight import load_format, quantize_to_nearest
from quantwatt.quantize.solvers import hqq

RECORDED = Path(__file__).parents[1] / "peers" / "hqq.safetensors"
SETTINGS = {"p": 0.7, "beta": 10, "growth": 1.01, "iterations": 20}
GROWTH = {"0.2.6": 1.01, "0.2.8.post1": 1}  # the newer version leaves β as it is


def integer(bits, **options):
    settings = {"granularity": "group", "group_size": 64, "symmetric": False, **options}
    return load_format({"format": "integer", "bits": bits, **settings})


FORMATS = {
    "integer zero": integer(3),
    "float zero": integer(3, zero_point="float"),
    "symmetric": integer(4, symmetric=True),
    "per channel": integer(4, granularity="channel", group_size=None, symmetric=True),
    "per tensor": integer(4, granularity="tensor", group_size=None),
    "nf4": load_format({"format": "nf4", "group_size": 64}),
    "fp4": load_format({"format": "fp4", "group_size": 64}),
}


def heavy_tails(rows=48, columns=192, seed=0):
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(4, rows, columns, generator=generator)
    return normal[0] / normal[1:].square().mean(dim=0).sqrt()


@pytest.mark.parametrize("version", GROWTH)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("name", ["normal", "tails", "shifted"])
def test_codes_equal_the_packages(name, bits, version):
    recorded = load_file(RECORDED)
    weight = recorded[f"{name}.weight"]
    codes, scale, zero = (recorded[f"{version}.{name}.{bits}.{part}"] for part in ("codes", "scale", "zero"))
    group = torch.arange(192) // 64
    theirs = (codes - zero[:, group]) * scale[:, group]
    weight_format = integer(bits, zero_point="float")
    quantized = hqq.Solver(**{**SETTINGS, "growth": GROWTH[version]}).solve(weight, weight_format).weight
    ours = quantized.dequantize(weight_format)
    assert (quantized.codes == codes).float().mean() >= 0.999
    assert (weight - ours).norm().item() == pytest.approx((weight - theirs).norm().item(), rel=1e-3)
    assert torch.allclose(quantized.scale, scale, rtol=1e-5)


def test_the_recordings_tell_a_growing_beta_from_a_constant_one():
    recorded = load_file(RECORDED)
    differing = [recorded[f"0.2.6.tails.{b}.codes"] != recorded[f"0.2.8.post1.tails.{b}.codes"] for b in (2, 3, 4)]
    assert all(d.float().mean() > 0.001 for d in differing)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FORMATS)
def test_error_is_below_rounding_in_every_format(name, seed):
    weight, weight_format = heavy_tails(seed=seed), FORMATS[name]
    found = hqq.Solver(**SETTINGS).solve(weight, weight_format).weight
    error = (weight - found.dequantize(weight_format)).abs()
    rounding = (weight - quantize_to_nearest(weight, weight_format).dequantize(weight_format)).abs()
    assert error.pow(0.7).sum() < rounding.pow(0.7).sum()


@pytest.mark.parametrize("beta", [2.0, 10.0])
def test_shrink(beta):
    values = torch.tensor([-3.0, -1.0, 0.01, 0.3, 2.0, 0.0])
    candidates = torch.linspace(-4, 4, 80_001, dtype=torch.float64)
    objective = candidates.abs() + beta / 2 * (values[:, None] - candidates) ** 2  # at p = 1 the closed form is exact
    assert torch.allclose(hqq.shrink(values, beta, 1.0).double(), candidates[objective.argmin(dim=1)], atol=2e-4)
    for p in (0.2, 0.5, 0.7):
        expected = [v and max(abs(v) - abs(v) ** (p - 1) / beta, 0) * (1 if v > 0 else -1) for v in values.tolist()]
        assert torch.allclose(hqq.shrink(values, beta, p), torch.tensor(expected), atol=1e-6)


def test_outliers_are_left_out_of_the_fit():
    """62 of 64 values stand on a grid that is shifted by 0.2 against the two that hold the range's ends."""
    weight = torch.arange(64)[None] % 14 + 1.2
    weight[0, 20], weight[0, 40] = 0, 15
    weight_format = integer(4, zero_point="float")
    settled = hqq.Solver(**{**SETTINGS, "beta": 100}).solve(weight, weight_format).weight
    assert settled.scale.item() == 1 and settled.zero.item() == pytest.approx(-0.2, abs=1e-3)
    _, least_squares = weight_format.refit(settled.codes, weight, settled.scale, settled.zero)
    assert least_squares.item() == pytest.approx(-0.2 * 62 / 64, abs=1e-4)


@pytest.mark.parametrize("name", FORMATS)
def test_odd_shapes_zero_rows_and_nan(name):
    weight_format = FORMATS[name]
    for columns in (1, 160):
        weight = heavy_tails(columns=columns)
        quantized = hqq.Solver(**SETTINGS).solve(weight, weight_format).weight
        assert quantized.codes.shape == weight.shape
        assert quantized.dequantize(weight_format).isfinite().all()
    assert (hqq.Solver(**SETTINGS).solve(torch.zeros(4, 64), weight_format).weight.dequantize(weight_format) == 0).all()
    if name == "per tensor":
        return
    weight[1, 3] = float("nan")
    values = hqq.Solver(**SETTINGS).solve(weight, weight_format).weight.dequantize(weight_format)
    assert values[1, 3].isnan() and values[[0, 2]].isfinite().all()


def test_it_stops_where_the_error_no_longer_falls(monkeypatch):
    weight_format, calls = integer(4, zero_point="float"), []
    refit = type(weight_format).refit
    monkeypatch.setattr(type(weight_format), "refit", lambda *args: calls.append(1) or refit(*args))
    on_the_grid = torch.arange(64.0)[None] % 16  # no error, and so never a smaller one
    hqq.Solver(**SETTINGS).solve(on_the_grid, weight_format)
    assert len(calls) == 2
    calls.clear()
    hqq.Solver(**{**SETTINGS, "iterations": 3}).solve(heavy_tails(columns=128), weight_format)
    assert len(calls) == 3
