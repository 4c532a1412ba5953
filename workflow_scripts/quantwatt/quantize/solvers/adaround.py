"""AdaRound (arXiv 2004.10568): a linear or convolution layer whose rounding can be trained.

Each weight lies between its two neighbours on the grid, low and high, at the position h in 0..1:

    value = low + h (high - low),    h = clamp(sigmoid(alpha) (ZETA - GAMMA) + GAMMA, 0, 1),

Training starts at the float weight. The stretched sigmoid reaches 0 and 1 at finite alpha.
"""

import torch

from quantwatt.formats import convolution
from quantwatt.formats.quantized_weight import QuantizedWeight, fit_groups, quantize_to_nearest
from quantwatt.quantize.layer_plan import LayerPlan
from quantwatt.quantize.solvers import Solution

ZETA, GAMMA = 1.1, -0.1


def rectified_sigmoid(alpha: torch.Tensor) -> torch.Tensor:
    """Return h of alpha, elementwise; hardtanh is a clamp whose gradient takes a single pass over memory."""
    return torch.nn.functional.hardtanh(torch.sigmoid(alpha) * (ZETA - GAMMA) + GAMMA, 0, 1)


def inverse_rectified_sigmoid(h: torch.Tensor) -> torch.Tensor:
    """Return alpha of h in 0..1, elementwise."""
    return torch.logit((h - GAMMA) / (ZETA - GAMMA))


class RoundedLinear(torch.nn.Module):
    """The layer of a LayerPlan in float32, with weights between grid points until `fix_rounding`.

    alpha: [rows, columns], the position of each weight between its grid points.
    log_step: [1], logarithm of the scale of a static activation grid; None if the layer has no such grid. The logarithm
        keeps the scale positive and makes the learning rate independent of the inputs' magnitude.
    Neither requires a gradient until the solver trains it.
    """

    def __init__(self, plan: LayerPlan):
        super().__init__()
        self.plan, self.activation_format = plan, plan.activation_format
        weight_format = plan.weight_format.bound(plan.weight)
        self.scale, self.zero = fit_groups(plan.weight, weight_format)
        column = torch.arange(plan.weight.shape[1], device=plan.weight.device)
        group = column // weight_format.group_width(len(column))
        grid = self.scale[:, group], None if self.zero is None else self.zero[:, group]
        self.codes = weight_format.bracket(plan.weight, *grid)  # (low, high), [rows, columns] each
        self.low, high = (weight_format.decode(codes, *grid) for codes in self.codes)
        self.gap = high - self.low
        # Beyond the ends of the grid both neighbours are equal: there is no choice, and 0/0 must be avoided.
        fraction = ((plan.weight - self.low) / torch.where(self.gap == 0, 1, self.gap)).clamp(0, 1)
        self.alpha = torch.nn.Parameter(inverse_rectified_sigmoid(fraction), requires_grad=False)
        step = plan.activation_scale
        self.log_step = None if step is None else torch.nn.Parameter(step.float().log(), requires_grad=False)
        self.bias = None if plan.bias is None else plan.bias.detach().float()
        self.quantized: QuantizedWeight | None = None
        self.fallback: str | None = None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        plan, inputs = self.plan, self.plan.scaled(self.plan.rest(inputs))
        outputs = convolution.product(self._quantize(inputs), self._weight(), self.bias, plan.geometry)
        if plan.down is not None and plan.up is not None:
            down, up = (part.to(plan.dtype).float() for part in (plan.down, plan.up))
            outputs = outputs + inputs @ down.T @ up.T
        if plan.first_output is not None:
            first = plan.first_output if self.bias is None else plan.first_output + self.bias
            outputs = torch.cat([first.expand(len(outputs), 1, -1), outputs], dim=1)
        return outputs

    def _weight(self):
        if self.quantized is not None:
            return self.weight
        self.h = rectified_sigmoid(self.alpha)
        return self.low + self.h * self.gap

    def _quantize(self, inputs):
        """Fake-quantize inputs: straight-through gradients for inputs inside the grid, LSQ's for a static step."""
        if self.activation_format is None:
            return inputs
        if self.log_step is None:
            return inputs + (self._rounded(inputs) - inputs).detach()
        step = self.log_step.exp()
        level = self._rounded(inputs, (step.detach(), self.plan.activation_zero)) / step.detach()  # code - zero
        ratio = inputs / step
        inside = self.activation_format.inside(ratio.detach(), level)
        return (level + inside * (ratio - ratio.detach())) * step

    def _rounded(self, inputs, grid=None):
        if self.activation_format is None:
            return inputs.detach()
        return convolution.rounded(inputs.detach(), self.activation_format, grid, self.plan.geometry)

    def undecided(self, exponent: float) -> torch.Tensor:
        """Return Σ (1 - |2h - 1|^exponent) for h of the last forward pass: 0 if every weight is on a grid point."""
        # exp and log are several times faster than pow; 1e-9 keeps the logarithm finite at h = 1/2.
        return self.h.numel() - torch.exp(exponent * torch.log((2 * self.h - 1).abs() + 1e-9)).sum()

    @torch.no_grad()
    def fix_rounding(self) -> None:
        """Round every trained weight to the nearer of its two grid points; diverged layers fall back to "rtn"."""
        if self.alpha.isfinite().all():
            low, high = self.codes
            self.quantized = QuantizedWeight(torch.where(self.alpha >= 0, high, low), self.scale, self.zero)
        else:
            self.quantized, self.fallback = quantize_to_nearest(self.plan.weight, self.plan.weight_format), "rtn"
        self.weight = self.quantized.dequantize(self.plan.weight_format)

    @torch.no_grad()
    def solution(self) -> Solution:
        """Return the Solution of a layer after `fix_rounding`."""
        if self.quantized is None:
            raise ValueError("call fix_rounding before solution")
        if self.log_step is not None and self.plan.activation_scale is not None:
            step = self.log_step.exp()
            self.quantized.activation_scale = torch.where(step.isfinite(), step, self.plan.activation_scale)
            self.quantized.activation_zero = self.plan.activation_zero
        return Solution(self.quantized, fallback=self.fallback)
