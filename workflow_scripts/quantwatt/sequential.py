"""Walk a denoiser block by block and, in a block, stage by stage, so that every layer is calibrated on inputs from the
layers before it as they are after quantization.

Two streams of activations pass through the blocks: X̃ from the quantized prefix and, for solvers that ask for it, X from
the float model. Memory holds one block, the statistics of one stage and the samples at one depth, whatever the number
of blocks; on an accelerator only those are there.
"""

import copy
import json
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from quantwatt import registry
from quantwatt.activations import ActivationFormat
from quantwatt.formats import load_format, quantize_to_nearest, stored_bits
from quantwatt.formats.library import library_of
from quantwatt.kernels import Unsupported
from quantwatt.linear import SimulatedLinear
from quantwatt.manifest import DataError, finite
from quantwatt.progress import progress
from quantwatt.solvers import Solution
from quantwatt.statistics import needs_of
from quantwatt.streams import Streams


@dataclass
class LayerPlan:
    """A layer, or several that share an input and their formats, stacked by rows, on the way to its quantized weight.

    names: {layer: slice of its rows}; biases: {layer: [rows] or None}.
    original, weight: [rows, columns] float32 before and after the transforms.
    input_factor, down, up: as the transforms left them.
    activation_scale, activation_zero: [1] of a static activation format.
    """

    names: dict
    biases: dict
    settings: dict  # {"weights", "activations"}
    weight_format: object
    activation_format: ActivationFormat | None
    original: torch.Tensor
    weight: torch.Tensor
    dtype: torch.dtype
    input_factor: torch.Tensor | None = None
    down: torch.Tensor | None = None
    up: torch.Tensor | None = None
    activation_scale: torch.Tensor | None = None
    activation_zero: torch.Tensor | None = None

    @property
    def bias(self):
        """[rows] or None, of a plan of one layer."""
        (bias,) = self.biases.values()
        return bias

    @property
    def static_grid(self):
        return None if self.activation_scale is None else (self.activation_scale, self.activation_zero)

    def seen(self, inputs):
        """Inputs as the layer's product gets them: multiplied by the factor and quantized."""
        if self.input_factor is not None:
            inputs = inputs * self.input_factor.to(inputs.dtype)
        if self.activation_format is not None:
            inputs = self.activation_format.fake_quantize(inputs, self.static_grid)
        return inputs

    def transform(self, transforms, statistics):
        """Apply the transforms in order, then fix the activations' grid if it is static."""
        for module, settings in transforms:
            seen = statistics and statistics.scaled(self.input_factor)
            result = module.apply(self.weight, self.weight_format, self.activation_format, settings, seen)
            self.weight = result.weight
            if result.input_factor is not None:
                factor = result.input_factor
                self.input_factor = factor if self.input_factor is None else self.input_factor * factor
                self.down = self.down if self.down is None else self.down / factor
            if result.down is not None:
                self.down = result.down if self.down is None else torch.cat([self.down, result.down])
                self.up = result.up if self.up is None else torch.cat([self.up, result.up], dim=1)
        if self.activation_format is not None and not self.activation_format.dynamic:
            seen = statistics.scaled(self.input_factor)
            self.activation_scale, self.activation_zero = self.activation_format.calibrated(seen.range)

    def finish(self, weight):
        """The solver's QuantizedWeight with what the layer does beside it; a learned activation grid is kept."""
        weight.input_factor, weight.down, weight.up = self.input_factor, self.down, self.up
        if weight.activation_scale is None:
            weight.activation_scale, weight.activation_zero = self.activation_scale, self.activation_zero
        on_cpu = {part: tensor.cpu().contiguous() for part, tensor in vars(weight).items() if tensor is not None}
        return replace(weight, **on_cpu)


def _convert(denoiser, allocation):
    """States and reports of the layers whose format is a library's: it rounds and stores them itself."""
    states, reports = {}, {}
    for name, formats in allocation.items():
        if (library := library_of(formats["weights"])) is None:
            continue
        layer, spans = denoiser.get_submodule(name), []
        with _span(spans):
            try:
                built = library.convert(layer, formats["weights"], layer.weight.dtype)
            except DataError as error:
                raise Unsupported(f"layer {name}: {error}") from error
        denoiser.set_submodule(name, built)
        states[name] = library.state(built)
        shape, weight = {"in_features": layer.in_features, "out_features": layer.out_features}, layer.weight.float()
        found = library.dequantize(states[name], formats["weights"], shape)
        stored = sum(8 * part.numel() * part.element_size() for part in states[name].values())
        reports[name] = {
            **formats,
            **shape,
            "library": library.LIBRARY,
            "parts": sorted(states[name]),
            "weight_bits": stored / weight.numel(),
            "activation_bits": library.describe(formats["weights"])[1],
            "error_before": None,
            "relative_error": finite((found - weight).norm() / weight.norm()) if weight.any() else 0.0,
            "error_of": "weights",
            "damping": None,
            "fallback": None,
            "spans": spans,
        }
    return states, reports


@torch.no_grad()
def quantize(denoiser, family, allocation, method, samples=None, batch=None, device="cpu", solved=None):
    """Quantize every allocated layer, replacing it in `denoiser` by the simulated layer (or the library's) as it goes.

    Args:
        denoiser: float module on the CPU; changed in place.
        allocation: {layer: {"weights", "activations"}} as `quantwatt.allocation.allocate` returns.
        method: a completed method, for its solver and its transforms.
        samples: {denoiser input: [samples, ...]}; needed where a solver, a transform or a static activation format
            reads statistics.
        batch: samples per forward pass.
        device: where blocks, statistics and solvers are while they are worked on.
        solved: folder of the layers that an external solver has solved.
    Returns:
        {layer: state} with the tensors of a checkpoint, packed, and {layer: report}: format, bits, error_before
        (rounding to nearest on the plain format) and relative_error (the method's), error_of ("outputs" on the
        calibration inputs, "float outputs": against the float model's, "block outputs": the whole block's against the
        float block's, or "weights"), damping, fallback, and
        spans of transforming and solving: (start, stop, the layer's share) by time.perf_counter.
    Raises:
        DataError: a weight is not finite, or the external solver has not solved a layer.
    """
    states, reports = _convert(denoiser, allocation)
    allocation = {name: formats for name, formats in allocation.items() if name not in states}
    if not allocation:
        return states, reports
    walk = Walk(family, allocation, method, device, solved)
    streams = Streams.start(denoiser, family, samples, batch, device, walk.paired) if walk.calibrated else None
    blocks = family.blocks(denoiser)
    for block_name in progress(blocks, description=f"quantizing by {method['solver']['name']}", unit="block"):
        block = denoiser.get_submodule(block_name).to(device)
        names = [name.removeprefix(f"{block_name}.") for name in allocation if name.startswith(f"{block_name}.")]
        for name, (state, report) in walk.block(block_name, block, names, streams):
            states[name], reports[name] = state, report
        block.to("cpu")
    if unseen := allocation.keys() - states.keys():
        raise DataError(f"layer {min(unseen)}: the calibration data never reach it; exclude it in the allocation.")
    return states, reports


class Walk:
    """One method's way through the blocks: what it needs of each, and what it makes of it."""

    def __init__(self, family, allocation, method, device, solved):
        self.family, self.allocation, self.device, self.solved = family, allocation, device, solved
        self.settings = method["solver"]
        self.solver = registry.load("solvers", self.settings["name"])
        self.transforms = [(registry.load("transforms", t["name"]), t) for t in method["transforms"]]
        self.prepared = {need for module, settings in self.transforms for need in needs_of(module, settings)}
        if any(formats["activations"] and not formats["activations"]["dynamic"] for formats in allocation.values()):
            self.prepared.add("range")
        self.solving = set(needs_of(self.solver, self.settings))
        self.by_block = getattr(self.solver, "NEEDS_BLOCK", False)
        self.paired = "cross" in self.solving or self.by_block
        self.calibrated = bool(self.prepared or self.solving or self.by_block)

    def block(self, block_name, block, names, streams):
        """Yield (layer, (state, report)) of one block and move the streams behind it."""
        reference = copy.deepcopy(block) if self.paired else None
        groups = streams.sharing(block, names) if self.calibrated else [[name] for name in names]
        stages = self.family.stages(names) if self.calibrated and not self.by_block else [names]
        targets = streams.advance_float(reference) if self.by_block else None
        for stage in stages:
            plans = [
                self._plan(block_name, block, part)
                for group in groups
                for part in self._alike(block_name, [name for name in group if name in stage])
            ]
            if plans and self.by_block:
                yield from self._together(block_name, block, plans, streams, targets)
            elif plans:
                yield from self._stage(block_name, block, plans, streams, reference)
        if self.calibrated:
            streams.advance(block)
            if self.paired and not self.by_block:
                streams.advance_float(reference)

    def _alike(self, block_name, group):
        """Layers that share an input, apart by their formats, and where sharing would couple them or gain nothing: a
        scale of the whole tensor, a smoothing factor or a low-rank branch is one layer's own."""
        own = self.by_block or not self.solving or any(t["name"] != "segments" for _, t in self.transforms)
        parts = {}
        for name in group:
            formats = self.allocation[f"{block_name}.{name}"]
            apart = own or formats["weights"].get("granularity") == "tensor"
            parts.setdefault((json.dumps(formats, sort_keys=True), name if apart else None), []).append(name)
        return list(parts.values())

    def _plan(self, block_name, block, names):
        layers = [block.get_submodule(name) for name in names]
        settings = self.allocation[f"{block_name}.{names[0]}"]
        rows, last = {}, 0
        for name, layer in zip(names, layers, strict=True):
            rows[name] = slice(last, last := last + layer.out_features)
            if not layer.weight.isfinite().all():
                raise DataError(f"layer {block_name}.{name}: its weights hold NaN or infinity.")
        weight = torch.cat([layer.weight.detach().float() for layer in layers])
        return LayerPlan(
            rows,
            {name: layer.bias for name, layer in zip(names, layers, strict=True)},
            settings,
            load_format(settings["weights"]),
            ActivationFormat.from_settings(settings["activations"]),
            weight,
            weight,
            layers[0].weight.dtype,
        )

    def _stage(self, block_name, block, plans, streams, reference):
        """Transform and solve layers that do not depend on one another."""
        spans = [[] for _ in plans]
        self._transform(block, plans, streams, spans)
        observed = [None] * len(plans)
        if self.solving:
            observed = streams.observe(block, plans, self.solving, reference=reference)
        for plan, statistics, own_spans in zip(plans, observed, spans, strict=True):
            with _span(own_spans):
                solution = self._solve(block_name, plan, statistics)
            weight = plan.finish(solution.weight)
            errors = _errors(plan, weight, statistics)
            yield from self._install(block_name, block, plan, solution, weight, errors, own_spans)

    def _together(self, block_name, block, plans, streams, targets):
        """Transform all layers of a block and solve them at once."""
        spans = [[] for _ in plans]
        self._transform(block, plans, streams, spans)
        named = {name: plan for plan in plans for name in plan.names}  # one layer each
        with _span(shared := []), torch.enable_grad():
            solutions = self.solver.solve_block(block, named, streams.batches, targets, self.family, self.settings)
        rounded = copy.deepcopy(block)
        for name, plan in named.items():
            grid = {"activation_scale": plan.activation_scale, "activation_zero": plan.activation_zero}
            nearest = replace(quantize_to_nearest(plan.original, plan.weight_format), **grid)
            rounded.set_submodule(name, self._layer(plan, name, nearest))
        before, done = streams.error(rounded, targets), []
        total = sum(plan.weight.numel() for plan in plans)
        for (name, plan), own_spans in zip(named.items(), spans, strict=True):
            own_spans += [(start, stop, plan.weight.numel() / total) for start, stop, _ in shared]
            weight = plan.finish(solutions[name].weight)
            done += self._install(block_name, block, plan, solutions[name], weight, {name: {}}, own_spans)
        errors = {"error_before": before, "relative_error": streams.error(block, targets), "error_of": "block outputs"}
        for name, (state, report) in done:
            yield name, (state, report | errors)

    def _transform(self, block, plans, streams, spans):
        prepared = streams.observe(block, plans, self.prepared, raw=True) if self.prepared else [None] * len(plans)
        for plan, statistics, own_spans in zip(plans, prepared, spans, strict=True):
            with _span(own_spans):
                plan.transform(self.transforms, statistics)

    def _layer(self, plan, name, weight):
        """The simulated layer of one of a plan's names."""
        activations = plan.settings["activations"]
        built = SimulatedLinear.build(weight, plan.weight_format, activations, plan.biases[name], plan.dtype)
        return built.to(self.device)

    def _install(self, block_name, block, plan, solution, weight, errors, spans):
        """Put a plan's layers into the block; yield (layer, (state, report)) of each."""
        for name, rows in plan.names.items():
            own = weight.rows(rows.start, rows.stop)
            block.set_submodule(name, self._layer(plan, name, own))
            share = (rows.stop - rows.start) / len(plan.weight)
            report = {
                **plan.settings,
                **_description(own, plan),
                **errors[name],
                "damping": solution.damping,
                "fallback": solution.fallback,
                "spans": [(start, stop, share * part) for start, stop, part in spans],
            }
            yield f"{block_name}.{name}", (own.state(plan.weight_format), report)

    def _solve(self, block_name, plan, statistics):
        if hasattr(self.solver, "EXTERNAL"):
            return Solution(self.solver.read(self.solved, f"{block_name}.{next(iter(plan.names))}"))
        return self.solver.solve(plan.weight, plan.weight_format, self.settings, statistics)


@contextmanager
def _span(spans):
    """Append (start, stop, 1) of what is done inside, with all that an accelerator still has to do of it."""
    start = _now()
    yield
    spans.append((start, _now(), 1.0))


def _now():
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def _description(weight, plan):
    """What a report says of a layer's shape and bits."""
    rows, columns = weight.codes.shape
    branch = 0 if plan.down is None else 16 * len(plan.down) * (rows + columns) / (rows * columns)
    return {
        "in_features": columns,
        "out_features": rows,
        "parts": sorted(weight.state(plan.weight_format)),
        "weight_bits": stored_bits(rows, columns, plan.weight_format) + branch,
        "activation_bits": plan.activation_format.bits if plan.activation_format else 8 * plan.dtype.itemsize,
    }


def _errors(plan, weight, statistics):
    """{layer: relative errors} of rounding the untransformed weight to nearest, and of the method's weight.

    With a Hessian of the inputs it is the output's error, ‖X̃ΔWᵀ‖ / ‖X̃Wᵀ‖; with the float model's inputs beside them the
    output's distance from the float model's, ‖XWᵀ - X̃Qᵀ‖ / ‖XWᵀ‖, on a sample of tokens; else ‖ΔW‖ / ‖W‖.
    """
    factor = 1 if plan.input_factor is None else plan.input_factor
    target = plan.original / factor  # what the product and the branch stand for together
    nearest = quantize_to_nearest(plan.original, plan.weight_format).dequantize(plan.weight_format) / factor
    branch = 0 if plan.down is None else plan.up.float() @ plan.down.float()
    found = weight.dequantize(plan.weight_format).to(target.device) + branch
    if statistics is None or not hasattr(statistics, "hessian"):
        kind, squared = "weights", lambda value: ((value - target) * factor).square().sum(dim=1)
        norm = plan.original.square().sum(dim=1)
    elif hasattr(statistics, "cross"):
        inputs, outputs = statistics.cross.inputs.value, statistics.cross.references.value @ target.T
        kind, squared = "float outputs", lambda value: (outputs - inputs @ value.T).square().sum(dim=0)
        norm = outputs.square().sum(dim=0)
    else:
        hessian = statistics.hessian.value
        kind, squared = "outputs", lambda value: (((value - target) @ hessian) * (value - target)).sum(dim=1)
        norm = ((target @ hessian) * target).sum(dim=1)
    before, after = squared(nearest), squared(found)  # [rows]

    def relative(errors, rows):
        return finite((errors[rows].sum().clamp(min=0) / norm[rows].sum()).sqrt()) if norm[rows].sum() != 0 else 0.0

    return {
        name: {"error_before": relative(before, rows), "relative_error": relative(after, rows), "error_of": kind}
        for name, rows in plan.names.items()
    }
