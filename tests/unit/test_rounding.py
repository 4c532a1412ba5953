"""One layer rounded alone: grids of weights and activations, and the first token, which stays unquantized."""

import pytest
import torch

from quantwatt.allocate.rounding import RoundedLayer, megabytes, round_weight
from quantwatt.config.experiment import complete_method
from quantwatt.formats.convolution import Convolution, positions
from quantwatt.formats.quantized_weight import load_format, quantize_to_nearest
from quantwatt.models.families import load_family
from quantwatt.quantize import sequential
from quantwatt.quantize.observers import Range

INTEGER = {"format": "integer", "granularity": "channel", "group_size": None, "symmetric": True}
W4, W8 = INTEGER | {"bits": 4}, INTEGER | {"bits": 8}
STATIC = {"bits": 8, "granularity": "tensor", "dynamic": False, "symmetric": False}
DYNAMIC = {"bits": 4, "granularity": "token", "dynamic": True, "symmetric": True}


def tensor(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear(columns=24, rows=16):
    torch.manual_seed(1)
    return torch.nn.Linear(columns, rows)


def convolution(**options):
    torch.manual_seed(2)
    return torch.nn.Conv2d(8, 6, 3, padding=1, **options)


def formats(weights=None, activations=None):
    return {"weights": weights, "activations": activations}


def observed(layer, *batches):
    """The range of a layer's inputs."""
    found = Range(batches[0].shape[1 if isinstance(layer, torch.nn.Conv2d) else -1])
    for inputs in batches:
        found.observe(positions(inputs, Convolution.of(layer)))
    return found


def test_a_rounded_weight_is_that_of_its_matrix():
    for layer in (linear(), convolution(), convolution(groups=2)):
        weight = layer.weight.detach()
        matrix = quantize_to_nearest(weight.flatten(1), load_format(W4)).dequantize(load_format(W4))
        assert torch.equal(round_weight(weight, W4), matrix.reshape(weight.shape))
        assert not torch.equal(round_weight(weight, W4), weight)


def test_the_float_layer_stays_as_it_is():
    layer, inputs = convolution(), tensor(2, 8, 5, 5)
    before = layer(inputs)
    rounded = RoundedLayer(layer, formats(W4))
    expected = torch.nn.functional.conv2d(inputs, round_weight(layer.weight, W4), layer.bias, padding=1)
    assert torch.equal(rounded(inputs), expected) and not torch.equal(expected, before)
    assert torch.equal(layer(inputs), before)


@pytest.mark.parametrize("layer", [linear(), convolution(), convolution(groups=2, stride=2)])
def test_inputs_alone_are_quantized_where_weights_stay_in_16_bit(layer):
    inputs = tensor(2, 24, 24) if isinstance(layer, torch.nn.Linear) else tensor(2, 8, 5, 5)
    rounded = RoundedLayer(layer, formats(activations=STATIC), observed(layer, inputs))
    scale = (inputs.amax() - inputs.amin()) / 255
    zero = torch.round(-128 - inputs.amin() / scale)
    values = ((inputs / scale).round() + zero).clamp(-128, 127).sub(zero) * scale
    assert torch.allclose(rounded(inputs), layer(values), atol=1e-5)
    assert (rounded(inputs) - layer(inputs)).abs().amax() > 0


def test_a_token_is_a_row_of_a_linear_layers_input_and_an_image_of_a_convolutions():
    for layer, inputs in ((linear(), tensor(2, 3, 24)), (convolution(), tensor(3, 8, 5, 5))):
        inputs[1] *= 50  # were the grid shared, the others would round to nothing
        rows = inputs.reshape(-1, 24) if inputs.dim() == 3 else inputs.reshape(3, -1)
        scale = rows.abs().amax(dim=1, keepdim=True) / 7
        values = ((rows / scale).round() * scale).reshape(inputs.shape)
        assert torch.allclose(RoundedLayer(layer, formats(activations=DYNAMIC))(inputs), layer(values), atol=1e-4)


def test_the_first_token_goes_through_the_float_layer():
    layer, inputs = linear(), tensor(2, 5, 24)
    inputs[:, 0] = 800
    rounded = RoundedLayer(layer, formats(W4, STATIC), observed(layer, inputs[:, 1:]), keep_first=True)
    assert torch.equal(rounded(inputs)[:, :1], layer(inputs[:, :1]))
    rest = RoundedLayer(layer, formats(W4, STATIC), observed(layer, inputs[:, 1:]))(inputs[:, 1:])
    assert torch.equal(rounded(inputs)[:, 1:], rest)


class Denoiser(torch.nn.Module):
    """A convolution and a linear layer, each a block by itself."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = convolution(groups=2), linear(columns=6)

    def forward(self, sample):
        return self.linear(self.conv(sample).movedim(1, -1))


@pytest.mark.parametrize("name", ["conv", "linear"])
def test_it_is_the_layer_that_quantizing_the_model_makes(name):
    entry = {"weights": W4, "activations": STATIC}
    method = complete_method(entry, "test", "method")
    samples, denoiser = tensor(12, 8, 5, 5, seed=3), Denoiser()
    sequential.quantize(denoiser, load_family("diffusers"), {name: entry}, method, {"sample": samples}, batch=4)
    plain = Denoiser()
    inputs = samples if name == "conv" else plain.conv(samples).movedim(1, -1)
    layer = plain.get_submodule(name)
    rounded = RoundedLayer(layer, entry, observed(layer, *inputs.split(4)))
    assert torch.allclose(rounded(inputs), denoiser.get_submodule(name)(inputs), atol=1e-6)


def test_what_pipelines_read_of_a_layer_is_there():
    rounded = RoundedLayer(linear(), formats(W4))
    assert (rounded.in_features, rounded.out_features, rounded.weight.dtype) == (24, 16, torch.float32)
    assert RoundedLayer(convolution(), formats(W4)).out_channels == 6
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        rounded.nothing  # noqa: B018


def test_megabytes_count_scales_and_what_is_not_packed():
    weight = convolution().weight
    assert megabytes(weight, None) == 4 * 6 * 72 / 1e6
    assert megabytes(weight, W4) == pytest.approx(6 * (72 / 2 + 4) / 1e6)
    assert megabytes(weight.bfloat16(), None) == 2 * 6 * 72 / 1e6
