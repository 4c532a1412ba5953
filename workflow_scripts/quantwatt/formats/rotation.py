"""Walsh-Hadamard rotations of a layer's inputs, and the weight that gives the same product with rotated inputs.

A layer may map its inputs before the product: x -> H (x * before) * after, where H is orthonormal and consists of
Walsh-Hadamard matrices along its diagonal. H spreads an outlier over a whole block of columns, so that one scale fits
all of them (QuaRot, arXiv 2404.00456). Random signs in `before` keep a block of equal values from becoming an outlier.
"""

import torch

TYPES = (torch.float32, torch.float64)  # others, which are narrower, are rotated as float32


def block_of(columns: int, largest: int) -> int | None:
    """Return the largest power of two that divides a number of columns, at most `largest`; None if it is 1."""
    block = min(columns & -columns, largest)
    return block if block > 1 else None


def random_signs(columns: int, seed: int) -> torch.Tensor:
    """Return [columns] float32 of -1 and 1, equal for all layers with as many columns."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (columns,), generator=generator).float() * 2 - 1


def walsh_hadamard(values: torch.Tensor, block: int) -> torch.Tensor:
    """Transform every block of the last dimension in log2(block) steps, orthonormally: its own inverse.

    Args:
        values: [..., columns], float32 or float64.
        block: a power of two that divides columns.
    Returns:
        [..., columns]; in each block, scipy.linalg.hadamard(block) / sqrt(block) times its values.
    """
    shape, stride = values.shape, 1
    while stride < block:
        pairs = values.reshape(values.numel() // (2 * stride), 2, stride)
        values = torch.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], dim=1)
        stride *= 2
    return (values * block**-0.5).reshape(shape)


def rotated(
    inputs: torch.Tensor, block: int, before: torch.Tensor | None = None, after: torch.Tensor | None = None
) -> torch.Tensor:
    """Return H (inputs * before) * after, [..., columns] in the inputs' type, rounded once; differentiable.

    Args:
        inputs: [..., columns].
        before, after: [columns] float32, or None for ones.
    """
    values = inputs if inputs.dtype in TYPES else inputs.float()
    values = values if before is None else values * before
    values = walsh_hadamard(values, block)
    return (values if after is None else values * after).to(inputs.dtype)


def folded(
    weight: torch.Tensor, block: int | None, before: torch.Tensor | None, after: torch.Tensor | None
) -> torch.Tensor:
    """Return [rows, columns], the weight whose product with mapped inputs is that of `weight` with the inputs.

    Args:
        weight: [rows, columns] float32.
        block, before, after: of the inputs' map; without a rotation, block and after are None.
    """
    weight = weight if before is None else weight / before
    weight = weight if block is None else walsh_hadamard(weight, block)
    return weight if after is None else weight / after


def unfolded(
    weight: torch.Tensor, block: int | None, before: torch.Tensor | None, after: torch.Tensor | None
) -> torch.Tensor:
    """The inverse of `folded`."""
    weight = weight if after is None else weight * after
    weight = weight if block is None else walsh_hadamard(weight, block)
    return weight if before is None else weight * before
