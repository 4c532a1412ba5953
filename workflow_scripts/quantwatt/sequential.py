"""Walk a denoiser block by block, so that each layer's statistics see the blocks before it already quantized.

Memory is one block's statistics plus the calibration samples at one depth, whatever the number of blocks.
"""

import time
from contextlib import contextmanager

import torch

from quantwatt import registry
from quantwatt.formats import load_format, stored_bits
from quantwatt.linear import SimulatedLinear
from quantwatt.progress import progress

BATCH = 32  # calibration samples per forward pass


@torch.no_grad()
def quantize(denoiser, family, allocation, solver_settings, samples=None):
    """Quantize every allocated layer, replacing it in `denoiser` by the simulated layer as it goes.

    Args:
        denoiser: float module on the CPU; changed in place.
        allocation: {layer: {"weights", "activations"}} as `quantwatt.allocation.allocate` returns.
        solver_settings: a method's completed `solver` entry.
        samples: {denoiser input: [samples, ...]}; needed by solvers that read statistics.
    Returns:
        {layer: QuantizedWeight} and {layer: report}, where a report holds format, bits, relative_error (of the
        output on the calibration inputs where they were seen, else of the weights), damping, fallback and seconds.
    """
    solver = registry.load("solvers", solver_settings["name"])
    observes = hasattr(solver, "new_statistics")
    inputs = _first_block_inputs(denoiser, family, samples) if observes else None
    quantized, reports = {}, {}
    for block_name in progress(
        family.blocks(denoiser), description=f"quantizing by {solver_settings['name']}", unit="block"
    ):
        block = denoiser.get_submodule(block_name)
        names = [name for name in allocation if name.startswith(block_name + ".")]
        statistics = _observe(denoiser, block, names, inputs, solver) if observes else {}
        for name in names:
            layer = denoiser.get_submodule(name)
            quantized[name], reports[name] = _solve(
                layer, allocation[name], solver, solver_settings, statistics.get(name)
            )
            simulated = SimulatedLinear.build(
                quantized[name], load_format(allocation[name]["weights"]), allocation[name]["activations"],
                layer.bias, layer.weight.dtype,
            )  # fmt: skip
            denoiser.set_submodule(name, simulated)
        statistics.clear()
        if observes:
            inputs = [family.advance(batch, block(**batch)) for batch in inputs]
    return quantized, reports


def _solve(layer, formats, solver, solver_settings, statistics):
    start = time.perf_counter()
    weight_format = load_format(formats["weights"])
    weight = layer.weight.detach().float()  # [rows, columns]
    solution = solver.solve(weight, weight_format, solver_settings, statistics)
    difference = weight - solution.weight.dequantize(weight_format)
    if statistics is None:
        error = difference.square().sum() / weight.square().sum()
    else:
        error = _energy(difference, statistics.value) / _energy(weight, statistics.value)
    return solution.weight, {
        **formats,
        "in_features": layer.in_features,
        "out_features": layer.out_features,
        "stored_bits": stored_bits(*weight.shape, weight_format),
        "relative_error": error.sqrt().item(),
        "error_of": "weights" if statistics is None else "outputs",
        "damping": solution.damping,
        "fallback": solution.fallback,
        "seconds": time.perf_counter() - start,
    }


def _energy(weight, hessian):
    """Σ over outputs of w H wᵀ: squared output up to a constant."""
    return ((weight @ hessian) * weight).sum()


def _observe(denoiser, block, names, inputs, solver):
    """Statistics of each layer's inputs; layers that are fed the same tensor share one object."""
    statistics, handles, fed = {}, [], {}

    def assign(name):
        def hook(module, args):
            tensor = args[0]
            if name not in statistics:  # first batch: find out who shares an input
                key = (tensor.data_ptr(), tuple(tensor.shape))
                if key not in fed:
                    fed[key] = (solver.new_statistics(module.in_features), name, tensor)  # keeps the tensor alive
                statistics[name] = fed[key][:2]
            shared, owner = statistics[name]
            if owner == name:
                shared.observe(tensor.reshape(-1, tensor.shape[-1]))

        return hook

    for name in names:
        handles.append(denoiser.get_submodule(name).register_forward_pre_hook(assign(name)))
    try:
        for batch in inputs:
            block(**batch)
            fed.clear()
    finally:
        for handle in handles:
            handle.remove()
    return {name: shared for name, (shared, _) in statistics.items()}


class _Stop(Exception):
    """Ends a forward pass once the first block's inputs are known."""


def _first_block_inputs(denoiser, family, samples):
    """Keyword arguments of the first block for every batch of samples."""
    captured = []

    def capture(module, args, kwargs):
        captured.append(kwargs)
        raise _Stop

    with _pre_hook(denoiser.get_submodule(family.blocks(denoiser)[0]), capture):
        count = len(next(iter(samples.values())))
        for first in range(0, count, BATCH):
            try:
                denoiser(**{name: tensor[first : first + BATCH] for name, tensor in samples.items()})
            except _Stop:
                continue
    return captured


@contextmanager
def _pre_hook(module, hook):
    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
