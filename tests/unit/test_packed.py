"""Packed weights that C multiplies and unpacks: every format, path and edge-case shape against the dequantized one."""

import pytest
import torch
from test_cpu_kernels import BOUNDS, DTYPES, WEIGHT_ONLY, agree, both, integer

from quantwatt.config.experiment import complete_method
from quantwatt.formats.quantized_weight import QuantizedWeight, load_format, quantize_to_nearest
from quantwatt.inference import fused, kernel_choice, linear, packed
from quantwatt.inference.kernels import unpacked

GGUF = ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"]
# Bits of a weight in memory; K-quants hold each whole number of a group in a byte.
GGUF_BITS = {"q8_0": 8.5, "q4_0": 4.5, "q4_1": 5, "q5_0": 5.5, "q5_1": 6, "iq4_nl": 4.5, "q2_k": 3.125, "q3_k": 3.5625,
             "q4_k": 4.625, "q5_k": 5.625, "q6_k": 6.5625}  # fmt: skip
FLOATS = {
    "e4m3-tensor": {"format": "float8", "element": "e4m3", "granularity": "tensor"},
    "e5m2": {"format": "float8", "element": "e5m2", "granularity": "channel"},
    "mxfp8-e4m3": {"format": "mxfp8", "element": "e4m3", "scale_rounding": "floor"},
    "mxfp6-e3m2": {"format": "mxfp6", "element": "e3m2", "scale_rounding": "up"},
    "w5-groups": integer(5, "group", 24, symmetric=False),
    "w6": integer(6),
    "w7-groups": integer(7, "group", 16),
}
EVERY = WEIGHT_ONLY | FLOATS | {name: {"format": name} for name in GGUF}
EVERY_FORMAT = pytest.mark.parametrize("weights", EVERY.values(), ids=EVERY)
SHAPES = [(29, 131), (16, 192), (9, 520), (8, 1100), (3, 7), (1, 1)]
BLOCKS = [(29, 256), (5, 1280)]  # that K-quants divide
TOKENS = (1, 2, 3, 4, 6, unpacked.FEW)


@pytest.fixture(params=packed.PATHS)
def path(request, monkeypatch):
    """Packed weights are read by one path, which is skipped where this CPU does not run it."""
    number = packed.PATHS.index(request.param)
    if number not in packed.paths():
        pytest.skip(f"no C compiler, or this CPU has no {request.param}")
    monkeypatch.setattr(packed, "paths", lambda: (number,))


def shapes_of(weights):
    return BLOCKS if weights["format"] in GGUF else SHAPES


@EVERY_FORMAT
def test_few_tokens_meet_the_packed_weight(path, monkeypatch, weights):
    monkeypatch.setattr(packed.PackedWeight, "unpacked", None)  # no float weight is made
    generator = torch.Generator().manual_seed(0)
    for shape in shapes_of(weights):
        weight_format, weight = load_format(weights), torch.randn(shape, generator=generator)
        quantized = quantize_to_nearest(weight, weight_format)
        for dtype in DTYPES:
            for bias in (None, torch.randn(shape[0], generator=generator)):
                layer = unpacked.Layer.build(quantized, weight_format, None, bias, dtype)
                for tokens in TOKENS:
                    inputs = (torch.randn(tokens, shape[1], generator=generator) + 0.7).to(dtype)
                    expected = inputs.double() @ quantized.dequantize(weight_format).double().T
                    expected = expected if bias is None else expected + bias.to(dtype)
                    assert agree(layer(inputs), expected.to(dtype)), (shape, dtype, tokens)


def test_threads_share_the_rows(path, monkeypatch):
    monkeypatch.setattr(packed, "PER_THREAD", 1)
    generator = torch.Generator().manual_seed(0)
    inputs, weight = torch.randn(3, 1280, generator=generator), torch.randn(37, 1280, generator=generator)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        for name in ("w4-groups", "mxfp8", "w2-odd-groups", "q5_k"):
            assert agree(*both(unpacked, EVERY[name], None, weight, inputs, torch.randn(37, generator=generator)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@EVERY_FORMAT
def test_every_path_unpacks_the_dequantized_weight_bit_for_bit(path, weights, dtype):
    generator = torch.Generator().manual_seed(0)
    for rows, columns in shapes_of(weights):
        weight_format = load_format(weights)
        quantized = quantize_to_nearest(torch.randn(rows, columns, generator=generator), weight_format)
        layer = unpacked.Layer.build(quantized, weight_format, None, None, dtype)
        call = packed.PackedWeight(layer.held, weight_format, columns)
        expected = quantized.dequantize(weight_format).to(dtype)
        assert torch.equal(call.unpacked(0, rows, dtype), expected)
        assert torch.equal(call.unpacked(rows // 2, rows, dtype), expected[rows // 2 :])
        assert torch.equal(layer._unpacked(rows // 2, rows, dtype), expected[rows // 2 :])  # without C


@pytest.mark.parametrize("element", ["e4m3", "e5m2"])
def test_every_code_of_eight_bits_keeps_its_value(path, element):
    weight_format = load_format({"format": "float8", "element": element, "granularity": "channel"})
    codes = torch.arange(256, dtype=torch.uint8)[None]
    for kept in (codes, codes[:, (codes & 127)[0] <= weight_format.elements.largest_code].contiguous()):
        quantized = QuantizedWeight(kept, torch.tensor([[0.37]]), None)
        layer = unpacked.Layer.build(quantized, weight_format, None, None, torch.float32)
        call = packed.PackedWeight(layer.held, weight_format, kept.shape[1])
        assert torch.equal(
            call.unpacked(0, 1, torch.float32).nan_to_num(nan=1.5),
            quantized.dequantize(weight_format).nan_to_num(nan=1.5),
        )
        for place in (3, 126 if kept is codes else 100):
            inputs = torch.zeros(1, kept.shape[1])
            inputs[0, place] = 2.0
            found, expected = layer(inputs), inputs @ quantized.dequantize(weight_format).T
            assert torch.equal(found.isnan(), expected.isnan()) and (
                found.isnan().all() or torch.equal(found, expected)
            )


def test_scales_of_every_type_are_read_exactly(path):
    """The least and the largest that each type has, zero, and NaN."""
    halves = torch.tensor([0.0, 2**-24, -(2**-15) * 1.25, 2**-14, 65504.0, torch.inf, torch.nan, -0.37])
    cases = {
        "q8_0": halves.half().float()[None],
        "mxfp8": torch.tensor([[2.0**-127, 2.0**-126, 1.0, 2.0**100, torch.nan, 0.5, 2.0, 2.0**-20]]),
    }
    for name, scale in cases.items():
        settings = complete_method({"weights": {"format": name}}, "test", name)["weights"]
        weight_format, codes = load_format(settings), torch.full((1, 256), 57, dtype=torch.uint8)
        quantized = QuantizedWeight(codes, scale, None)
        layer = unpacked.Layer.build(quantized, weight_format, None, None, torch.float32)
        found = packed.PackedWeight(layer.held, weight_format, 256).unpacked(0, 1, torch.float32)
        expected = quantized.dequantize(weight_format)
        assert torch.equal(found.isnan(), expected.isnan()) and torch.equal(found.nan_to_num(), expected.nan_to_num())


def test_any_order_of_groups_is_unpacked(path):
    generator, rows, columns = torch.Generator().manual_seed(0), 13, 1280
    for weights in (*(WEIGHT_ONLY[name] for name in ("w4-groups", "nf4", "mxfp6")), {"format": "q5_k"}):
        weight_format = load_format(weights)
        quantized = quantize_to_nearest(torch.randn(rows, columns, generator=generator), weight_format)
        group = torch.arange(columns) // weight_format.group_width(columns)
        quantized.group_index = group[torch.randperm(columns, generator=generator)].int()
        arguments, inputs = (quantized, weight_format, None, None, torch.float32), torch.randn(3, columns)
        found, expected = unpacked.Layer.build(*arguments)(inputs), linear.SimulatedLinear.build(*arguments)(inputs)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["w4", "q4_k", "mxfp8"])
def test_few_tokens_carry_what_is_not_finite(path, name):
    inputs = torch.randn(2, 256)
    inputs[1, 5] = torch.nan
    outputs, _ = both(unpacked, EVERY[name], None, torch.randn(16, 256), inputs, None)
    assert outputs[0].isfinite().all() and outputs[1].isnan().all()


@pytest.mark.parametrize("name", GGUF)
def test_a_gguf_layer_is_real_on_cpus_and_simulated_on_gpus(name):
    settings = complete_method({"weights": {"format": name}}, "test", name)["weights"]
    layer = {"weights": settings, "activations": None, "in_features": 512, "out_features": 64, "parts": []}
    assert kernel_choice.kernel_for(layer, "cpu") == (unpacked, None)
    kernel, reason = kernel_choice.kernel_for(layer, "cuda")
    assert kernel is None and reason == f"no kernel computes {name} W{settings['bits']}A16 on cuda"
    weight_format, weight = load_format(settings), torch.randn(64, 512)
    quantized = quantize_to_nearest(weight, weight_format)
    built = unpacked.Layer.build(quantized, weight_format, None, None, torch.bfloat16)
    held = sum(tensor.numel() * tensor.element_size() for tensor in built.buffers())
    assert held * 8 == GGUF_BITS[name] * weight.numel()


def test_many_tokens_meet_gguf_blocks(path):
    for name in ("q4_0", "q2_k", "q6_k"):
        inputs = torch.randn(unpacked.FEW + 1, 512)
        assert agree(*both(unpacked, {"format": name}, None, torch.randn(29, 512), inputs, torch.randn(29)))


def test_without_c_the_same_is_unpacked(monkeypatch):
    monkeypatch.setattr(fused, "library", lambda: None)
    for name in ("q5_1", "q3_k", "nvfp4", "float8-blocks"):
        inputs = torch.randn(3, 512)
        found, expected = both(unpacked, EVERY[name], None, torch.randn(130, 512), inputs, None)
        assert torch.allclose(found, expected, atol=BOUNDS[torch.float32] * expected.abs().max())
