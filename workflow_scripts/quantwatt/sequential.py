"""Walk a denoiser block by block, so that each layer's statistics see the blocks before it already quantized.

Memory is one block's statistics plus the calibration samples at one depth, whatever the number of blocks.
"""

import time
from contextlib import contextmanager
from dataclasses import replace

import torch

from quantwatt import registry
from quantwatt.formats import load_format, stored_bits
from quantwatt.linear import SimulatedLinear
from quantwatt.progress import progress


@torch.no_grad()
def quantize(denoiser, family, allocation, method, samples=None, batch=None):
    """Quantize every allocated layer, replacing it in `denoiser` by the simulated layer as it goes.

    Args:
        denoiser: float module on the CPU; changed in place.
        allocation: {layer: {"weights", "activations"}} as `quantwatt.allocation.allocate` returns.
        method: a completed method, for its solver and its transforms.
        samples: {denoiser input: [samples, ...]}; needed where a solver or transform reads statistics.
        batch: samples per forward pass.
    Returns:
        {layer: QuantizedWeight} and {layer: report}, where a report holds format, bits, relative_error (of the
        output on the calibration inputs where the solver saw them, else of the weights), damping, fallback, seconds.
    """
    solver = registry.load("solvers", method["solver"]["name"])
    transforms = [(registry.load("transforms", t["name"]), t) for t in method["transforms"]]
    observers = [m for m in (solver, *(module for module, _ in transforms)) if hasattr(m, "new_statistics")]
    inputs = _first_block_inputs(denoiser, family, samples, batch) if observers else None
    quantized, reports = {}, {}
    for block_name in progress(
        family.blocks(denoiser), description=f"quantizing by {method['solver']['name']}", unit="block"
    ):
        block = denoiser.get_submodule(block_name)
        names = [name for name in allocation if name.startswith(block_name + ".")]
        statistics = _observe(denoiser, block, names, inputs, observers) if observers else {}
        for name in names:
            layer, formats = denoiser.get_submodule(name), allocation[name]
            start = time.perf_counter()
            weight_format = load_format(formats["weights"])
            quantized[name], report = _solve(
                layer.weight.detach().float(),
                weight_format,
                solver,
                method["solver"],
                transforms,
                statistics.get(name, {}),
            )
            reports[name] = {
                **formats,
                "in_features": layer.in_features,
                "out_features": layer.out_features,
                "weight_bits": stored_bits(*layer.weight.shape, weight_format),
                "activation_bits": formats["activations"]["bits"] if formats["activations"] else 16,
                **report,
                "seconds": time.perf_counter() - start,
            }
            simulated = SimulatedLinear.build(
                quantized[name], weight_format, formats["activations"], layer.bias, layer.weight.dtype
            )
            denoiser.set_submodule(name, simulated)
        statistics.clear()
        if observers:
            inputs = [family.advance(batch, block(**batch)) for batch in inputs]
    return quantized, reports


def _solve(weight, weight_format, solver, settings, transforms, statistics):
    """Transform and quantize one weight [rows, columns]; `statistics` maps a plugin to what it observed."""
    factor = None
    for transform, transform_settings in transforms:
        weight, own = transform.apply(weight, transform_settings, statistics.get(transform))
        factor = own if factor is None else factor * own
    seen = statistics.get(solver)
    if seen is not None and factor is not None:
        seen = seen.scaled(factor)
    solution = solver.solve(weight, weight_format, settings, seen)
    difference = weight - solution.weight.dequantize(weight_format)
    if seen is None:
        error = difference.square().sum() / weight.square().sum()
    else:
        error = _energy(difference, seen.value) / _energy(weight, seen.value)
    return replace(solution.weight, input_factor=factor), {
        "relative_error": error.sqrt().item(),
        "error_of": "weights" if seen is None else "outputs",
        "damping": solution.damping,
        "fallback": solution.fallback,
    }


def _energy(weight, hessian):
    """Σ over outputs of w H wᵀ: squared output up to a constant."""
    return ((weight @ hessian) * weight).sum()


def _observe(denoiser, block, names, inputs, observers):
    """{layer: {observer: statistics}} of each layer's inputs; layers that are fed the same tensor share theirs."""
    statistics, handles, fed = {}, [], {}

    def assign(name):
        def hook(module, args):
            tensor = args[0]
            if name not in statistics:  # first batch: find out who shares an input
                key = (tensor.data_ptr(), tuple(tensor.shape))
                if key not in fed:
                    new = {observer: observer.new_statistics(module.in_features) for observer in observers}
                    fed[key] = (new, name, tensor)  # keeps the tensor alive, and with it its address
                statistics[name] = fed[key][:2]
            shared, owner = statistics[name]
            if owner == name:
                for observed in shared.values():
                    observed.observe(tensor.reshape(-1, tensor.shape[-1]))

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


def _first_block_inputs(denoiser, family, samples, batch):
    """Keyword arguments of the first block for every batch of samples."""
    captured = []

    def capture(module, args, kwargs):
        captured.append(kwargs)
        raise _Stop

    with _pre_hook(denoiser.get_submodule(family.blocks(denoiser)[0]), capture):
        count = len(next(iter(samples.values())))
        for first in range(0, count, batch):
            try:
                denoiser(**{name: tensor[first : first + batch] for name, tensor in samples.items()})
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
