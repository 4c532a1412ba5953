"""Walk a denoiser block by block and, in a block, stage by stage, so that every layer is calibrated on inputs from the
layers before it as they are after quantization.

Two streams of activations pass through the blocks: X̃ from the quantized prefix and, for solvers that ask for it, X from
the float model. Memory holds one block, the statistics of one stage and what a forward pass holds at one depth, for all
samples, whatever the number of blocks: in a transformer the tokens, in a UNet also the skip connections still to be
read. On an accelerator is only what is worked on.
"""

import copy
import json
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from quantwatt import convolution, registry
from quantwatt.activations import ActivationFormat
from quantwatt.convolution import Convolution
from quantwatt.formats import QuantizedWeight, load_format, quantize_to_nearest, stored_bits
from quantwatt.formats.library import library_of
from quantwatt.kernels import Unsupported
from quantwatt.linear import SimulatedLinear
from quantwatt.manifest import DataError, finite
from quantwatt.progress import progress
from quantwatt.solvers import Solution
from quantwatt.statistics import Statistics, needs_of
from quantwatt.streams import Block, Streams


@dataclass
class LayerPlan:
    """A layer, or several that share an input and their formats, stacked by rows, on the way to its quantized weight.

    names: {layer: slice of its rows}; biases: {layer: [rows] or None}.
    settings: the layer's entry of the allocation.
    geometry: Convolution, or None of a linear layer.
    original, weight: [rows, columns] float32 before and after the transforms.
    input_factor, down, up, first_output: as the transforms left them.
    activation_scale, activation_zero: [1] of a static activation format.
    report: what the transforms say of it.
    """

    names: dict
    biases: dict
    settings: dict
    geometry: Convolution | None
    weight_format: object
    activation_format: ActivationFormat | None
    original: torch.Tensor
    weight: torch.Tensor
    dtype: torch.dtype
    input_factor: torch.Tensor | None = None
    down: torch.Tensor | None = None
    up: torch.Tensor | None = None
    first_output: torch.Tensor | None = None
    activation_scale: torch.Tensor | None = None
    activation_zero: torch.Tensor | None = None
    report: dict = field(default_factory=dict)

    @property
    def groups(self):
        """[slice of the rows] of every group of a convolution; all rows else."""
        count = self.geometry.groups if self.geometry else 1
        rows = len(self.weight) // count
        return [slice(first * rows, (first + 1) * rows) for first in range(count)]

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
        inputs = self.scaled(inputs)
        if self.activation_format is not None:
            inputs = convolution.rounded(inputs, self.activation_format, self.static_grid, self.geometry)
        return inputs

    def scaled(self, inputs):
        """Inputs multiplied by the transforms' factor."""
        return inputs if self.input_factor is None else inputs * self.input_factor.to(inputs.dtype)

    def rest(self, inputs):
        """Inputs without the first token where that is computed apart."""
        return inputs[:, 1:] if self.settings.get("first_token") else inputs

    def tokens(self, inputs, real=None, raw=False):
        """What the rows of the weight are multiplied by: [tokens, columns] for every group of a convolution.

        Args:
            inputs: the layer's, in any shape that it takes.
            real: [samples, tokens], which of them are no padding.
            raw: before the transforms; of a convolution then the inputs themselves, [positions, channels].
        """
        if self.geometry is not None and not raw:
            return self.geometry.patches(inputs)
        inputs = convolution.positions(inputs, self.geometry)
        return [inputs if real is None else inputs[real.reshape(-1).to(inputs.device)]]

    def statistics(self, needs, raw):
        """Empty statistics of `tokens`; of a convolution's inputs (raw) only what its grid needs."""
        columns, device = self.weight.shape[1], self.weight.device
        if raw and self.geometry is not None:
            channels = columns * self.geometry.groups // math.prod(self.geometry.kernel_size)
            return [Statistics.new({"range"}.intersection(needs), channels, device)]
        return [Statistics.new(needs, columns, device) for _ in self.groups]

    def transform(self, transforms, statistics):
        """Apply the transforms in order, then fix the activations' grid if it is static.

        A convolution is left as it is, but for its activations' grid.
        """
        for module, settings in transforms if self.geometry is None else ():
            if not self.settings.get(getattr(module, "MARK", "weights")):
                continue
            seen = statistics and statistics[0].scaled(self.input_factor)
            result = module.apply(self.weight, self.weight_format, self.activation_format, settings, seen)
            self.weight = result.weight
            if result.input_factor is not None:
                factor = result.input_factor
                self.input_factor = factor if self.input_factor is None else self.input_factor * factor
                self.down = self.down if self.down is None else self.down / factor
            if result.down is not None:
                self.down = result.down if self.down is None else torch.cat([self.down, result.down])
                self.up = result.up if self.up is None else torch.cat([self.up, result.up], dim=1)
            self.report |= result.report
            if result.first_output is not None:
                self.first_output = result.first_output
        if self.activation_format is not None and not self.activation_format.dynamic:
            observed = statistics[0].scaled(self.input_factor).range
            self.activation_scale, self.activation_zero = self.activation_format.calibrated(observed)

    def finish(self, weight):
        """The solver's QuantizedWeight with what the layer does beside it; a learned activation grid is kept."""
        weight.input_factor, weight.down, weight.up = self.input_factor, self.down, self.up
        weight.first_output = self.first_output
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
        shape, weight = convolution.describe(layer), layer.weight.float()
        found = library.dequantize(states[name], formats["weights"], shape)
        stored = sum(8 * part.numel() * part.element_size() for part in states[name].values())
        reports[name] = {
            **formats,
            **shape,
            "library": library.LIBRARY,
            "parts": sorted(states[name]),
            "weight_bits": stored / weight.numel(),
            "activation_bits": library.describe(formats["weights"])[1] or 8 * layer.weight.dtype.itemsize,
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
            reads statistics. Named as `quantwatt.denoiser_inputs` says.
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
        DataError: a weight is not finite, the external solver has not solved a layer, or a forward pass calls a block
            twice and the solver compares with the float model's.
    """
    states, reports = _convert(denoiser, allocation)
    allocation = {name: formats for name, formats in allocation.items() if name not in states}
    if not allocation:
        return states, reports
    walk = Walk(family, allocation, method, device, solved)
    streams = Streams(denoiser, family, samples, batch, device, walk.paired) if walk.calibrated else None
    blocks = family.blocks(denoiser)
    places, done = iter(blocks), set()  # where nothing is calibrated; else the passes say where they are
    with progress(total=len(blocks), description=f"quantizing by {method['solver']['name']}", unit="block") as bar:
        while name := streams.block if streams else next(places, None):
            block = Block(denoiser, name, allocation, device)
            if name in done:  # the denoiser calls it again: it is as the inputs of its first call have made it
                if walk.paired and any(layer == name or layer.startswith(f"{name}.") for layer in states):
                    raise DataError(
                        f"block {name}: a forward pass calls it twice; exclude its layers in the allocation."
                    )
                streams.advance(block.module, block.module)
                block.put_back()
                continue
            for layer, (state, report) in walk.block(block, streams):
                states[layer], reports[layer] = state, report
            block.put_back()
            done.add(name)
            bar.update()
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

    def block(self, block, streams):
        """Yield (layer, (state, report)) of one block and bring the streams behind it."""
        reference = copy.deepcopy(block.module) if self.paired else None
        names = list(block.layers)
        groups = streams.sharing(block.module, names) if self.calibrated else [[name] for name in names]
        targets = streams.outputs(reference) if self.by_block else None
        for stage in self._stages(names, groups):
            plans = [
                self._plan(block, part)
                for group in groups
                for part in self._alike(block, [name for name in group if name in stage])
            ]
            if plans and self.by_block:
                yield from self._together(block, plans, streams, targets)
            elif plans:
                yield from self._stage(block, plans, streams, reference)
        if self.calibrated:
            streams.advance(block.module, reference, targets)

    def _stages(self, names, groups):
        """Layers of a block that are solved one after another, each seeing what those before it have become."""
        if not self.calibrated or self.by_block:
            return [names]
        return self.family.stages(names) if hasattr(self.family, "stages") else groups

    def _alike(self, block, group):
        """Layers that share an input, apart by their formats, and where sharing would couple them or gain nothing: a
        scale of the whole tensor, a smoothing factor or a low-rank branch is one layer's own."""
        coupled = any(needs_of(module, given) for module, given in self.transforms if not hasattr(module, "MARK"))
        own = self.by_block or not self.solving or coupled
        parts = {}
        for name in group:
            formats, layer = self.allocation[block.layers[name]], block.module.get_submodule(name)
            geometry = Convolution.of(layer)
            apart = own or formats["weights"].get("granularity") == "tensor" or (geometry and geometry.groups > 1)
            key = json.dumps(formats, sort_keys=True), geometry, name if apart else None
            parts.setdefault(key, []).append(name)
        return list(parts.values())

    def _plan(self, block, names):
        layers = [block.module.get_submodule(name) for name in names]
        settings = self.allocation[block.layers[names[0]]]
        rows, last = {}, 0
        for name, layer in zip(names, layers, strict=True):
            rows[name] = slice(last, last := last + len(layer.weight))
            if not layer.weight.isfinite().all():
                raise DataError(f"layer {block.layers[name]}: its weights hold NaN or infinity.")
        weight = torch.cat([layer.weight.detach().float().flatten(1) for layer in layers])
        return LayerPlan(
            rows,
            {name: layer.bias for name, layer in zip(names, layers, strict=True)},
            settings,
            Convolution.of(layers[0]),
            load_format(settings["weights"]),
            ActivationFormat.from_settings(settings["activations"]),
            weight,
            weight,
            layers[0].weight.dtype,
        )

    def _stage(self, block, plans, streams, reference):
        """Transform and solve layers that do not depend on one another."""
        spans = [[] for _ in plans]
        self._transform(block, plans, streams, spans)
        observed = [None] * len(plans)
        if self.solving:
            observed = streams.observe(block.module, plans, self.solving, reference=reference)
        for plan, statistics, own_spans in zip(plans, observed, spans, strict=True):
            with _span(own_spans):
                solution = self._solve(block, plan, statistics)
            weight = plan.finish(solution.weight)
            errors = _errors(plan, weight, statistics)
            yield from self._install(block, plan, solution, weight, errors, own_spans)

    def _together(self, block, plans, streams, targets):
        """Transform all layers of a block and solve them at once."""
        spans = [[] for _ in plans]
        self._transform(block, plans, streams, spans)
        named = {name: plan for plan in plans for name in plan.names}  # one layer each
        with _span(shared := []), torch.enable_grad():
            solutions = self.solver.solve_block(
                block.module, named, streams.batches, targets, self.family, self.settings
            )
        rounded = copy.deepcopy(block.module)
        for name, plan in named.items():
            grid = {"activation_scale": plan.activation_scale, "activation_zero": plan.activation_zero}
            nearest = quantize_to_nearest(plan.original, plan.weight_format)
            nearest = replace(nearest, first_output=plan.first_output, **grid)
            rounded.set_submodule(name, self._layer(plan, name, nearest))
        before, done = streams.error(rounded, targets), []
        total = sum(plan.weight.numel() for plan in plans)
        for (name, plan), own_spans in zip(named.items(), spans, strict=True):
            own_spans += [(start, stop, plan.weight.numel() / total) for start, stop, _ in shared]
            weight = plan.finish(solutions[name].weight)
            done += self._install(block, plan, solutions[name], weight, {name: {}}, own_spans)
        after = streams.error(block.module, targets)
        errors = {"error_before": before, "relative_error": after, "error_of": "block outputs"}
        for name, (state, report) in done:
            yield name, (state, report | errors)

    def _transform(self, block, plans, streams, spans):
        prepared = [None] * len(plans)
        if self.prepared:
            prepared = streams.observe(block.module, plans, self.prepared, raw=True)
        for plan, statistics, own_spans in zip(plans, prepared, spans, strict=True):
            with _span(own_spans):
                plan.transform(self.transforms, statistics)

    def _layer(self, plan, name, weight):
        """The simulated layer of one of a plan's names."""
        activations = plan.settings["activations"]
        bias = plan.biases[name]
        built = SimulatedLinear.build(weight, plan.weight_format, activations, bias, plan.dtype, plan.geometry)
        return built.to(self.device)

    def _install(self, block, plan, solution, weight, errors, spans):
        """Put a plan's layers into the block; yield (layer, (state, report)) of each."""
        for name, rows in plan.names.items():
            own = weight.rows(rows.start, rows.stop)
            block.module.set_submodule(name, self._layer(plan, name, own))
            share = (rows.stop - rows.start) / len(plan.weight)
            report = {
                **plan.settings,
                **_description(own, plan),
                **plan.report,
                **errors[name],
                "damping": solution.damping,
                "fallback": solution.fallback,
                "spans": [(start, stop, share * part) for start, stop, part in spans],
            }
            yield block.layers[name], (own.state(plan.weight_format), report)

    def _solve(self, block, plan, statistics):
        if hasattr(self.solver, "EXTERNAL"):
            return Solution(self.solver.read(self.solved, block.layers[next(iter(plan.names))]))
        settings = self.settings
        if len(plan.groups) == 1 or statistics is None:
            return self.solver.solve(plan.weight, plan.weight_format, settings, statistics and statistics[0])
        if settings.get("act_order"):
            settings = {**settings, "act_order": False}  # each group of channels would have an order of its own
        parts = [
            self.solver.solve(plan.weight[rows], plan.weight_format, settings, own)
            for rows, own in zip(plan.groups, statistics, strict=True)
        ]
        worst = max(parts, key=lambda part: (part.fallback is not None, part.damping or 0))
        return replace(worst, weight=QuantizedWeight.of_rows([part.weight for part in parts]))


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
        **(plan.geometry.settings() if plan.geometry else {}),
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
    parts = [
        _squared_errors(target[rows], (nearest[rows], found[rows]), factor, own)
        for rows, own in zip(plan.groups, statistics or [None] * len(plan.groups), strict=True)
    ]
    kind = parts[0][0]
    norm, before, after = (torch.cat(values) for values in zip(*(part[1:] for part in parts), strict=True))  # [rows]

    def relative(errors, rows):
        return finite((errors[rows].sum().clamp(min=0) / norm[rows].sum()).sqrt()) if norm[rows].sum() != 0 else 0.0

    return {
        name: {"error_before": relative(before, rows), "relative_error": relative(after, rows), "error_of": kind}
        for name, rows in plan.names.items()
    }


def _squared_errors(target, candidates, factor, statistics):
    """(what is compared, target's squared norm [rows], each candidate's squared distance [rows], ...)."""
    if statistics is None or not hasattr(statistics, "hessian"):
        return "weights", *((part * factor).square().sum(dim=1) for part in (target, *(c - target for c in candidates)))
    if hasattr(statistics, "cross"):
        inputs, outputs = statistics.cross.inputs.value, statistics.cross.references.value @ target.T
        distances = ((outputs - inputs @ candidate.T).square().sum(dim=0) for candidate in candidates)
        return "float outputs", outputs.square().sum(dim=0), *distances
    hessian = statistics.hessian.value
    return "outputs", *(((part @ hessian) * part).sum(dim=1) for part in (target, *(c - target for c in candidates)))
