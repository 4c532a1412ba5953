"""Small layers with correlated inputs and outlier columns, as transformers have them, in bfloat16."""

from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent


def correlated(tokens, columns, generator):
    """[tokens, columns] of which every eighth column or so is correlated with the others, and some are large."""
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(tokens, columns, generator=generator) @ (mixing + 0.5 * torch.eye(columns))
    outliers = torch.randperm(columns, generator=generator)[: columns // 32]
    inputs[:, outliers] *= 8
    return inputs * (0.5 + torch.rand(columns, generator=generator))


def main():
    generator = torch.Generator().manual_seed(0)
    inputs = correlated(1024, 256, generator).double()
    # 256 equivalent tokens: x xᵀ summed over them is that of the 1024.
    factor = torch.linalg.cholesky(inputs.T @ inputs, upper=True)
    reference = correlated(192, 128, generator)
    # What a layer sees behind quantized ones: the float input with an error that is not independent of it.
    error = reference.roll(1, dims=1) * 0.05 + 0.05 * torch.randn(192, 128, generator=generator)
    layers = {
        "gptq.weight": 0.02 * torch.randn(48, 256, generator=generator),
        "gptq.inputs": factor,
        "qronos.weight": 0.02 * torch.randn(48, 128, generator=generator),
        "qronos.reference": reference,
        "qronos.inputs": reference + error,
    }
    save_file({name: tensor.bfloat16().contiguous() for name, tensor in layers.items()}, HERE / "layers.safetensors")


if __name__ == "__main__":
    main()
