"""BRECQ (arXiv 2102.05426) with AdaRound (arXiv 2004.10568): learn the rounding of all weights of a block together.

A block that is fed by the quantized blocks before it is trained to repeat the float block's output. Only the rounding
is learned: each weight stays on one of its two neighbours on the grid. Static activation steps follow, as in LSQ
(arXiv 1902.08153), once the weights are fixed.
"""

import copy

import torch

from quantwatt.progress import progress
from quantwatt.solvers.adaround import RoundedLinear

NEEDS_BLOCK = True


@torch.enable_grad()
def solve_block(block, plans, batches, targets, family, settings):
    """Choose the codes of all planned layers of a block.

    Args:
        block: module; not changed.
        plans: {layer's name inside the block: LayerPlan}.
        batches: the block's keyword arguments, one mapping per batch, from the quantized model. Tensors as long as the
            batch are cut into samples; everything else is handed on as the first batch has it.
        targets: what the float block returned for the same samples in the float model, one tensor or tuple per batch.
        family: not read; a block is called by keywords alone.
        settings: of resources/schemas/solvers/brecq.schema.json.
    Returns:
        {name: Solution}; `fallback` is "rtn" for a layer whose training diverged.
    """
    device = next(block.parameters()).device
    block = copy.deepcopy(block).float().requires_grad_(False)
    layers = {name: RoundedLinear(plan) for name, plan in plans.items()}
    for name, layer in layers.items():
        block.set_submodule(name, layer)
    samples = Samples(batches, targets, device)
    draws = torch.Generator().manual_seed(settings["seed"])
    _train_rounding(block, layers.values(), samples, draws, settings)
    for layer in layers.values():
        layer.fix()
    _train_steps(block, [layer for layer in layers.values() if layer.step is not None], samples, draws, settings)
    return {name: layer.solution() for name, layer in layers.items()}


def _train_rounding(block, layers, samples, draws, settings):
    """Minimise the block's error; after the warm-up a regularizer, sharper and sharper, drives every h to 0 or 1."""
    optimizer = torch.optim.Adam([layer.alpha for layer in layers], settings["learning_rate"], fused=True)
    for iteration in progress(range(settings["iterations"]), description="learning rounding", unit="step"):
        inputs, outputs = samples.draw(settings["batch_size"], draws)
        loss = block_error(block(**inputs), outputs)
        beta = exponent(iteration, settings)
        if beta is not None:
            loss = loss + settings["regularizer"] * sum(layer.undecided(beta) for layer in layers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def exponent(iteration, settings):
    """The regularizer's exponent, from beta_start down to beta_end in a line; None during the warm-up."""
    first = settings["warm_up"] * settings["iterations"]
    if iteration < first:
        return None
    progressed = (iteration - first) / (settings["iterations"] - first)
    return settings["beta_start"] + (settings["beta_end"] - settings["beta_start"]) * progressed


def _train_steps(block, layers, samples, draws, settings):
    """Learn the steps of static activation grids on the rounded weights, at a rate that falls to zero as a cosine."""
    if not layers:
        return
    optimizer = torch.optim.Adam([layer.step for layer in layers], settings["activation_learning_rate"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings["activation_iterations"])
    for _ in progress(range(settings["activation_iterations"]), description="learning activation steps", unit="step"):
        inputs, outputs = samples.draw(settings["batch_size"], draws)
        optimizer.zero_grad()
        block_error(block(**inputs), outputs).backward()
        optimizer.step()
        schedule.step()


def block_error(outputs, targets):
    """Squared error, summed over channels and averaged over tokens (or pixels), of all tensors that a block returns.

    Args:
        outputs, targets: tensors or tuples of tensors [samples, tokens, channels] or [samples, channels, height,
            width]; None is skipped.
    """
    pairs = list(zip(tensors(outputs), tensors(targets), strict=True))
    tokens = sum(target.numel() // target.shape[1 if target.dim() == 4 else -1] for _, target in pairs)
    return sum((output - target).square().sum() for output, target in pairs) / tokens


def tensors(outputs):
    """The tensors that a block has returned, in order."""
    return [outputs] if isinstance(outputs, torch.Tensor) else [part for part in outputs if part is not None]


class Samples:
    """A block's calibration samples, drawn from the batches they lie in without copying them together."""

    def __init__(self, batches, targets, device):
        self.batches, self.targets, self.device = batches, [tensors(target) for target in targets], device
        self.index = [(i, row) for i, target in enumerate(self.targets) for row in range(len(target[0]))]

    def draw(self, count, generator):
        """Float32 (keyword arguments, targets) of `count` samples at random, or of all if there are not so many."""
        chosen = [self.index[i] for i in torch.randperm(len(self.index), generator=generator)[:count].tolist()]
        inputs = {name: self._gather([batch[name] for batch in self.batches], chosen) for name in self.batches[0]}
        return inputs, [self._gather(parts, chosen) for parts in zip(*self.targets, strict=True)]

    def _gather(self, parts, chosen):
        """Rows (batch, row) of one argument's values, one per batch; one that has no rows stays as it is."""
        part = parts[0]
        if not isinstance(part, torch.Tensor):
            return part
        if part.dim() > 0 and len(part) == len(self.targets[0][0]):
            part = torch.stack([parts[i][row] for i, row in chosen])
        return part.to(self.device, torch.float32 if part.is_floating_point() else part.dtype)
