"""BRECQ (arXiv 2102.05426) with AdaRound (arXiv 2004.10568): learn the rounding of all weights of a block together.

A block that is fed by the quantized blocks before it is trained to repeat the float block's output. Only the rounding
is learned: each weight goes to one of its two neighbours on the grid. The steps of static activation grids are learned
as in LSQ (arXiv 1902.08153), after the rounding or before it. Activations are quantized throughout.
"""

import copy
import math

import torch

from quantwatt.jobs.progress import progress
from quantwatt.quantize.hold_out import rows_of
from quantwatt.quantize.solvers.adaround import RoundedLinear
from quantwatt.quantize.streams import tensors

NEEDS_BLOCK = True


@torch.enable_grad()
def solve_block(block, plans, batches, targets, family, settings, held=None):
    """Choose the codes of all planned layers of a block.

    Args:
        block: module; not changed.
        plans: {layer's name inside the block: LayerPlan}.
        batches: the block's keyword arguments, one mapping per batch, from the quantized model. Tensors as long as the
            batch are cut into samples; everything else is handed on as the first batch has it.
        targets: what the float block returned for the same samples in the float model, one tensor or tuple per batch.
        family: says which tokens of padded samples are real; the others are in no error.
        settings: of resources/schemas/solvers/brecq.schema.json.
        held: for every batch the samples [samples] bool that are not learned from, or None.
    Returns:
        {name: Solution}; `fallback` is "rtn" for a layer whose training diverged.
    """
    device = next(block.parameters()).device
    block = copy.deepcopy(block).float().requires_grad_(False)
    layers = [RoundedLinear(plan) for plan in plans.values()]
    for name, layer in zip(plans, layers, strict=True):
        block.set_submodule(name, layer)
    samples = Samples(batches, targets, settings["batch_size"], settings["seed"], device, family, held)

    if settings["activation_phase"] == "before":
        _learn_steps(block, layers, samples, settings)
    _learn_rounding(block, layers, samples, settings)
    for layer in layers:
        layer.fix_rounding()
    if settings["activation_phase"] == "after":
        _learn_steps(block, layers, samples, settings)
    return {name: layer.solution() for name, layer in zip(plans, layers, strict=True)}


def _learn_rounding(block, layers, samples, settings):
    def regularizer(iteration):
        beta = exponent(iteration, settings)
        return 0 if beta is None else settings["regularizer"] * sum(layer.undecided(beta) for layer in layers)

    rates = [settings["learning_rate"]] * settings["iterations"]
    _train(block, samples, [layer.alpha for layer in layers], rates, "learning rounding", regularizer)


def exponent(iteration, settings):
    """The regularizer's exponent, in a line from beta_start to beta_end; None during the warm-up without it."""
    first = settings["warm_up"] * settings["iterations"]
    if iteration < first:
        return None
    progressed = (iteration - first) / (settings["iterations"] - first)
    return settings["beta_start"] + (settings["beta_end"] - settings["beta_start"]) * progressed


def _learn_steps(block, layers, samples, settings):
    iterations, first = settings["activation_iterations"], settings["activation_learning_rate"]
    rates = [first * (1 + math.cos(math.pi * i / iterations)) / 2 for i in range(iterations)]
    steps = [layer.log_step for layer in layers if layer.log_step is not None]
    if steps:
        _train(block, samples, steps, rates, "learning activation steps")


def _train(block, samples, parameters, rates, description, regularizer=lambda iteration: 0):
    """Bring a block's outputs near the targets by Adam on some parameters, at one rate per iteration."""
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


def block_error(outputs, targets, real=None):
    """Squared error, summed over channels and averaged over tokens (or pixels), of all tensors that a block returns.

    Args:
        outputs, targets: tensors or tuples of tensors [samples, tokens, channels] or [samples, channels, height,
            width]; None is skipped.
        real: of `Family.real_tokens`, for tensors of tokens.
    """
    pairs = list(zip(tensors(outputs, real), tensors(targets, real), strict=True))
    tokens = sum(target.numel() // target.shape[1 if target.dim() == 4 else -1] for _, target in pairs)
    return sum((output - target).square().sum() for output, target in pairs) / tokens


class Samples:
    """A block's calibration samples, drawn at random from the batches they lie in without copying those together."""

    def __init__(self, batches, targets, size, seed, device, family=None, held=None):
        self.batches, self.targets, self.size = batches, [tensors(target) for target in targets], size
        self.family, self.device = family, device
        self.index = [
            (i, row)
            for i, (target, apart) in enumerate(zip(self.targets, held or [None] * len(targets), strict=True))
            for row in range(len(target[0]))
            if apart is None or not rows_of(apart, len(target[0]))[row]
        ]
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self):
        """(keyword arguments, targets) of `size` different samples, or of all if there are not so many, in float32."""
        order = torch.randperm(len(self.index), generator=self.generator)
        chosen = [self.index[i] for i in order[: self.size].tolist()]
        inputs = {name: self._gather([batch[name] for batch in self.batches], chosen) for name in self.batches[0]}
        return inputs, [self._gather(parts, chosen) for parts in zip(*self.targets, strict=True)]

    def _gather(self, parts, chosen):
        """Rows (batch, row) of one argument, whose values `parts` are one per batch; without rows it is the first's."""
        part = parts[0]
        if isinstance(part, dict):
            return {name: self._gather([one[name] for one in parts], chosen) for name in part}
        if isinstance(part, (tuple, list)):
            return type(part)(self._gather(list(several), chosen) for several in zip(*parts, strict=True))
        if not isinstance(part, torch.Tensor):
            return part
        if part.dim() > 0 and len(part) == len(self.targets[0][0]):
            part = torch.stack([parts[i][row] for i, row in chosen])
        part = part.to(self.device)
        return part.float() if part.is_floating_point() else part
