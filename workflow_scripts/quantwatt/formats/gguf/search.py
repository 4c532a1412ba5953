"""ggml's searches for the scale of a group, in its order of operations, so that equal weights give equal bytes.

ggml (ggml-quants.c, the functions named below) rounds a group on several grids, fits each by weighted least squares to
its own rounding, and keeps the best. Its sums are in float32, one value after another; a sum in another order is
another number, and could prefer another grid. So sums here run over the values of a group in turn, for all groups at
once.
"""

from collections.abc import Callable

import numpy as np
import torch

TINY = 1e-15  # GROUP_MAX_EPS: a smaller group is treated as zero
AROUND = [0, *range(-9, 0), *range(1, 10)]  # tenths of a code by which `symmetric` shifts its grids
SHIFTS = range(-7, 8)  # codes by which `of_codebook` does


def extreme(values: torch.Tensor) -> torch.Tensor:
    """Return each column's value of the largest magnitude, [count, groups] -> [groups]; of equal ones the first."""
    largest, found = torch.zeros_like(values[0]), torch.zeros_like(values[0])
    for value in values:
        larger = value.abs() > largest
        largest, found = torch.where(larger, value.abs(), largest), torch.where(larger, value, found)
    return found


def affine(
    values: torch.Tensor,
    weights: torch.Tensor,
    highest: int,
    first: float,
    steps: int,
    absolute: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Search value = scale * code + lowest with lowest <= 0 (make_qkx2_quants).

    The grids that are tried divide a group's range into highest + first + 0.1 i steps.

    Args:
        values: [groups, count] float32; weights: of their errors, the same shape.
        highest: the largest code.
        steps: i runs from 0 to `steps`.
        absolute: minimise absolute instead of squared errors.
    Returns:
        (scale [groups], lowest [groups], codes [groups, count] float32).
    """
    x, w = values.T.contiguous(), weights.T.contiguous()  # [count, groups]
    low, high = x.amin(dim=0).clamp_(max=0), x.amax(dim=0)
    flat = high == low
    high = torch.where(flat, low + 1, high)  # whatever is found for these is replaced
    sum_w, sum_x = in_order(w), in_order(w * x)

    def loss(scale, codes, low):
        difference = scale * codes + low - x
        return in_order(w * (difference.abs() if absolute else difference * difference))

    inverse = quotient(highest, high - low)
    scale, codes = 1 / inverse, _rounded(inverse * (x - low), 0, highest)
    error = loss(scale, codes, low)
    for i in range(steps + 1):
        divisions = np.float32(first) + np.float32(0.1) * np.float32(i) + np.float32(highest)
        tried = _rounded(quotient(divisions.item(), high - low) * (x - low), 0, highest)
        weighted = w * tried
        sum_l, sum_l2, sum_xl = in_order(weighted), in_order(weighted * tried), in_order(weighted * x)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        new_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        above = new_low > 0
        new_scale = torch.where(above, sum_xl / sum_l2, new_scale)
        new_low = torch.where(above, 0.0, new_low)
        new_error = loss(new_scale, tried, new_low)
        better = (determinant > 0) & (new_error < error)
        error, scale, low = (
            torch.where(better, new, old) for new, old in ((new_error, error), (new_scale, scale), (new_low, low))
        )
        codes += (tried - codes) * better.float()  # `where` is slow with a broadcast condition
    scale, codes = torch.where(flat, 0.0, scale), torch.where(flat, 0.0, codes)
    return scale, low, codes.T


def symmetric(values: torch.Tensor, middle: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Search value = scale * (code - middle), errors weighted by the squared value (make_qx_quants).

    The scale has the sign that puts the value of the largest magnitude on code 0, the side with one code more.

    Args:
        values: [groups, count] float32.
    Returns:
        (scale [groups], codes [groups, count] float32).
    """
    x = values.T.contiguous()
    largest = extreme(x)
    empty = largest.abs() < TINY
    largest = torch.where(empty, 1.0, largest)
    wx, scale, codes = x * x * x, torch.zeros_like(largest), torch.zeros_like(x)
    best = torch.full_like(largest, -1.0)  # what the fit explains of the weighted squares
    for i in AROUND:
        inverse = quotient(-(np.float32(middle) + np.float32(0.1) * np.float32(i)).item(), largest)
        tried = _rounded(inverse * x, -middle, middle - 1)
        sum_lx, sum_l2 = in_order(wx * tried), in_order(x * x * tried * tried)
        new = sum_lx / sum_l2
        better = (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2)
        scale, best = torch.where(better, new, scale), torch.where(better, new * sum_lx, best)
        codes += (tried - codes) * better.float()
    codes = torch.where(empty, 0.0, codes + middle)
    return torch.where(empty, 0.0, scale), codes.T


def coordinate(values: torch.Tensor, middle: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As `symmetric`, from one grid, by changing a single code at a time while that fits better (make_q3_quants)."""
    x = values.T.contiguous()
    largest = extreme(x)
    empty = largest.abs() < TINY
    inverse = quotient(-middle, torch.where(empty, 1.0, largest))
    w = x * x
    codes = _rounded(inverse * x, -middle, middle - 1)
    sum_lx, sum_l2 = in_order(w * x * codes), in_order(w * codes * codes)
    for _ in range(5):
        for i in range(len(x)):
            without_lx = sum_lx - w[i] * x[i] * codes[i]
            without_l2 = sum_l2 - w[i] * codes[i] * codes[i]
            new = _rounded(x[i] * without_l2 / without_lx, -middle, middle - 1)
            new_lx, new_l2 = without_lx + w[i] * x[i] * new, without_l2 + w[i] * new * new
            better = (without_lx > 0) & (new != codes[i]) & (new_l2 > 0)
            better &= new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2
            codes[i] = torch.where(better, new, codes[i])
            sum_lx, sum_l2 = torch.where(better, new_lx, sum_lx), torch.where(better, new_l2, sum_l2)
    scale = torch.where(sum_l2 > 0, sum_lx / sum_l2, 0.0)
    return torch.where(empty, 0.0, scale), torch.where(empty, 0.0, codes + middle).T


def of_codebook(values: torch.Tensor, end: float, nearest: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Search value = scale * level of a codebook, errors weighted by the squared value (quantize_row_iq4_nl_impl).

    Args:
        values: [groups, count] float32.
        end: the lowest level; nearest: a function that returns the levels nearest to any values.
    Returns:
        scale [groups].
    """
    x = values.T.contiguous()
    largest = extreme(x)
    empty = largest.abs() < TINY
    largest = torch.where(empty, 1.0, largest)
    w, scale, best = x * x, torch.zeros_like(largest), torch.full_like(largest, -1.0)
    for i in (None, *SHIFTS):
        inverse = 1 / (-largest / end) if i is None else quotient(i + end, largest)
        levels = nearest(inverse * x)
        sum_qx, sum_q2 = in_order(w * levels * x), in_order(w * levels * levels)
        new = sum_qx / sum_q2
        better = (sum_q2 > 0) & (sum_qx * sum_qx > best * sum_q2)
        scale, best = torch.where(better, new, scale), torch.where(better, new * sum_qx, best)
    return torch.where(empty, 0.0, scale)


def quotient(number: float, divisor: torch.Tensor) -> torch.Tensor:
    """Return number / divisor, rounded once: torch multiplies a number by the reciprocal."""
    return torch.full_like(divisor, number) / divisor


def in_order(terms: torch.Tensor) -> torch.Tensor:
    """Sum over the first dimension, one term after another."""
    total = terms[0].clone()
    for term in terms[1:]:
        total += term
    return total


def _rounded(values, lowest, highest):
    return values.round().nan_to_num_(0.0).clamp_(lowest, highest)
