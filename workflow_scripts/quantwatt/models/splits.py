"""Split layers into parts that are quantized separately.

A layer is split by its outputs (the transform `segments`) or by its inputs (`split-skips`). Layer NAME becomes NAME.0,
NAME.1, ...
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch


class SegmentedLinear(torch.nn.Module):
    """Linear layers "0", "1", ... that share one input; their outputs are concatenated."""

    def __init__(self, layers: Iterable[torch.nn.Module]):
        super().__init__()
        for index, layer in enumerate(layers):
            self.add_module(str(index), layer)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.cat([layer(inputs) for layer in self.children()], dim=-1)


class SplitConv2d(torch.nn.Module):
    """Convolutions "0", "1", ... of consecutive input channels; their outputs are summed. The first has the bias."""

    def __init__(self, layers: Iterable[torch.nn.Module], channels: Iterable[int]):
        super().__init__()
        for index, layer in enumerate(layers):
            self.add_module(str(index), layer)
        self.channels = list(channels)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        parts = inputs.split(self.channels, dim=1)
        return sum(layer(part) for layer, part in zip(self.children(), parts, strict=True))


def of_layers(layers: Mapping[str, Mapping[str, Any]], allocation: Collection[str]) -> dict[str, int | list[int]]:
    """{layer: parts} of the layers that an allocation splits; it may name only some parts of a layer.

    Args:
        layers: of the model manifest.
        allocation: {layer: formats} as `quantwatt.allocate.allocation.allocate` returns.
    Returns:
        parts: a number of segments, or a list with the number of channels of each part.
    """
    parents = {name.rpartition(".")[0] for name in allocation}
    return {
        name: layer.get("segments") or layer["skips"]
        for name, layer in layers.items()
        if name in parents and ("segments" in layer or "skips" in layer)
    }


def split(denoiser: torch.nn.Module, parts: Mapping[str, int | list[int]]) -> None:
    """Replace layers by their parts, in place.

    Args:
        parts: as `of_layers` returns.
    Raises:
        RuntimeError: a layer's outputs are not divisible by its number of segments, or the parts' channels do not add
            up to its input channels.
    """
    for name, of in parts.items():
        whole: Any = denoiser.get_submodule(name)
        apart = _empty(whole, of)
        weights = whole.weight.detach().split(of, dim=1) if isinstance(of, list) else _segments(whole.weight, of)
        biases = [whole.bias] if isinstance(of, list) else _segments(whole.bias, of)
        for layer, weight in zip(apart.children(), weights, strict=True):
            # Copies: safetensors refuses tensors that share memory.
            layer.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
        for layer, bias in zip(apart.children(), biases, strict=False):
            if bias is not None:
                layer.bias = torch.nn.Parameter(bias.detach().clone(), requires_grad=False)
        denoiser.set_submodule(name, apart)


def restore(denoiser: torch.nn.Module, layers: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace layers by the parts that a checkpoint was saved with, on the meta device.

    Args:
        layers: {name: {"out_features"}, and "skips" of a convolution's part} of the checkpoint's manifest; NAME.0, ...
            for a layer NAME that was split. Parts that stay in 16 bit are not listed.
    """
    for name, layer in layers.items():
        parent, _, last = name.rpartition(".")
        whole = denoiser.get_submodule(parent) if last.isdecimal() else None
        if isinstance(whole, torch.nn.Linear):
            denoiser.set_submodule(parent, _empty(whole, whole.out_features // layer["out_features"]))
        elif isinstance(whole, torch.nn.Conv2d):
            denoiser.set_submodule(parent, _empty(whole, layer["skips"]))


def _segments(tensor, count):
    """A weight or bias split into `count` parts of equally many rows; [] for a missing bias."""
    return [] if tensor is None else tensor.detach().reshape(count, -1, *tensor.shape[1:])


def _empty(whole, of):
    """The module of a layer's parts, on the meta device."""
    options: dict[str, Any] = {"device": "meta", "dtype": whole.weight.dtype}
    bias = whole.bias is not None
    if not isinstance(of, list):
        rows = whole.out_features // of
        return SegmentedLinear(torch.nn.Linear(whole.in_features, rows, bias, **options) for _ in range(of))
    options |= {"padding_mode": whole.padding_mode}
    geometry = whole.kernel_size, whole.stride, whole.padding, whole.dilation
    convolutions = (
        torch.nn.Conv2d(channels, whole.out_channels, *geometry, bias=bias and index == 0, **options)
        for index, channels in enumerate(of)
    )
    return SplitConv2d(convolutions, of)
