"""float8, MX and NVFP4 weights: bit for bit torchao's, packed at their size, with the best scales there are."""

import itertools

import pytest
import torch
from torchao.prototype.mx_formats import mx_tensor, nvfp4_tensor
from torchao.prototype.mx_formats.config import ScaleCalculationMode as Mode
from torchao.prototype.mx_formats.constants import DTYPE_FP6_E2M3, DTYPE_FP6_E3M2
from torchao.prototype.mx_formats.kernels import unpack_uint4
from torchao.quantization import quant_primitives

from quantwatt.config.experiment import complete_method
from quantwatt.formats.microscaling import block_scale, decode_e8m0, encode_e8m0
from quantwatt.formats.minifloat import ELEMENTS
from quantwatt.formats.quantized_weight import (
    QuantizedWeight,
    fit_groups,
    load_format,
    quantize_to_nearest,
    stored_bits,
)

MX = {  # {(format, element): torchao's type}
    ("mxfp8", "e4m3"): torch.float8_e4m3fn,
    ("mxfp8", "e5m2"): torch.float8_e5m2,
    ("mxfp6", "e2m3"): DTYPE_FP6_E2M3,
    ("mxfp6", "e3m2"): DTYPE_FP6_E3M2,
    ("mxfp4", "e2m1"): torch.float4_e2m1fn_x2,
}
ROUNDINGS = {"floor": Mode.FLOOR, "even": Mode.EVEN, "up": Mode.RCEIL}
FLOAT8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
EVERY = {
    **{f"{name} {element}": {"format": name, "element": element} for name, element in MX},
    "mxfp4 floor": {"format": "mxfp4", "scale_rounding": "floor"},
    "nvfp4": {"format": "nvfp4"},
    "nvfp4 up": {"format": "nvfp4", "scale_rounding": "up"},
    **{f"float8 {name}": {"format": "float8", "granularity": name} for name in ("tensor", "channel", "block")},
    "float8 e5m2": {"format": "float8", "element": "e5m2"},
}


def format_of(**entry):
    return load_format(complete_method({"weights": entry}, "mine.yaml", "methods.m")["weights"])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hard(dtype, block):
    """A weight of many magnitudes: blocks of zeros, of one value, of powers of two and their neighbours, of ties."""
    random = normal(64, 8 * block) * torch.exp2(8 * normal(64, 1, seed=1))
    of_blocks = normal(48, 8 * block) * torch.exp2(4 * normal(48, 8, seed=2)).repeat_interleave(block, dim=1)
    powers = torch.exp2(torch.arange(-60, 60).float())[:, None]
    edges = torch.cat([powers, powers * (1 + 2**-7), powers * (1 - 2**-8), 7 * powers], dim=0)
    single = torch.zeros(len(edges), block)
    single[:, 3:4] = edges
    ties = powers * torch.arange(-block // 2, block // 2) / 4
    blocks = torch.cat([single, -single, ties, torch.zeros(8 + (-len(ties) % 8), block)])
    return torch.cat([random, of_blocks, blocks.reshape(-1, 8 * block)]).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(("name", "element"), MX)
def test_mx_codes_scales_and_values_are_torchaos_bit_for_bit(name, element, rounding, dtype):
    weight, kind = hard(dtype, 32), MX[name, element]
    scale, data = mx_tensor.to_mx(weight, kind, 32, ROUNDINGS[rounding])
    codes = unpack_uint4(data) if name == "mxfp4" else data.view(torch.uint8)
    weight_format = format_of(format=name, element=element, scale_rounding=rounding)
    quantized = quantize_to_nearest(weight.float(), weight_format)
    assert torch.equal(quantized.state(weight_format)["scale"], scale.view(torch.uint8))
    assert torch.equal(quantized.codes, codes)
    values = mx_tensor.to_dtype(data, scale, kind, 32, torch.float32)
    assert torch.equal(quantized.dequantize(weight_format), values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nvfp4_codes_scales_and_values_are_torchaos_bit_for_bit(dtype):
    weights = [hard(dtype, 16), normal(32, 64).to(dtype), (torch.arange(-256, 256).reshape(8, 64) / 8).to(dtype)]
    for weight, factor in itertools.product(weights, (1.0, 0.37, 1e-6)):
        weight = (weight * factor).to(dtype)
        tensor_scale = nvfp4_tensor.per_tensor_amax_to_scale(weight.abs().amax())
        scale, data = nvfp4_tensor.nvfp4_quantize(weight, per_tensor_scale=tensor_scale)
        weight_format = format_of(format="nvfp4")
        quantized = quantize_to_nearest(weight.float(), weight_format)
        state = quantized.state(weight_format)
        assert torch.equal(state["tensor_scale"], tensor_scale[None])
        assert torch.equal(state["scale"], scale.view(torch.uint8).reshape(state["scale"].shape))
        assert torch.equal(quantized.codes, unpack_uint4(data).reshape(weight.shape))
        library = nvfp4_tensor.NVFP4Tensor.to_nvfp4(weight, per_tensor_scale=tensor_scale)
        assert torch.equal(quantized.dequantize(weight_format), library.dequantize(torch.float32))


@pytest.mark.parametrize("element", FLOAT8)
@pytest.mark.parametrize(
    ("granularity", "block"), [("tensor", [256, 384]), ("channel", [1, 384]), ("block", [128, 128])]
)
def test_float8_codes_and_scales_are_torchaos_bit_for_bit(element, granularity, block):
    weight = normal(256, 384) * torch.exp2(3 * normal(256, 1, seed=1))
    weight_format = format_of(format="float8", element=element, granularity=granularity)
    quantized = quantize_to_nearest(weight, weight_format)
    scale = quant_primitives._choose_scale_float8(weight, block, FLOAT8[element])
    codes = quant_primitives._quantize_affine_float8(weight, scale, FLOAT8[element])
    assert torch.equal(quantized.state(weight_format)["scale"], scale.reshape(256 // block[0], 384 // block[1]))
    assert torch.equal(quantized.codes, codes.view(torch.uint8))
    values = quant_primitives._dequantize_affine_float8(codes, scale)
    assert torch.equal(quantized.dequantize(weight_format), values)


@pytest.mark.parametrize("element", ELEMENTS.values(), ids=ELEMENTS)
def test_only_scales_rounded_up_clip_nothing(element):
    largest = torch.cat([torch.exp2(torch.linspace(-100, 100, 4001)), torch.tensor([element.largest])])
    floor, up = (block_scale(largest, element, rounding) for rounding in ("floor", "up"))
    assert (largest / up <= element.largest).all() and (largest / up > element.largest / 2).all()
    assert (largest / floor > element.largest).any() and (up / floor).unique().tolist() == [1, 2]
    assert (torch.frexp(torch.cat([floor, up])).mantissa == 0.5).all()
    assert block_scale(torch.tensor([torch.nan, torch.inf]), element, "up").isnan().all()


def test_nvfp4_scales_rounded_up_clip_nothing():
    weight = normal(64, 256) * torch.exp2(normal(64, 1, seed=1))
    overflow = {}
    for rounding in ("nearest", "up"):
        scale, _ = fit_groups(weight, format_of(format="nvfp4", scale_rounding=rounding))
        overflow[rounding] = (weight.abs() / scale.repeat_interleave(16, dim=1)).max().item()
    assert overflow["up"] < 6 * (1 + 1e-6) < 6.1 < overflow["nearest"]


def test_scales_of_8_bits_are_those_of_torch():
    codes = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(decode_e8m0(codes)[:255], torch.exp2(torch.arange(-127, 128).float()))
    assert decode_e8m0(codes)[255].isnan() and torch.equal(encode_e8m0(decode_e8m0(codes)), codes)


SIZES = {  # bits of a weight of 256 × 320
    "mxfp8 e4m3": 8 + 8 / 32, "mxfp6 e3m2": 6 + 8 / 32, "mxfp4 e2m1": 4 + 8 / 32,
    "nvfp4": 4 + 8 / 16 + 32 / (256 * 320),
    "float8 tensor": 8 + 32 / (256 * 320), "float8 channel": 8 + 32 / 320, "float8 block": 8 + 2 * 3 * 32 / (256 * 320),
}  # fmt: skip


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("shape", [(256, 320), (130, 200), (3, 7), (1, 1)], ids=str)
def test_a_checkpoint_holds_the_formats_size_and_gives_the_same_values(kind, shape):
    weight_format, weight = format_of(**EVERY[kind]), normal(*shape)
    quantized = quantize_to_nearest(weight, weight_format)
    state = quantized.state(weight_format)
    size = 8 * sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert size == pytest.approx(stored_bits(*shape, weight_format) * weight.numel())
    assert shape != (256, 320) or kind not in SIZES or size / weight.numel() == pytest.approx(SIZES[kind])
    again = QuantizedWeight.from_state(state, weight_format, shape[1])
    assert torch.equal(again.codes, quantized.codes) and torch.equal(again.scale, quantized.scale)
    assert torch.equal(again.dequantize(weight_format), quantized.dequantize(weight_format))
    part = quantized.rows(0, 1)
    assert torch.equal(part.dequantize(weight_format), quantized.dequantize(weight_format)[:1])
    assert (quantized.dequantize(weight_format) - weight).norm() < 0.2 * weight.norm()


@pytest.mark.parametrize("kind", [kind for kind in EVERY if kind != "float8 tensor"])
def test_a_last_block_that_is_narrower_is_as_if_padded_with_zeros(kind):
    weight_format, weight = format_of(**EVERY[kind]), normal(200, 150)
    padded = torch.nn.functional.pad(weight, (0, 256 - 150, 0, 256 - 200))
    expected = quantize_to_nearest(padded, weight_format).dequantize(weight_format)[:200, :150]
    assert torch.equal(quantize_to_nearest(weight, weight_format).dequantize(weight_format), expected)


@pytest.mark.parametrize("kind", EVERY)
def test_zeros_stay_zero_and_leave_the_others_alone(kind):
    weight_format, weight = format_of(**EVERY[kind]), normal(130, 160)
    weight[5], weight[:, :32] = 0, 0
    values = quantize_to_nearest(weight, weight_format).dequantize(weight_format)
    assert not values[5].any() and not values[:, :32].any() and values.isfinite().all()
    assert (values[6] - weight[6]).norm() < 0.2 * weight[6].norm()
    assert not quantize_to_nearest(torch.zeros(4, 64), weight_format).dequantize(weight_format).any()


@pytest.mark.parametrize("kind", EVERY)
def test_a_nan_or_infinity_shows_in_its_block(kind):
    for bad in (torch.nan, torch.inf):
        weight_format, weight = format_of(**EVERY[kind]), normal(4, 96)
        weight[1, 40] = bad
        values = quantize_to_nearest(weight, weight_format).dequantize(weight_format)
        assert not values[1, 32:64].isfinite().all()


@pytest.mark.parametrize("kind", EVERY)
def test_coding_is_elementwise_and_snapping_is_both_ways(kind):
    weight = normal(150, 96)
    weight_format = format_of(**EVERY[kind]).bound(weight)
    scale, zero = fit_groups(weight, weight_format)
    group = torch.arange(96) // weight_format.group_width(96)
    grid = scale[:, group], zero
    codes = weight_format.encode(weight, *grid)
    decoded = weight_format.decode(codes, *grid)
    assert torch.equal(weight_format.snap(weight, *grid), decoded)
    for column in (0, 33, 95):
        own = scale[:, group[column]]
        assert torch.equal(weight_format.snap(weight[:, column], own, None), decoded[:, column])
        assert torch.equal(weight_format.encode(weight[:, column], own, None), codes[:, column])
    again = weight_format.encode(decoded, *grid)
    assert torch.equal(weight_format.decode(again, *grid), decoded)
    low, high = (weight_format.decode(side, *grid) for side in weight_format.bracket(weight, *grid))
    assert (low <= high).all() and ((decoded == low) | (decoded == high)).all()


@pytest.mark.parametrize("kind", EVERY)
def test_refitting_finds_the_best_scale_that_can_be_stored(kind):
    weight = normal(140, 32) ** 3
    weight_format = format_of(**EVERY[kind]).bound(weight)
    width = weight_format.group_width(32)
    weight, whole = weight[:, :width], weight
    scale, _ = weight_format.fit(weight)
    codes, target = weight_format.encode(weight, scale, None), 0.7 * weight + 0.3 * scale
    found, none = weight_format.refit(codes, target, scale, None)
    assert none is None and found.shape == scale.shape and (found > 0).all()
    levels = weight_format.decode(codes, 1.0, None)

    def errors(scales):
        rows = (target - levels * scales).double().square().sum(dim=1)
        if kind in ("float8 tensor", "float8 block"):
            size = 140 if kind.endswith("tensor") else 128
            return torch.stack([part.sum() for part in rows.split(size)])
        return rows

    best = errors(found)
    if kind.startswith("mxfp"):
        others = [torch.full_like(scale, 2.0**exponent) for exponent in range(-16, 8)]
    elif kind.startswith("nvfp4"):
        stored = ELEMENTS["e4m3"].values()[8:127]  # normal numbers
        others = [value * weight_format.tensor_scale.expand_as(scale) for value in stored]
    else:
        others = [found * factor for factor in (0.9, 0.999, 1.001, 1.1)]
    for other in others:
        assert (best <= errors(other) * (1 + 1e-5) + 1e-12).all()
    kept, _ = weight_format.refit(codes, torch.zeros_like(target), scale, None)
    assert torch.equal(kept, scale) and whole.shape == (140, 32)


def test_blocks_of_float8_share_a_scale_over_rows_and_inputs():
    weight = normal(300, 200) * torch.arange(1, 301)[:, None]
    scale, _ = fit_groups(weight, format_of(format="float8", granularity="block"))
    assert scale.shape == (300, 2)
    for rows, columns in itertools.product((slice(0, 128), slice(128, 256), slice(256, 300)), (0, 1)):
        block = weight[rows, 128 * columns : 128 * columns + 128]
        assert (scale[rows, columns] == block.abs().max() / 448).all()


def test_nvfp4_asks_for_the_weight_that_its_scale_belongs_to():
    weight_format, weight = format_of(format="nvfp4"), normal(4, 32)
    with pytest.raises(ValueError, match="bind the format"):
        weight_format.fit(weight[:, :16])
    bound = weight_format.bound(weight)
    assert bound.bound(2 * weight) is bound and bound == weight_format
    whole = quantize_to_nearest(weight, weight_format)
    with pytest.raises(ValueError, match="with the scale of its tensor"):
        QuantizedWeight(whole.codes, whole.scale, None).state(weight_format)
