"""Formats: grids, packing, and codes against bitsandbytes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantwatt.formats import QuantizedWeight, load_format, quantize_to_nearest, stored_bits
from quantwatt.formats.packing import pack, packed_bytes, unpack


def integer(bits, granularity="channel", group_size=None, symmetric=False):
    return load_format(
        {
            "format": "integer",
            "bits": bits,
            "granularity": granularity,
            "group_size": group_size,
            "symmetric": symmetric,
        }
    )


@given(bits=st.integers(1, 8), rows=st.integers(1, 5), columns=st.integers(1, 70), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_packing_returns_the_codes_in_the_least_number_of_bytes(bits, rows, columns, seed):
    codes = torch.randint(2**bits, (rows, columns), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    packed = pack(codes, bits)
    assert packed.shape == (rows, -(-columns * bits // 8)) == (rows, packed_bytes(columns, bits))
    assert torch.equal(unpack(packed, bits, columns), codes)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    ("granularity", "group_size"), [("tensor", None), ("channel", None), ("group", 64), ("group", 48)]
)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_integer_error_is_at_most_half_a_step(bits, granularity, group_size, symmetric):
    weight = torch.randn(7, 160, generator=torch.Generator().manual_seed(bits))
    weight_format = integer(bits, granularity, group_size, symmetric)
    quantized = quantize_to_nearest(weight, weight_format)
    groups = {"tensor": 1, "channel": 1, "group": -(-160 // (group_size or 1))}[granularity]
    assert quantized.scale.shape == (7, groups)
    column_group = torch.arange(160) // weight_format.group_size(160)
    step = quantized.scale[:, column_group]
    # An asymmetric zero point is itself rounded, which shifts the grid's ends by up to half a step.
    bound = 0.5 if symmetric else 1.0
    assert ((weight - quantized.dequantize(weight_format)).abs() <= bound * step * (1 + 1e-5)).all()


def test_integer_grid_holds_zero_and_per_tensor_has_one_scale():
    weight = torch.rand(4, 32, generator=torch.Generator().manual_seed(0)) + 1
    weight[:, 0] = 0
    quantized = quantize_to_nearest(weight, integer(4))
    assert (quantized.dequantize(integer(4))[:, 0] == 0).all()
    assert len(quantize_to_nearest(weight, integer(4, "tensor")).scale.unique()) == 1


def test_zero_weights_stay_zero():
    for weight_format in (integer(4), integer(8, symmetric=True), load_format({"format": "nf4", "block": 64})):
        assert (quantize_to_nearest(torch.zeros(3, 64), weight_format).dequantize(weight_format) == 0).all()


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_codes_equal_bitsandbytes(name):
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(24, 192, generator=torch.Generator().manual_seed(3))
    weight_format = load_format({"format": name, "block": 64})
    quantized = quantize_to_nearest(weight, weight_format)
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type=name)
    assert torch.equal(quantized.scale.reshape(-1), state.absmax)
    theirs = unpack(packed.reshape(24, -1), 4, 192)
    # Equal values have two codes in FP4 (plus and minus zero), so values are compared.
    column_group = torch.arange(192) // 64
    assert torch.equal(
        weight_format.decode(theirs, quantized.scale[:, column_group], None), quantized.dequantize(weight_format)
    )


def test_state_has_the_formats_size():
    weight_format = integer(3, "group", 64)
    quantized = quantize_to_nearest(torch.randn(10, 128), weight_format)
    state = quantized.state(weight_format)
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert size * 8 == stored_bits(10, 128, weight_format) * 1280
    assert state["codes"].numel() == 10 * 128 * 3 // 8
    again = QuantizedWeight.from_state(state, weight_format, 128)
    assert torch.equal(again.dequantize(weight_format), quantized.dequantize(weight_format))
