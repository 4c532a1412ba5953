"""Quantized layers without a weight still answer a model that asks for their dtype and device."""

import pytest
import torch

from quantwatt.formats import convolution
from quantwatt.formats.quantized_weight import load_format, quantize_to_nearest
from quantwatt.inference.kernels import int_mm
from quantwatt.inference.linear import QuantizedLinear, SimulatedLinear
from quantwatt.jobs import torchvision_ops  # noqa: F401  (the second before diffusers)
from quantwatt.measuring.module_memory import module_memory_bytes

INT8 = {"format": "integer", "bits": 8, "granularity": "channel", "group_size": None, "symmetric": True}
TOKEN = {"bits": 8, "granularity": "token", "dynamic": True, "symmetric": True}
DTYPE = torch.bfloat16


def quantized(kind, layer, dtype=DTYPE):
    weight_format = load_format({**INT8, "narrow": True, "zero_point": "integer", "clip_search": False})
    weight = quantize_to_nearest(layer.weight.detach().float().flatten(1), weight_format)
    return kind.build(weight, weight_format, TOKEN, layer.bias, dtype, convolution.Convolution.of(layer))


def z_image():
    """A whole denoiser; its embedding of time reads `mlp[0].weight.dtype`."""
    from diffusers import ZImageTransformer2DModel

    model = ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[4, 6, 6], axes_lens=[64, 16, 16],
    )  # fmt: skip
    model.x_pad_token.data.normal_(), model.cap_pad_token.data.normal_()  # of no value before they are trained
    image, text = torch.randn(4, 1, 8, 8, dtype=DTYPE), torch.randn(5, 16, dtype=DTYPE)
    return model, lambda model: model([image], torch.tensor([0.5]), [text], return_dict=False)[0][0]


def wan():
    """The type of the first of `time_embedder.parameters()`."""
    from diffusers.models.transformers.transformer_wan import WanTimeTextImageEmbedding

    text = torch.randn(1, 5, 32, dtype=DTYPE)
    return WanTimeTextImageEmbedding(32, 32, 64, 32), lambda model: model(torch.tensor([500]), text)[1]


def t5():
    """`wo.weight.dtype`, where it is a tensor."""
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5DenseActDense

    inputs = torch.randn(1, 5, 32, dtype=DTYPE)
    return T5DenseActDense(T5Config(d_model=32, d_ff=64)), lambda model: model(inputs)


@torch.no_grad()
@pytest.mark.parametrize("made", [z_image, wan, t5])
def test_models_that_ask_a_layer_for_its_type_compute(made):
    torch.manual_seed(0)
    model, run = made()
    model = model.to(DTYPE).eval()
    expected = run(model)
    layers = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
    for name in layers:
        layer = quantized(int_mm.Layer, model.get_submodule(name))
        assert all(buffer.numel() <= layer.out_features for buffer in layer.buffers() if buffer.is_floating_point())
        model.set_submodule(name, layer)
    found = run(model)
    assert found.dtype == expected.dtype == DTYPE
    assert (found - expected).float().norm() < 0.1 * expected.float().norm()


@pytest.mark.parametrize("layer", [torch.nn.Linear(24, 16), torch.nn.Conv2d(8, 16, 3, groups=2)])
def test_an_absent_weight_has_shape_type_and_device_and_no_value(layer):
    for dtype in (torch.float32, torch.bfloat16):
        built = quantized(Nothing, layer, dtype)
        assert built.weight.shape == layer.weight.shape and built.weight.dtype == dtype
        assert built.weight.untyped_storage().nbytes() == dtype.itemsize
        assert next(built.parameters()).dtype == dtype
        assert built.weight.isnan().all() and built.to("meta").weight.is_meta
    simulated = quantized(SimulatedLinear, layer, torch.float32)
    assert torch.allclose(simulated.values, layer.weight.flatten(1), atol=0.01)


def test_what_a_model_holds_counts_packed_and_plain_tensors_once():
    linear = torch.nn.Linear(24, 16, bias=False)
    layer = quantized(int_mm.Layer, linear, torch.float32)
    layer.again = layer.codes  # a second name
    layer.packed = torch.zeros(16, 24).to_mkldnn()
    codes, scales, sums, absent, packed = 24 * 16, 4 * 16, 4 * 16, 4, 4 * 16 * 24
    assert module_memory_bytes([layer]) == codes + scales + sums + absent + packed
    assert module_memory_bytes([linear, linear]) == 4 * 24 * 16


class Nothing(QuantizedLinear):
    def _hold(self, quantized, weight_format, dtype):
        pass
