"""GPTQ (arXiv 2210.17323), in its LDL form (QuIP, arXiv 2307.13304, theorem 6).

With H = U D Uᵀ, U unit upper triangular, quantizing the columns in order and letting each see the errors of those
before it,

    q_j = Q(w_j + Σ_{k<j} (w_k - q_k) U[k, j]),

gives the same values as GPTQ's inverse Cholesky form with one factorization instead of three. Tensors are kept
transposed, [columns, rows], so that a column of the weight is contiguous.
"""

import torch

from quantwatt.formats import QuantizedWeight, fit_groups, quantize_to_nearest
from quantwatt.solvers import Solution

DAMPING_TRIES = 4  # each ten times the one before
SUB_BLOCK = 32  # columns corrected one by one before a matrix product takes over


class Hessian:
    """Running mean of 2·x·xᵀ over tokens, in float32."""

    def __init__(self, columns):
        self.value = torch.zeros(columns, columns)
        self.tokens = 0

    def observe(self, inputs):
        """Add inputs [tokens, columns]."""
        inputs = inputs.float()
        self.tokens += len(inputs)
        weight = 2 / self.tokens
        self.value.mul_(1 - len(inputs) / self.tokens).addmm_(inputs.T, inputs, alpha=weight)

    def scaled(self, factor):
        """The statistics of inputs multiplied by factor [columns]."""
        scaled = Hessian(len(factor))
        scaled.value, scaled.tokens = factor[:, None] * self.value * factor, self.tokens
        return scaled


new_statistics = Hessian


def solve(weight, weight_format, settings, statistics):
    """Choose codes that keep the layer's output close on the observed inputs.

    Args:
        weight: [rows, columns] float32.
        settings: damping, act_order, static_groups, block_size.
        statistics: Hessian of the layer's inputs.
    Returns:
        Solution; `fallback` is "damping", "float64" or "rtn" when the factorization failed at first.
    """
    hessian, weight = statistics.value.clone(), weight.clone()
    dead = hessian.diagonal() == 0
    hessian[dead, dead] = 1
    weight[:, dead] = 0

    # Groups are fitted on the stored order of the columns; with act_order they must be fixed before it is left.
    static = settings["static_groups"] or settings["act_order"]
    scale, zero = fit_groups(weight, weight_format) if static else (None, None)
    order = torch.argsort(hessian.diagonal(), descending=True) if settings["act_order"] else torch.arange(len(hessian))
    factor, damping, fallback = factorize(hessian[order][:, order], settings["damping"])
    if factor is None:
        return Solution(quantize_to_nearest(weight, weight_format), None, "rtn")

    columns = len(order)
    width = weight_format.group_size(columns)
    feedback = factor.T.contiguous()  # feedback[j, k]: what column j takes of the error of column k < j
    source = weight.T[order].contiguous()  # [columns, rows]
    error = torch.empty_like(source)
    codes = torch.empty(source.shape, dtype=torch.uint8)
    grids = []
    step = settings["block_size"] if static else width
    for start in range(0, columns, step):
        stop = min(start + step, columns)
        block = source[start:stop] + feedback[start:stop, :start] @ error[:start]
        if not static:
            grids.append(weight_format.fit(_updated(source, feedback, error, start, stop).T))
        for first in range(start, stop, SUB_BLOCK):
            last = min(first + SUB_BLOCK, stop)
            block[first - start : last - start].addmm_(feedback[first:last, start:first], error[start:first])
            for j in range(first, last):
                column = block[j - start].addmv_(error[first:j].T, feedback[j, first:j])
                grid_scale, grid_zero = _grid_of(order[j], width, scale, zero) if static else _flat(grids[-1])
                codes[j] = weight_format.encode(column, grid_scale, grid_zero)
                torch.sub(source[j], weight_format.decode(codes[j], grid_scale, grid_zero), out=error[j])
    if not static:
        scale = torch.cat([s for s, _ in grids], dim=1)
        zero = None if grids[0][1] is None else torch.cat([z for _, z in grids], dim=1)
    return Solution(QuantizedWeight(codes[torch.argsort(order)].T.contiguous(), scale, zero), damping, fallback)


def factorize(hessian, damping):
    """Unit upper triangular U, less its diagonal, of H + damping·mean(diag H)·I = U D Uᵀ.

    Returns:
        (U [columns, columns] or None, damping used, None | "damping" | "float64" | "rtn").
    """
    mean = hessian.diagonal().mean()
    for dtype in (torch.float32, torch.float64):
        for attempt in range(DAMPING_TRIES):
            used = damping * 10**attempt
            damped = hessian.to(dtype, copy=True)
            damped.diagonal().add_(used * mean)
            lower, info = torch.linalg.cholesky_ex(damped.flip(0, 1))  # flipped, so that its factor is upper in order
            if info == 0 and lower.isfinite().all():
                upper = lower.flip(0, 1)
                rung = "float64" if dtype == torch.float64 else "damping" if attempt else None
                return torch.triu(upper / upper.diagonal(), 1).float(), used, rung
    return None, None, "rtn"


def _updated(source, feedback, error, start, stop):
    """Weights [stop - start, rows] as GPTQ has updated them when it reaches column `start`."""
    own = feedback[start:stop, start:stop]
    pushed = feedback[start:stop, :start] @ error[:start]
    return source[start:stop] + torch.linalg.solve_triangular(own, pushed, upper=False, unitriangular=True)


def _grid_of(column, width, scale, zero):
    group = column // width
    return scale[:, group], None if zero is None else zero[:, group]


def _flat(grid):
    scale, zero = grid
    return scale[:, 0], None if zero is None else zero[:, 0]
