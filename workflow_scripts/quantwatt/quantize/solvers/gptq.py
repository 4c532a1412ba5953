"""GPTQ (arXiv 2210.17323), in its LDL form (QuIP, arXiv 2307.13304, theorem 6).

With H = U D Uᵀ, U unit upper triangular, columns are quantized in order and corrected by the errors of earlier columns,

    q_j = Q(w_j + Σ_{k<j} (w_k - q_k) U[k, j]).

This gives the same values as GPTQ's inverse Cholesky form, with one factorization instead of three. Tensors are stored
transposed, [columns, rows], so that a column of the weight is contiguous.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from quantwatt.formats.grids import Grids
from quantwatt.formats.quantized_weight import QuantizedWeight, quantize_to_nearest
from quantwatt.formats.weight_format import WeightFormat
from quantwatt.quantize.observers import Observers
from quantwatt.quantize.solvers import LayerSolver, Solution

DAMPING_TRIES = 4  # the damping grows tenfold per attempt
SUB_BLOCK = 32  # columns corrected one by one, before a matrix product corrects later columns


@dataclass(frozen=True, kw_only=True)
class ColumnSolver(LayerSolver):
    """Quantizes column after column with `diffuse`."""

    act_order: bool  # columns in descending order of the diagonal
    static_groups: bool  # grids are fitted before any column is quantized
    block_size: int  # columns corrected together

    def of_channel_groups(self) -> Self:
        return replace(self, act_order=False)  # the column order would differ between channel groups


@dataclass(frozen=True, kw_only=True)
class Solver(ColumnSolver):
    """Minimises the output error on the observed inputs."""

    NEEDS: ClassVar = ("hessian",)

    damping: float  # fraction of the Hessian's mean diagonal

    def solve(self, weight: torch.Tensor, weight_format: WeightFormat, statistics: Observers) -> Solution:
        """Choose codes that keep the layer's output close on the observed inputs.

        Args:
            weight: [rows, columns] float32.
            statistics: hessian of the layer's inputs.
        Returns:
            Solution; `fallback` is "damping", "float64" or "rtn" if the first factorization failed, "columns" if some
            inputs were not finite: their columns are rounded to nearest and correct no other column.
        """
        hessian, usable = prepare(statistics.hessian.value)
        weight = torch.where(hessian.diagonal() == 0, 0.0, weight)  # a column without inputs
        order = order_of(hessian, self)
        lower, damping, fallback = factorize(permuted(hessian, order), self.damping)
        if lower is None or not usable.any():
            return Solution(quantize_to_nearest(weight, weight_format), None, "rtn")
        quantized = diffuse(weight.index_select(1, order).T.contiguous(), weight, weight_format, self, order, lower)
        return Solution(quantized, damping, fallback or (None if usable.all() else "columns"))


def prepare(hessian: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (Hessian without entries of non-finite columns, which columns are finite [columns] bool)."""
    usable = hessian.diagonal().isfinite()
    if usable.all():
        return hessian, usable
    hessian = torch.where(usable & usable[:, None], hessian, 0.0)
    mean = hessian.diagonal().sum() / usable.sum().clamp(min=1)
    hessian.diagonal()[~usable] = mean if mean > 0 else 1.0
    return hessian, usable


def order_of(hessian: torch.Tensor, solver: ColumnSolver) -> torch.Tensor:
    """Return the order [columns] of quantization: with act_order by descending diagonal of the Hessian."""
    if solver.act_order:
        return torch.argsort(hessian.diagonal(), descending=True, stable=True)
    return torch.arange(len(hessian), device=hessian.device)


def permuted(hessian: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Return the Hessian with rows and columns in another order."""
    return hessian.index_select(0, order).index_select(1, order)


def factorize(hessian: torch.Tensor, damping: float) -> tuple[torch.Tensor | None, float | None, str | None]:
    """Return the Cholesky factor of the damped Hessian in reversed order; flipped back, it is the upper R of H = R Rᵀ.

    Columns with a zero diagonal are treated as independent of all others.

    Returns:
        (lower triangular [columns, columns] or None, damping used, None | "damping" | "float64" | "rtn").
    """
    mean = hessian.diagonal().mean()
    dead = (hessian.diagonal() == 0).flip(0)
    for dtype in (torch.float32, torch.float64):
        for attempt in range(DAMPING_TRIES):
            used = damping * 10**attempt
            damped = hessian.flip(0, 1).to(dtype, copy=True)
            damped.diagonal().add_(used * mean).add_(dead)
            lower, info = torch.linalg.cholesky_ex(damped)
            if info == 0 and lower.isfinite().all():
                return lower.float(), used, "float64" if dtype == torch.float64 else "damping" if attempt else None
    return None, None, "rtn"


def diffuse(
    source: torch.Tensor,
    weight: torch.Tensor,
    weight_format: WeightFormat,
    solver: ColumnSolver,
    order: torch.Tensor,
    lower: torch.Tensor,
    first: torch.Tensor | None = None,
) -> QuantizedWeight:
    """Quantize column after column, each corrected by the errors of earlier columns.

    Args:
        source: [columns, rows] float32 in the order of quantization, the values that errors are measured against; with
            `first`, Uᵀ times these values, which already contains Σ_{k<j} w_k U[k, j], so that only q is propagated.
        weight: [rows, columns], to which static grids are fitted.
        order: [columns]; lower: as `factorize` returns, in that order.
        first: [rows], the values to round for the first column, instead of those in `source`.
    Returns:
        QuantizedWeight.
    """
    weight_format = weight_format.bound(weight)
    columns, pushed = len(source), first is not None
    width, together = weight_format.group_width(columns), weight_format.fit_width(columns)
    place = torch.arange(columns, device=order.device)
    static = solver.static_groups or together == columns
    grids = Grids.fitted(weight, weight_format) if static else Grids()
    group = (order if static else place) // width  # group of each column, in the order of quantization
    # feedback[j, k] = U[k, j]: the fraction of the error of column k < j that is added to column j.
    feedback = (lower / lower.diagonal()).T.flip(0, 1).tril_(-1)
    error = torch.empty_like(source)
    codes = torch.empty(source.shape, dtype=torch.uint8, device=source.device)
    step = solver.block_size if static else together
    for start in range(0, columns, step):
        stop = min(start + step, columns)
        block = feedback[start:stop, :start] @ error[:start]
        if not static:
            # Unquantized values as GPTQ reaches this group (or those fitted together), with corrections inside it.
            within = feedback[start:stop, start:stop]
            inverse = torch.linalg.solve_triangular(
                within, torch.eye(stop - start, device=within.device), upper=False, unitriangular=True
            )
            known = inverse @ source[start:stop] if pushed else source[start:stop]
            grids.append(weight_format.fit(known.addmm(inverse, block).T))
        block += source[start:stop]
        if start == 0 and first is not None:
            block[0] = first
        groups = group[start:stop].tolist()
        for begin in range(start, stop, SUB_BLOCK):
            end = min(begin + SUB_BLOCK, stop)
            block[begin - start : end - start].addmm_(feedback[begin:end, start:begin], error[start:begin])
            for j in range(begin, end):
                column = block[j - start].addmv_(error[begin:j].T, feedback[j, begin:j])
                column.copy_(weight_format.snap(column, *grids[groups[j - start]]))
                torch.neg(column, out=error[j]) if pushed else torch.sub(source[j], column, out=error[j])
        codes[start:stop] = weight_format.encode(block, *grids.of(group[start:stop]))
    unordered = torch.empty_like(codes)
    unordered[order] = codes
    group_index = None
    if not static and solver.act_order:
        group_index = torch.empty_like(order, dtype=torch.int32)
        group_index[order] = group.int()
    return QuantizedWeight(unordered.T.contiguous(), *grids.stored(), group_index=group_index)
