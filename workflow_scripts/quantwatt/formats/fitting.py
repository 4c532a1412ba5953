"""Two fits for all formats: the clipping factor of a range, and the least-squares scale for given codes."""

from collections.abc import Callable

import torch

from quantwatt.formats.weight_format import Grid, WeightFormat

CLIP_POWER = 2.4
CLIP_FACTORS = [1 - i / 100 for i in range(80)]
CHUNK = 1 << 18  # values coded at once, so that intermediate tensors stay in the cache


def clip_factor(
    values: torch.Tensor, weight_format: WeightFormat, grid: Callable[[float], Grid], shared: bool = False
) -> torch.Tensor:
    """Search the factor of each row's range that minimises Σ|w - q|^2.4 (as GPTQ's reference code does).

    Args:
        values: [rows, width].
        grid: function of a factor that returns (scale, zero) of the range times the factor, each [rows, 1] or None.
        shared: use one factor for all rows.
    Returns:
        [rows, 1], factors among 1, 0.99, ..., 0.21; 1 where a value is NaN.
    """
    rows = max(1, CHUNK // values.shape[1])
    errors = values.new_empty(len(CLIP_FACTORS), len(values))
    for i, factor in enumerate(CLIP_FACTORS):
        scale, zero = grid(factor)
        for start in range(0, len(values), rows):
            part = slice(start, start + rows)
            part_grid = scale[part], None if zero is None else zero[part]
            codes = weight_format.encode(values[part], *part_grid)
            difference = weight_format.decode(codes, *part_grid).sub_(values[part])
            errors[i, part] = difference.abs_().log2_().mul_(CLIP_POWER).exp2_().sum(dim=1)  # pow is 3 x slower
    if shared:
        errors = errors.sum(dim=1, keepdim=True).expand_as(errors)
    factors = torch.tensor(CLIP_FACTORS, device=values.device)
    return factors[errors.argmin(dim=0)][:, None]  # of equal errors, the first and widest factor


def least_squares_scale(
    levels: torch.Tensor, target: torch.Tensor, scale: torch.Tensor, shared: bool = False
) -> torch.Tensor:
    """Return the scale that minimises Σ(target - levels·scale)², per row.

    Args:
        levels: [rows, width], the values of the codes at scale 1.
        target: [rows, width].
        scale: [rows, 1], returned where the best scale would not be positive.
        shared: use one scale for all rows.
    """
    dimensions = (0, 1) if shared else 1
    product = (levels * target).sum(dim=dimensions, keepdim=True)
    norm = (levels * levels).sum(dim=dimensions, keepdim=True)
    return torch.where((product > 0) & (norm > 0), product / norm, scale)
