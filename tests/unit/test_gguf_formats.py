"""GGUF's types: ggml's bytes, bit for bit, and what every format promises to the solvers."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_gptq import observed

import quantize
from quantwatt.allocate import allocation
from quantwatt.artifacts.errors import DataError
from quantwatt.config.experiment import ConfigurationError, complete_method
from quantwatt.formats.quantized_weight import (
    QuantizedWeight,
    fit_groups,
    load_format,
    quantize_to_nearest,
    stored_bits,
)
from quantwatt.quantize.layer_plan import LayerPlan
from quantwatt.quantize.observers import Observers
from quantwatt.quantize.solvers import gptq, hqq, qronos, rtn
from quantwatt.quantize.solvers.adaround import RoundedLinear

TYPES = ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl"]
BITS = {"q8_0": 8.5, "q4_0": 4.5, "q4_1": 5, "q5_0": 5.5, "q5_1": 6, "q2_k": 2.625, "q3_k": 3.4375, "q4_k": 4.5,
        "q5_k": 5.5, "q6_k": 6.5625, "iq4_nl": 4.5}  # fmt: skip
RECORDED = load_file(Path(__file__).parents[1] / "peers/ggml.safetensors")  # record_ggml.py
EVERY_TYPE = pytest.mark.parametrize("name", TYPES)


def format_of(name):
    return load_format(complete_method({"weights": {"format": name}}, "test", name)["weights"])


def blocks_of(quantized, weight_format):
    state = quantized.state(weight_format)
    assert state.keys() == {"codes"}
    return state["codes"]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Against ggml


@EVERY_TYPE
def test_rounding_gives_the_blocks_of_ggml(name):
    weight_format = format_of(name)
    found = blocks_of(quantize_to_nearest(RECORDED["weight"], weight_format), weight_format)
    assert torch.equal(found, RECORDED[name])


@EVERY_TYPE
def test_blocks_are_read_as_gguf_reads_them(name):
    gguf = pytest.importorskip("gguf")
    weight_format, blocks = format_of(name), RECORDED[name]
    restored = QuantizedWeight.from_state({"codes": blocks}, weight_format, RECORDED["weight"].shape[1])
    expected = gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[weight_format.TYPE])
    assert np.array_equal(restored.dequantize(weight_format).numpy(), expected)
    assert torch.equal(blocks_of(restored, weight_format), blocks)


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1"])
def test_rounding_gives_the_blocks_of_the_gguf_package(name):
    gguf = pytest.importorskip("gguf")
    weight_format, weight = format_of(name), normal(300, 320, seed=3) ** 3
    expected = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType[weight_format.TYPE])
    assert np.array_equal(blocks_of(quantize_to_nearest(weight, weight_format), weight_format).numpy(), expected)


@EVERY_TYPE
def test_a_block_has_the_size_that_gguf_says(name):
    gguf = pytest.importorskip("gguf")
    weight_format = format_of(name)
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[weight_format.TYPE]]
    assert (weight_format.BLOCK, weight_format.row_bytes(block)) == (block, size)


@EVERY_TYPE
def test_the_size_is_that_of_the_blocks(name):
    weight_format = format_of(name)
    assert stored_bits(10, 512, weight_format) == BITS[name] == RECORDED[name].shape[1] * 8 / 512


# What solvers need


def grid_values(weight_format, scale, zero):
    """All values of one group's codes, ascending."""
    return weight_format.decode(torch.arange(2**weight_format.bits, dtype=torch.uint8), scale, zero).unique()


def groups(weight_format, weight):
    """(values of a group, its scale, its zero point) of all groups, each a vector of one row."""
    scale, zero = fit_groups(weight, weight_format)
    for row in range(len(weight)):
        for group, part in enumerate(weight[row].split(weight_format.GROUP)):
            yield part, scale[row, group], None if zero is None else zero[row, group]


@EVERY_TYPE
def test_codes_are_the_nearest_and_the_neighbours(name):
    weight_format, negative = format_of(name), 0
    for part, scale, zero in groups(weight_format, normal(3, 512, seed=1)):
        grid, negative = grid_values(weight_format, scale, zero).numpy(), negative + (scale < 0).item()
        values = np.linspace(2 * grid[0] - grid[-1], 2 * grid[-1] - grid[0], 333, dtype=np.float32)
        values = torch.from_numpy(np.append(values, part.numpy()))
        apart = np.abs(values.numpy()[:, None] - grid).min(axis=1)
        nearest = weight_format.decode(weight_format.encode(values, scale, zero), scale, zero)
        step = np.diff(grid).max()
        np.testing.assert_allclose((nearest - values).abs().numpy(), apart, atol=1e-5 * step)
        assert torch.equal(weight_format.snap(values, scale, zero), nearest)
        inner = apart > 1e-4 * step  # on which side of its own point a value lies is a matter of rounding
        low, high = (weight_format.decode(c, scale, zero) for c in weight_format.bracket(values, scale, zero))
        above = np.searchsorted(grid, values.numpy())
        assert np.array_equal(low.numpy()[inner], grid[np.maximum(above - 1, 0)][inner])
        assert np.array_equal(high.numpy()[inner], grid[np.minimum(above, len(grid) - 1)][inner])
    if weight_format.minima or name == "q8_0":
        assert not negative
    else:
        assert negative


@EVERY_TYPE
def test_a_bracket_of_a_grid_point_starts_at_it(name):
    weight_format = format_of(name)
    codes = torch.arange(1, 2**weight_format.bits - 1, dtype=torch.uint8)
    zero = torch.tensor(-0.5) if weight_format.minima else None
    for scale in (torch.tensor(0.5), torch.tensor(-0.5)):
        low, high = weight_format.bracket(weight_format.decode(codes, scale, zero), scale, zero)
        assert torch.equal(low, codes) and torch.equal(high, codes + (1 if scale > 0 else -1))


@EVERY_TYPE
def test_zero_rows_stay_zero_and_a_nan_shows_in_its_own_block_only(name):
    weight_format, weight = format_of(name), normal(4, 512)
    weight[0] = 0
    whole = quantize_to_nearest(weight, weight_format).dequantize(weight_format)
    weight[1, 300] = float("nan")
    quantized = quantize_to_nearest(weight, weight_format)
    restored = QuantizedWeight.from_state(quantized.state(weight_format), weight_format, 512)
    broken = torch.zeros(4, 512, dtype=torch.bool)
    start = 300 // weight_format.BLOCK * weight_format.BLOCK
    broken[1, start : start + weight_format.BLOCK] = True
    assert (whole[0] == 0).all()
    for values in (quantized.dequantize(weight_format), restored.dequantize(weight_format)):
        assert values[broken].isnan().all() and torch.equal(values[~broken], whole[~broken])


@EVERY_TYPE
def test_any_grid_becomes_one_that_a_block_stores(name):
    weight_format, weight = format_of(name), normal(6, 256, seed=2)
    grid = fit_groups(weight, weight_format)
    groups = grid[0].reshape(-1, weight_format.BLOCK // weight_format.GROUP).shape
    zero = normal(*groups, seed=5) if weight_format.minima else None
    stored = weight_format.stored_grid(normal(*groups, seed=4).abs() * 3, zero)
    again = weight_format.stored_grid(*stored)
    assert torch.equal(stored[0], again[0])
    fields = weight_format.grid_fields(*stored)
    for found, wanted in zip(weight_format.grid_of(fields), stored, strict=True):
        assert wanted is None if found is None else torch.equal(found, wanted)


@EVERY_TYPE
def test_refit_does_not_fit_worse(name):
    weight_format, weight = format_of(name), normal(8, 256, seed=6) ** 3
    width = weight_format.fit_width(256)
    part = weight.reshape(-1, width)
    grid = weight_format.fit(part)
    quantized = QuantizedWeight(weight_format.quantize(part)[0], *grid)
    target = 0.9 * part + (0.1 if weight_format.minima else 0)
    found = weight_format.refit(quantized.codes, target, *grid)
    before = (quantized.dequantize(weight_format) - target).norm()
    after = (dataclasses.replace(quantized, scale=found[0], zero=found[1]).dequantize(weight_format) - target).norm()
    assert after < before
    state = dataclasses.replace(quantized, scale=found[0], zero=found[1]).state(weight_format)
    restored = QuantizedWeight.from_state(state, weight_format, width)
    assert torch.equal(restored.scale, found[0])
    empty = weight_format.refit(quantized.codes, torch.zeros_like(part), *grid)
    assert all(part.isfinite().all() for part in empty if part is not None)


def test_another_grid_is_not_packed_silently():
    weight_format = format_of("q4_k")
    quantized = quantize_to_nearest(normal(1, 256), weight_format)
    with pytest.raises(ValueError, match="no scales of a block"):
        dataclasses.replace(quantized, scale=quantized.scale * 1.01).state(weight_format)


# Solvers

COLUMN = {"damping": 0.01, "block_size": 128, "held_out": 0.0}


def correlated(columns=512, rows=12, tokens=2000):
    generator = torch.Generator().manual_seed(7)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(tokens, columns, generator=generator) @ mixing
    return torch.randn(rows, columns, generator=generator), inputs


def output_error(weight, inputs, quantized, weight_format):
    """Relative error of the outputs, with the weight as it comes back from a checkpoint."""
    restored = QuantizedWeight.from_state(quantized.state(weight_format), weight_format, weight.shape[1])
    assert torch.equal(restored.dequantize(weight_format), quantized.dequantize(weight_format))
    outputs = inputs @ weight.T
    return ((inputs @ restored.dequantize(weight_format).T - outputs).norm() / outputs.norm()).item()


@pytest.mark.parametrize(("act_order", "static_groups"), [(True, True), (False, False), (True, False)])
@EVERY_TYPE
def test_gptq_beats_rounding_in_every_type(name, act_order, static_groups):
    weight, inputs = correlated()
    weight_format, statistics = format_of(name), observed(inputs)
    solver = gptq.Solver(**COLUMN, act_order=act_order, static_groups=static_groups)
    solved = solver.solve(weight, weight_format, statistics).weight
    rounded = rtn.Solver().solve(weight, weight_format).weight
    found, plain = (output_error(weight, inputs, part, weight_format) for part in (solved, rounded))
    assert found < 0.9 * plain
    assert (solved.group_index is not None) == (act_order and not static_groups)


@EVERY_TYPE
def test_qronos_corrects_in_every_type(name):
    weight, inputs = correlated()
    seen = inputs + 0.1 * normal(*inputs.shape, seed=9)
    statistics = Observers.new(qronos.Solver.NEEDS, inputs.shape[1])
    statistics.observe(seen, inputs)
    weight_format = format_of(name)
    solver = qronos.Solver(alpha=1e-6, act_order=True, static_groups=True, block_size=128)
    solved = solver.solve(weight, weight_format, statistics).weight
    rounded = quantize_to_nearest(weight, weight_format)
    target = inputs @ weight.T
    found, plain = ((seen @ q.dequantize(weight_format).T - target).norm() for q in (solved, rounded))
    assert found < 0.95 * plain


@EVERY_TYPE
def test_hqq_keeps_to_grids_that_blocks_store(name):
    weight = normal(16, 512, seed=8) ** 3
    weight_format = format_of(name)
    solver = hqq.Solver(p=0.7, beta=10, growth=1.01, iterations=20)
    solved, rounded = solver.solve(weight, weight_format).weight, quantize_to_nearest(weight, weight_format)
    restored = QuantizedWeight.from_state(solved.state(weight_format), weight_format, 512)
    assert torch.equal(restored.dequantize(weight_format), solved.dequantize(weight_format))
    errors = [(q.dequantize(weight_format) - weight).abs().sum() for q in (solved, rounded)]
    assert errors[0] < 1.25 * errors[1]


@EVERY_TYPE
def test_trained_rounding_starts_from_the_nearest_values(name):
    """BRECQ's layers: between the neighbours at the weight, and rounded to the nearer."""
    weight_format, weight = format_of(name), normal(6, 512, seed=10)
    rows = {"layer": slice(0, 6)}
    plan = LayerPlan(rows, {"layer": None}, {}, None, weight_format, None, weight, weight, torch.float32)
    layer = RoundedLinear(plan)
    scale, zero = (None if part is None else part.repeat_interleave(weight_format.GROUP, 1)
                   for part in fit_groups(weight, weight_format))  # fmt: skip
    inside = weight.clamp(layer.low, layer.low + layer.gap)
    torch.testing.assert_close(layer._weight(), inside, atol=1e-5, rtol=0)
    layer.fix_rounding()
    assert (layer.weight - weight_format.snap(weight, scale, zero)).abs().max() < 1e-6


# Layers that blocks do not divide


def layers(**columns):
    return {name: {"in_features": count, "out_features": 8} for name, count in columns.items()}


@pytest.mark.parametrize(
    ("name", "fallback"), [("q2_k", "iq4_nl"), ("q3_k", "iq4_nl"), ("q4_k", "q5_0"), ("q5_k", "q5_1"), ("q6_k", "q8_0")]
)
def test_layers_fall_back_as_in_llama_cpp(name, fallback, capsys):
    method = complete_method({"weights": {"format": name}}, "test", name)
    found = allocation.allocate(layers(wide=512, narrow=96), method, "mine")
    assert [found[layer]["weights"]["format"] for layer in ("wide", "narrow")] == [name, fallback]
    complete = complete_method({"weights": {"format": fallback}}, "test", name)["weights"]
    assert found["narrow"]["weights"] == complete
    said = capsys.readouterr().err
    assert all(word in said for word in ("methods.mine", "1 of 2 layers", name, fallback, "narrow: 96")), said
    quantize.check_agreement(found, method, "mine.json")  # it is the method's own
    assert allocation.allocate(layers(wide=512), method, "mine") and not capsys.readouterr().err


def test_a_layer_that_no_type_holds_is_refused_and_can_be_excluded():
    method = complete_method({"weights": {"format": "q4_k"}}, "test", "m")
    with pytest.raises(DataError, match=r"methods\.m\.weights: .*blocks of 256 .* 72 inputs of layer odd; exclude"):
        allocation.allocate(layers(wide=256, odd=72), method, "m")
    method["allocation"]["exclude"] = ["odd"]
    assert list(allocation.allocate(layers(wide=256, odd=72), method, "m")) == ["wide"]


def test_a_candidate_that_does_not_fit_a_layer_is_refused():
    candidates = {"four": {"weights": {"format": "q4_k", "bits": 4}}, "float": {"weights": None}}
    entry = {"transforms": [], "exclude": [], "candidates": candidates}
    assert list(allocation.tried(layers(wide=256), entry, "s")) == ["wide"]
    with pytest.raises(DataError, match=r"sensitivities\.s\.candidates\.four\.weights: .* narrow; a candidate q5_0"):
        allocation.tried(layers(wide=256, narrow=128), entry, "s")


def test_a_row_that_is_no_multiple_of_a_block_is_refused():
    with pytest.raises(DataError, match="Q8_0 stores blocks of 32 inputs, and 16 are left of a row"):
        quantize_to_nearest(normal(2, 48), format_of("q8_0"))


def test_an_override_takes_another_type():
    overrides = {"*.ff.*": {"weights": {"format": "q6_k"}}}
    entry = {"weights": {"format": "q4_k"}, "allocation": {"name": "uniform", "overrides": overrides}}
    completed = complete_method(entry, "mine.yaml", "methods.m")["allocation"]["overrides"]["*.ff.*"]["weights"]
    assert completed == {"format": "q6_k", "bits": 6}


@pytest.mark.parametrize(("wrong", "words"), [("gguf", "write the type"), ("q4_k_m", "write q4_k"), ("q4k", "q4_k")])
def test_other_spellings_are_understood(wrong, words):
    with pytest.raises(ConfigurationError, match=words):
        complete_method({"weights": {"format": wrong}}, "mine.yaml", "methods.m")
