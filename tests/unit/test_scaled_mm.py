"""Scaled products of floats: what PyTorch's product is given, by a stand-in that decodes it, and on a GPU itself."""

import pytest
import torch
from torch.nn import functional
from torch.nn.functional import ScalingType, SwizzleType

from quantwatt.config.experiment import complete_method
from quantwatt.formats.minifloat import E2M1
from quantwatt.formats.quantized_weight import load_format, quantize_to_nearest
from quantwatt.inference import kernel_choice, linear, probe
from quantwatt.inference.kernels import scaled_mm, unpacked

ROWS, COLUMNS = 144, 160
CASES = {
    "float8": ({"format": "float8"}, {"format": "float8"}),
    "float8-tensor": ({"format": "float8", "granularity": "tensor"}, {"format": "float8", "granularity": "tensor"}),
    "float8-static": ({"format": "float8"}, {"format": "float8", "granularity": "tensor", "dynamic": False}),
    "mxfp8": ({"format": "mxfp8"}, {"format": "mxfp8"}),
    "mxfp4": ({"format": "mxfp4"}, {"format": "mxfp4", "scale_rounding": "floor"}),
    "nvfp4": ({"format": "nvfp4"}, {"format": "nvfp4"}),
}
EVERY_CASE = pytest.mark.parametrize("name", CASES)
RECIPES = {ScalingType.BlockWise1x32: (32, torch.float8_e8m0fnu), ScalingType.BlockWise1x16: (16, torch.float8_e4m3fn)}


def settings_of(name):
    weights, activations = CASES[name]
    method = complete_method({"weights": weights, "activations": activations}, "test", name)
    return method["weights"], method["activations"]


def layer_of(name, dtype=torch.float32, columns=COLUMNS):
    """(the kernel's layer, the dequantized one)"""
    weights, activations = settings_of(name)
    generator = torch.Generator().manual_seed(0)
    weight_format = load_format(weights)
    quantized = quantize_to_nearest(torch.randn(ROWS, columns, generator=generator), weight_format)
    if not activations["dynamic"]:
        quantized.activation_scale, quantized.activation_zero = torch.tensor([0.01]), torch.zeros(1)
    arguments = (quantized, weight_format, activations, torch.randn(ROWS, generator=generator), dtype)
    return scaled_mm.Layer.build(*arguments), linear.SimulatedLinear.build(*arguments)


def decoded(codes, scales, recipe, swizzle):
    """Values [rows, columns] of one side of a product, read as cuBLAS's documentation says."""
    if codes.dtype == torch.float4_e2m1fn_x2:
        pairs = codes.view(torch.uint8)
        codes = torch.stack([pairs & 15, pairs >> 4], dim=2).flatten(1)
        values = E2M1.values()[codes.int()]
    else:
        values = codes.float()
    if recipe == [ScalingType.RowWise]:
        assert swizzle == [SwizzleType.NO_SWIZZLE] and scales[0].dtype == torch.float32 and scales[0].is_contiguous()
        return values * scales[0].reshape(-1, 1)
    (size, dtype), rows = RECIPES[recipe[0]], len(values)
    assert scales[0].dtype == dtype and swizzle[0] == SwizzleType.SWIZZLE_32_4_4
    blocks, tiles = values.shape[1] // size, -(-values.shape[1] // size // 4)
    row, block = torch.arange(rows)[:, None], torch.arange(blocks)[None]
    place = (row // 128 * tiles + block // 4) * 512 + row % 32 * 16 + row % 128 // 32 * 4 + block % 4
    scale = scales[0].view(torch.uint8)[place].view(dtype).float()
    for more in scales[1:]:
        assert recipe[1:] == [ScalingType.TensorWise] and more.dtype == torch.float32
        scale = scale * more
    return values * scale.repeat_interleave(size, dim=1)


def stand_in(a, b, scale_a, recipe_a, scale_b, recipe_b, swizzle_a=None, swizzle_b=None, output_dtype=None):
    assert b.stride(0) == 1 and a.is_contiguous() and output_dtype == torch.bfloat16
    sides = decoded(a, scale_a, recipe_a, swizzle_a), decoded(b.T, scale_b, recipe_b, swizzle_b)
    return (sides[0] @ sides[1].T).to(output_dtype)


@EVERY_CASE
@pytest.mark.parametrize("shape", [(5,), (1,), (2, 70)], ids=str)
def test_the_product_gets_what_the_dequantized_layer_multiplies(name, shape, monkeypatch):
    monkeypatch.setattr(functional, "scaled_mm", stand_in)
    for dtype in (torch.float32, torch.bfloat16):
        own, reference = layer_of(name, dtype)
        inputs = torch.randn(*shape, COLUMNS, generator=torch.Generator().manual_seed(1)).to(dtype)
        found, expected = own(inputs), reference(inputs)
        assert found.shape == expected.shape and found.dtype == dtype
        assert (found - expected).float().norm() <= scaled_mm.BOUND * expected.float().norm()


def test_no_tokens_give_no_outputs():
    for name in CASES:
        assert layer_of(name)[0](torch.empty(2, 0, COLUMNS)).shape == (2, 0, ROWS)


@EVERY_CASE
def test_pytorch_takes_the_shapes_and_types(name):
    """Its own checks for CUDA, which it makes of tensors without memory, too; of MXFP4 they count bytes as inputs."""
    layer = layer_of(name, torch.bfloat16, 128)[0].to("meta")
    outputs = layer(torch.empty(7, 128, dtype=torch.bfloat16, device="meta"))
    assert (outputs.shape, outputs.dtype) == ((7, ROWS), torch.bfloat16)


def test_scales_lie_in_tiles_as_torchao_lays_them():
    utils = pytest.importorskip("torchao.prototype.mx_formats.utils")
    scales = torch.randint(0, 255, (300, 13), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = scaled_mm.in_tiles(scales.view(torch.float8_e8m0fnu))
    assert torch.equal(found.view(torch.uint8), utils.to_blocked(scales))


@pytest.mark.parametrize(("kind", "capability", "said"), [
    ("float8", (8, 0), "float8 needs a GPU of capability 8.9 or more, and this one has 8.0"),
    ("nvfp4", (9, 0), "nvfp4 needs a GPU of capability 10.0 or more, and this one has 9.0"),
])  # fmt: skip
def test_an_older_gpu_says_what_it_lacks(kind, capability, said):
    with pytest.raises(NotImplementedError, match=said):
        scaled_mm.check_capability(kind, capability)
    scaled_mm.check_capability(kind, (10, 0))


def described(weights, activations, **changed):
    layer = {"weights": weights, "activations": activations, "in_features": 256, "out_features": 64, "parts": []}
    return layer | changed


def test_it_is_chosen_for_floats_on_both_sides(monkeypatch):
    monkeypatch.setattr(probe, "failure", lambda name, layer, device: None)
    for name in CASES:
        layer = described(*settings_of(name))
        assert kernel_choice.kernel_for(layer, "cuda") == (scaled_mm, None)
        assert kernel_choice.kernel_for(layer, "cpu")[0] is None
        assert kernel_choice.kernel_for({**layer, "activations": None}, "cuda") == (unpacked, None)
        for other in ({"in_features": 272}, {"out_features": 72}, {"kernel_size": [1, 1]}, {"parts": ["group_index"]}):
            assert kernel_choice.kernel_for({**layer, **other}, "cuda")[0] is None
    blocks = settings_of("float8")[0] | {"granularity": "block"}
    half = settings_of("mxfp8")[0] | {"element": "e5m2"}
    for weights, inputs in ((blocks, "float8"), (half, "mxfp8"), (settings_of("mxfp4")[0], "mxfp8")):
        assert kernel_choice.kernel_for(described(weights, settings_of(inputs)[1]), "cuda")[0] is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@EVERY_CASE
def test_a_gpu_computes_the_dequantized_layer(name):
    kind, capability = CASES[name][0]["format"], torch.cuda.get_device_capability()
    layer = described(*settings_of(name))
    reason = probe.failure("scaled_mm", layer, "cuda")
    if capability < scaled_mm.CAPABILITY[kind]:
        assert "needs a GPU of capability" in reason
    else:
        assert reason is None
