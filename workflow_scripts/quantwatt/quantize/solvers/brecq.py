"""BRECQ (arXiv 2102.05426) with AdaRound (arXiv 2004.10568): learn the rounding of all weights of a block together.

A block gets its inputs from the quantized blocks before it and is trained to reproduce the float block's output. Only
the rounding is learned: each weight goes to one of its two neighbours on the grid. The steps of static activation grids
are learned as in LSQ (arXiv 1902.08153), before or after the rounding. Activations are always fake-quantized.
"""

import copy
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from quantwatt.jobs.progress import progress
from quantwatt.quantize.hold_out import rows_of
from quantwatt.quantize.solvers import BlockSolver, Solution
from quantwatt.quantize.solvers.adaround import RoundedLinear
from quantwatt.quantize.streams import tensors


@dataclass(frozen=True, kw_only=True)
class Solver(BlockSolver):
    """Minimises the error of the whole block's output by Adam."""

    iterations: int  # training steps for the rounding
    learning_rate: float
    batch_size: int  # samples per iteration
    regularizer: float  # factor of the regularizer, which drives every weight to a grid point
    beta_start: float  # the regularizer's exponent at the start
    beta_end: float  # and at the end
    warm_up: float  # fraction of the iterations without the regularizer
    activation_phase: Literal["before", "after"]  # when the steps of static grids are learned
    activation_iterations: int
    activation_learning_rate: float
    seed: int  # of the random samples

    @torch.enable_grad()
    def solve_block(
        self,
        block: torch.nn.Module,
        plans: Mapping[str, Any],
        batches: Sequence[Mapping[str, Any]],
        targets: Sequence[Any],
        family: Any,
        held: Sequence[torch.Tensor | None] | None = None,
    ) -> dict[str, Solution]:
        """As in BlockSolver; `fallback` is "rtn" for a layer whose training diverged."""
        device = next(block.parameters()).device
        block = copy.deepcopy(block).float().requires_grad_(False)
        layers = [RoundedLinear(plan) for plan in plans.values()]
        for name, layer in zip(plans, layers, strict=True):
            block.set_submodule(name, layer)
        samples = Samples(batches, targets, self.batch_size, self.seed, device, family, held)

        if self.activation_phase == "before":
            self._learn_steps(block, layers, samples)
        self._learn_rounding(block, layers, samples)
        for layer in layers:
            layer.fix_rounding()
        if self.activation_phase == "after":
            self._learn_steps(block, layers, samples)
        return {name: layer.solution() for name, layer in zip(plans, layers, strict=True)}

    def _learn_rounding(self, block, layers, samples):
        def regularizer(iteration):
            beta = self.exponent(iteration)
            return 0 if beta is None else self.regularizer * sum(layer.undecided(beta) for layer in layers)

        rates = [self.learning_rate] * self.iterations
        _train(block, samples, [layer.alpha for layer in layers], rates, "learning rounding", regularizer)

    def exponent(self, iteration: int) -> float | None:
        """Return the regularizer's exponent, linear from beta_start to beta_end; None during the warm-up."""
        first = self.warm_up * self.iterations
        if iteration < first:
            return None
        progressed = (iteration - first) / (self.iterations - first)
        return self.beta_start + (self.beta_end - self.beta_start) * progressed

    def _learn_steps(self, block, layers, samples):
        iterations, first = self.activation_iterations, self.activation_learning_rate
        rates = [first * (1 + math.cos(math.pi * i / iterations)) / 2 for i in range(iterations)]
        steps = [layer.log_step for layer in layers if layer.log_step is not None]
        if steps:
            _train(block, samples, steps, rates, "learning activation steps")


def _train(block, samples, parameters, rates, description, regularizer=lambda iteration: 0):
    """Train parameters by Adam to fit a block's outputs to the targets, with one learning rate per iteration."""
    optimizer = torch.optim.Adam([parameter.requires_grad_(True) for parameter in parameters], fused=True)
    for iteration, rate in enumerate(progress(rates, description=description, unit="step")):
        inputs, targets = samples.draw()
        real = samples.family.real_tokens(inputs)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        (block_error(block(**inputs), targets, real) + regularizer(iteration)).backward()
        optimizer.step()
    for parameter in parameters:
        parameter.requires_grad_(False)


def block_error(outputs: Any, targets: Any, real: torch.Tensor | None = None) -> torch.Tensor:
    """Return the squared error of all outputs of a block, summed over channels and averaged over tokens (or pixels).

    Args:
        outputs, targets: tensors or tuples of tensors [samples, tokens, channels] or [samples, channels, height,
            width]; entries that are None are skipped.
        real: as `Family.real_tokens` returns, for tensors of tokens.
    """
    pairs = list(zip(tensors(outputs, real), tensors(targets, real), strict=True))
    tokens = sum(target.numel() // target.shape[1 if target.dim() == 4 else -1] for _, target in pairs)
    errors = [(output - target).square().sum() for output, target in pairs]
    return functools.reduce(torch.add, errors) / tokens


class Samples:
    """Draws calibration samples of a block at random from several batches, without concatenating the batches."""

    def __init__(
        self,
        batches: Sequence[Mapping[str, Any]],
        targets: Sequence[Any],
        size: int,
        seed: int,
        device: torch.device | str,
        family: Any | None = None,
        held: Sequence[torch.Tensor | None] | None = None,
    ):
        self.batches, self.targets, self.size = batches, [tensors(target) for target in targets], size
        self.family, self.device = family, device
        self.index = [
            (i, row)
            for i, (target, held_samples) in enumerate(zip(self.targets, held or [None] * len(targets), strict=True))
            for row in range(len(target[0]))
            if held_samples is None or not rows_of(held_samples, len(target[0]))[row]
        ]
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self) -> tuple[dict[str, Any], list[torch.Tensor]]:
        """Return (keyword arguments, targets) of `size` different samples, or of all if there are fewer, in float32."""
        order = torch.randperm(len(self.index), generator=self.generator)
        chosen = [self.index[i] for i in order[: self.size].tolist()]
        inputs = {name: self._gather([batch[name] for batch in self.batches], chosen) for name in self.batches[0]}
        return inputs, [self._gather(parts, chosen) for parts in zip(*self.targets, strict=True)]

    def _gather(self, parts, chosen):
        """Stack the chosen (batch, row) of an argument, given per batch; arguments without rows: the first batch's."""
        part = parts[0]
        if isinstance(part, dict):
            return {name: self._gather([value[name] for value in parts], chosen) for name in part}
        if isinstance(part, (tuple, list)):
            return type(part)(self._gather(list(several), chosen) for several in zip(*parts, strict=True))
        if not isinstance(part, torch.Tensor):
            return part
        if part.dim() > 0 and len(part) == len(self.targets[0][0]):
            part = torch.stack([parts[i][row] for i, row in chosen])
        part = part.to(self.device)
        return part.float() if part.is_floating_point() else part
