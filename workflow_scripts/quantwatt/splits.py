"""Linear layers split by output rows into chunks that are quantized apart (the transform `segments`)."""

import torch


class SegmentedLinear(torch.nn.Module):
    """Layers "0", "1", ... of one input; their outputs side by side."""

    def __init__(self, layers):
        super().__init__()
        for index, layer in enumerate(layers):
            self.add_module(str(index), layer)

    def forward(self, inputs):
        return torch.cat([layer(inputs) for layer in self.children()], dim=-1)


def of_layers(layers, allocation):
    """{layer: chunks} of the layers that an allocation names by chunks, be it only some of them.

    Args:
        layers: of the model manifest.
        allocation: {layer: formats} as `quantwatt.allocation.allocate` returns.
    """
    parents = {name.rpartition(".")[0] for name in allocation}
    return {name: layer["segments"] for name, layer in layers.items() if "segments" in layer and name in parents}


def split(denoiser, chunks):
    """Replace linear layers by their chunks, in place.

    Args:
        chunks: {layer: number of chunks of equal size}.
    Raises:
        RuntimeError: a layer's outputs do not divide by its number of chunks.
    """
    for name, count in chunks.items():
        whole = denoiser.get_submodule(name)
        weights = whole.weight.detach().reshape(count, -1, whole.in_features)  # [chunks, rows, columns]
        segmented = _empty(whole, count)
        for index, layer in enumerate(segmented.children()):
            # Copies: files of tensors refuse two that share memory.
            layer.weight = torch.nn.Parameter(weights[index].clone(), requires_grad=False)
            if whole.bias is not None:
                bias = whole.bias.detach().reshape(count, -1)[index].clone()
                layer.bias = torch.nn.Parameter(bias, requires_grad=False)
        denoiser.set_submodule(name, segmented)


def restore(denoiser, layers):
    """Give a denoiser the chunks that a checkpoint was saved with: on the meta device, in place of the whole layers.

    Args:
        layers: {name: {"out_features"}} of the checkpoint's manifest; NAME.0, ... where NAME was split. A chunk may be
            missing, in 16 bit: there are as many as fit into the whole layer's outputs.
    """
    for name, layer in layers.items():
        parent = name.rpartition(".")[0]
        whole = denoiser.get_submodule(parent)
        if isinstance(whole, torch.nn.Linear):
            denoiser.set_submodule(parent, _empty(whole, whole.out_features // layer["out_features"]))


def _empty(whole, count):
    """Chunks of a linear layer, without memory."""
    rows, bias = whole.out_features // count, whole.bias is not None
    options = {"bias": bias, "device": "meta", "dtype": whole.weight.dtype}
    return SegmentedLinear(torch.nn.Linear(whole.in_features, rows, **options) for _ in range(count))
