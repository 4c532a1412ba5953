"""AdaRound (arXiv 2004.10568): a linear layer whose rounding can be trained.

Each weight stands between its two neighbours on the grid, low and high; h in 0..1 says where,

    value = low + h (high - low),    h = clamp(sigmoid(alpha) (ZETA - GAMMA) + GAMMA, 0, 1),

and starts where the float weight is. The stretched sigmoid reaches 0 and 1 at finite alpha.
"""

import torch

from quantwatt.formats import QuantizedWeight, fit_groups, quantize_to_nearest
from quantwatt.solvers import Solution

ZETA, GAMMA = 1.1, -0.1


def rectified_sigmoid(alpha):
    """h of alpha, elementwise. (hardtanh is a clamp whose gradient takes one pass.)"""
    return torch.nn.functional.hardtanh(torch.sigmoid(alpha) * (ZETA - GAMMA) + GAMMA, 0, 1)


def inverse_rectified_sigmoid(h):
    """alpha of h in 0..1, elementwise."""
    return torch.logit((h - GAMMA) / (ZETA - GAMMA))


class RoundedLinear(torch.nn.Module):
    """The layer of a LayerPlan in float32, its weight between grid points until `fix`.

    alpha: [rows, columns], trained first.
    step: [1] scale of a static activation grid, trained afterwards; None where there is no such grid.
    """

    def __init__(self, plan):
        super().__init__()
        self.plan, self.format = plan, plan.activation_format
        self.scale, self.zero = fit_groups(plan.weight, plan.weight_format)
        column = torch.arange(plan.weight.shape[1], device=plan.weight.device)
        group = column // plan.weight_format.group_size(len(column))
        grid = self.scale[:, group], None if self.zero is None else self.zero[:, group]
        self.codes = plan.weight_format.bracket(plan.weight, *grid)  # (low, high), [rows, columns] each
        self.low, high = (plan.weight_format.decode(codes, *grid) for codes in self.codes)
        self.gap = high - self.low
        # Beyond an end of the grid both neighbours are the same: nothing to choose, and 0/0 is to be avoided.
        fraction = ((plan.weight - self.low) / torch.where(self.gap == 0, 1, self.gap)).clamp(0, 1)
        self.alpha = torch.nn.Parameter(inverse_rectified_sigmoid(fraction.masked_fill(self.gap == 0, 0)))
        static = plan.activation_scale
        self.step = None if static is None else torch.nn.Parameter(static.detach().float().clone(), requires_grad=False)
        self.weight, self.fallback = None, None

    def forward(self, inputs):
        plan = self.plan
        if plan.input_factor is not None:
            inputs = inputs * plan.input_factor
        if self.weight is None:
            self.h = rectified_sigmoid(self.alpha)
        weight = self.low + self.h * self.gap if self.weight is None else self.weight
        bias = None if plan.bias is None else plan.bias.detach().float()
        outputs = torch.nn.functional.linear(self._quantized(inputs), weight, bias)
        return outputs if plan.down is None else outputs + inputs @ plan.down.float().T @ plan.up.float().T

    def _quantized(self, inputs):
        """Inputs on their grid; gradients pass straight through to inputs inside it, and to a static grid's step."""
        if self.format is None:
            return inputs
        static = None if self.step is None else (self.step.detach(), self.plan.activation_zero)
        with torch.no_grad():
            values = self.format.fake_quantize(inputs, static)
        if self.step is None:
            return inputs + (values - inputs).detach()
        level = values / self.step.detach()  # code - zero, without a gradient
        ratio = inputs / self.step
        inside = (level - ratio.detach()).abs() <= 0.5 + 1e-3
        return (level + inside * (ratio - ratio.detach())) * self.step

    def undecided(self, exponent):
        """Σ 1 - |2h - 1|^exponent for the h of the last forward pass: 0 where every weight is on a grid point."""
        # pow takes several times as long as its logarithm, and 1e-9 keeps that finite halfway.
        return self.h.numel() - torch.exp(exponent * torch.log((2 * self.h - 1).abs() + 1e-9)).sum()

    @torch.no_grad()
    def fix(self):
        """Put every weight on the nearer of its two grid points; from now on the step may be trained."""
        plan = self.plan
        if self.alpha.isfinite().all():
            self.quantized = QuantizedWeight(torch.where(self.alpha >= 0, *reversed(self.codes)), self.scale, self.zero)
        else:
            self.quantized, self.fallback = quantize_to_nearest(plan.weight, plan.weight_format), "rtn"
        self.weight = self.quantized.dequantize(plan.weight_format)
        self.alpha.requires_grad_(False)
        if self.step is not None:
            self.step.requires_grad_(True)

    def solution(self):
        """The Solution of a layer that is fixed."""
        if self.step is not None:
            self.quantized.activation_scale = self.step.detach()
            self.quantized.activation_zero = self.plan.activation_zero
        return Solution(self.quantized, fallback=self.fallback)
