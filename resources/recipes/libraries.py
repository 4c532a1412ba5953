"""Functions for the loader `function`: libraries quantize the layers of a transformer's blocks by their own code."""

import torch

BLOCKS = "transformer_blocks."


def _layers(denoiser):
    return {
        name: layer
        for name, layer in denoiser.named_modules()
        if name.startswith(BLOCKS) and isinstance(layer, torch.nn.Linear)
    }


def bitsandbytes_nf4(pipeline, device):
    """NF4 in blocks of 64, by bitsandbytes."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name, layer in _layers(pipeline.transformer).items():
        dtype = layer.weight.dtype
        built = Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=dtype, quant_type="nf4"
        )
        built.weight = Params4bit(layer.weight.data, requires_grad=False, blocksize=64, quant_type="nf4")
        built.bias = layer.bias
        pipeline.transformer.set_submodule(name, built.to(device).requires_grad_(False))
    return pipeline


def torchao_int8(pipeline, device):
    """Weights of 8 bits per output channel, by torchao."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    names = _layers(pipeline.transformer)
    quantize_(pipeline.transformer, Int8WeightOnlyConfig(), filter_fn=lambda layer, name: name in names)
    return pipeline


def quanto_int8(pipeline, device):
    """Weights of 8 bits per output channel, by optimum-quanto."""
    from optimum import quanto

    quanto.quantize(pipeline.transformer, weights=quanto.qint8, include=list(_layers(pipeline.transformer)))
    quanto.freeze(pipeline.transformer)
    return pipeline
