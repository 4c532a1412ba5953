"""Quantize a denoiser block by block and, within a block, stage by stage.

So every layer is calibrated on the outputs of quantized earlier layers.

Two sets of activations pass through the blocks: X̃ from the quantized prefix and, for solvers that need it, X from the
float model. Memory does not grow with the number of blocks. It holds one block, the observers of one stage and, for all
samples, the live tensors of a forward pass at one depth: in a transformer the tokens, in a UNet also the pending skip
connections. The accelerator holds only the current block with its observers and one batch.
"""

import copy
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from quantwatt.artifacts.errors import DataError, Unsupported
from quantwatt.artifacts.manifest import finite
from quantwatt.formats import convolution
from quantwatt.formats.activations import ActivationFormat
from quantwatt.formats.convolution import Convolution
from quantwatt.formats.library import library_of
from quantwatt.formats.quantized_weight import QuantizedWeight, load_format, stored_bits, wide_groups
from quantwatt.inference.linear import SimulatedLinear
from quantwatt.jobs.progress import progress
from quantwatt.models.network import Network
from quantwatt.quantize import hold_out, output_errors
from quantwatt.quantize.layer_plan import LayerPlan
from quantwatt.quantize.solvers import BlockSolver, ExternalSolver, LayerSolver, Solution, load_solver
from quantwatt.quantize.streams import Block, BlockActivations
from quantwatt.quantize.transforms import Transform, load_transform, rounds


def _convert(denoiser, allocation):
    """Convert the layers whose format belongs to a library, which rounds and stores them; return states and reports."""
    states, reports = {}, {}
    for name, formats in allocation.items():
        if (library := library_of(formats["weights"])) is None:
            continue
        layer, spans = denoiser.get_submodule(name), []
        with _span(spans):
            try:
                built = library.convert(layer, layer.weight.dtype)
            except DataError as error:
                raise Unsupported(f"layer {name}: {error}") from error
        denoiser.set_submodule(name, built)
        states[name] = library.state(built)
        shape, weight = convolution.describe(layer), layer.weight.float()
        values = library.dequantize(states[name], shape)
        stored = sum(8 * part.numel() * part.element_size() for part in states[name].values())
        reports[name] = {
            **formats,
            **shape,
            "library": library.LIBRARY,
            "parts": sorted(states[name]),
            "weight_bits": stored / weight.numel(),
            "activation_bits": library.bits[1] or 8 * layer.weight.dtype.itemsize,
            "error_before": None,
            "relative_error": finite((values - weight).norm() / weight.norm()) if weight.any() else 0.0,
            "error_of": "weights",
            "damping": None,
            "fallback": None,
            "spans": spans,
        }
    return states, reports


@torch.no_grad()
def quantize(
    denoiser: torch.nn.Module,
    family: Network,
    allocation: Mapping[str, Mapping[str, Any]],
    method: Mapping[str, Any],
    samples: Mapping[str, torch.Tensor] | None = None,
    batch: int | None = None,
    device: str = "cpu",
    solved: str | Path | None = None,
    origins: Sequence[Any] | None = None,
    solved_layers: Mapping[str, torch.nn.Module] | None = None,
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, dict[str, Any]]]:
    """Quantize every allocated layer; replace it in `denoiser` by a simulated (fake-quantized) or a library's layer.

    Args:
        denoiser: float module on the CPU; changed in place.
        allocation: {layer: {"weights", "activations"}} as `quantwatt.allocate.allocation.allocate` returns.
        method: a completed method, of which solver and transforms are read.
        samples: {denoiser input: [samples, ...]}; needed if a solver, a transform or a static activation format reads
            observers. Names are those of `quantwatt.models.denoiser_inputs`.
        batch: samples per forward pass.
        device: where blocks run, observers accumulate and solvers compute.
        solved: folder with the results of an external solver.
        origins: the origin of each sample, as for `hold_out.chosen`; None if all samples are independent.
        solved_layers: {layer: what replaces it} of allocated layers that are not solved again.
    Returns:
        {layer: state} with the packed tensors of a checkpoint, and {layer: report}. A report has the format, bits,
        error_before (rounding to nearest without transforms), relative_error (the method), error_of (the compared
        quantity: "outputs" on the calibration inputs, "float outputs" of the float model, "block outputs" of the float
        block, or "weights"), damping, fallback, tokens and held-out errors (`hold_out.report`), and spans of
        transforming and solving: (start, stop, the layer's share) by time.perf_counter.
    Raises:
        DataError: a group_size is larger than all layers, a transform applies to no layer, a weight is not finite, the
            external solver has not solved a layer, or a forward pass calls a block twice and the solver compares with
            the float model.
    """
    states, reports = _convert(denoiser, allocation)
    allocation = {name: formats for name, formats in allocation.items() if name not in states}
    if not allocation:
        return states, reports
    columns = {name: denoiser.get_parameter(f"{name}.weight")[0].numel() for name in allocation}
    if warning := wide_groups(allocation, columns):
        print(f"warning: {warning}", file=sys.stderr)
    quantizer = SequentialQuantizer(family, allocation, method, device, solved, solved_layers)
    _say_left_out(quantizer.transforms, denoiser, columns)
    quantizer.prepare(denoiser)
    streams = None
    if quantizer.calibrated:
        if samples is None or batch is None:
            raise ValueError("this method reads calibration samples: pass samples and batch")
        streams = quantizer.streams(denoiser, samples, batch, origins)
    blocks = family.blocks(denoiser)
    places, done = iter(blocks), set()  # without calibration; else `streams` gives the next block
    with progress(total=len(blocks), description=f"quantizing by {method['solver']['name']}", unit="block") as bar:
        while name := streams.block if streams else next(places, None):
            block = Block(denoiser, name, allocation, device)
            # A block that the denoiser calls again stays as it was quantized on the inputs of its first call.
            if streams is not None and name in done:
                if quantizer.paired and any(layer == name or layer.startswith(f"{name}.") for layer in states):
                    raise DataError(
                        f"block {name}: a forward pass calls it twice; exclude its layers in the allocation."
                    )
                streams.advance(block.module, block.module)
                block.put_back()
                continue
            for layer, (state, report) in quantizer.block(block, streams):
                states[layer], reports[layer] = state, report
            block.put_back()
            done.add(name)
            bar.update()
    if unseen := allocation.keys() - states.keys() - quantizer.solved_layers.keys():
        raise DataError(f"layer {min(unseen)}: the calibration data never reach it; exclude it in the allocation.")
    if warning := hold_out.few_tokens(reports):
        print(f"warning: {warning}", file=sys.stderr)
    return states, reports


def _say_left_out(transforms, denoiser, columns):
    """Count in the log the layers that a transform leaves as they are; columns are {layer: number of its inputs}."""
    linear = {
        name: 0 if isinstance(denoiser.get_submodule(name), torch.nn.Conv2d) else count
        for name, count in columns.items()
    }
    for transform in transforms:
        if sentence := transform.left_out(linear):
            print(sentence, file=sys.stderr)


class SequentialQuantizer:
    """Quantizes the blocks of a denoiser, one after another, by one method."""

    def __init__(
        self,
        family: Network,
        allocation: Mapping[str, Any],
        method: Mapping[str, Any],
        device: str,
        solved: str | Path | None,
        solved_layers: Mapping[str, torch.nn.Module] | None = None,
    ):
        self.family, self.allocation, self.device, self.solved = family, allocation, device, solved
        self.solved_layers = solved_layers or {}
        self.solver = load_solver(method["solver"])
        self.transforms = [load_transform(settings) for settings in method["transforms"]]
        self.solving = set(self.solver.NEEDS)
        self.by_block = isinstance(self.solver, BlockSolver)
        static = any(f["activations"] and not f["activations"]["dynamic"] for f in allocation.values())
        self.rounds = rounds(self.transforms, static, self.by_block)
        self.prepared = set().union(*(needs for _, needs in self.rounds))
        self.paired = "cross" in self.solving or self.by_block
        self.calibrated = bool(self.prepared or self.solving or self.by_block)
        self.share = self.solver.held_out
        self.done: dict[str, list[tuple[Transform, dict[str, Any]]]] = {}  # by `prepare`
        if self.solving:
            self.solving |= {"count", "held_out"} if self.share else {"count"}

    def prepare(self, denoiser: torch.nn.Module) -> None:
        """Let transforms change several layers of the float denoiser at once."""
        for transform in self.transforms:
            for name, report in transform.prepare(denoiser, set(self.allocation)).items():
                self.done.setdefault(name, []).append((transform, report))

    def streams(
        self, denoiser: torch.nn.Module, samples: Mapping[str, torch.Tensor], batch: int, origins: Sequence[Any] | None
    ) -> BlockActivations:
        """Run every batch up to the first block; some samples are held out if the solver asks for it."""
        count = len(next(iter(samples.values())))
        held = hold_out.chosen(origins or range(count), self.share) if self.share else None
        return BlockActivations(denoiser, self.family, samples, batch, self.device, self.paired, held)

    def block(
        self, block: Block, streams: BlockActivations | None
    ) -> Iterator[tuple[str, tuple[dict[str, torch.Tensor], dict[str, Any]]]]:
        """Yield (layer, (state, report)) of one block, then advance all batches to the next block."""
        reference = copy.deepcopy(block.module) if self.paired else None
        names = []
        for name, layer in block.layers.items():
            if layer in self.solved_layers:
                block.module.set_submodule(name, self.solved_layers[layer].to(self.device))
            else:
                names.append(name)
        groups = [[name] for name in names] if streams is None else streams.sharing(block.module, names)
        targets = None
        if streams is not None and reference is not None and self.by_block:
            targets = streams.outputs(reference)
        for stage in self._stages(names, groups):
            plans = [
                self._plan(block, part)
                for group in groups
                for part in self._split_by_format(block, [name for name in group if name in stage])
            ]
            if plans and isinstance(self.solver, BlockSolver):
                yield from self._together(self.solver, block, plans, streams, targets)
            elif plans:
                yield from self._stage(block, plans, streams, reference)
        if streams is not None:
            streams.advance(block.module, reference, targets)

    def _stages(self, names, groups):
        """Return the stages of a block: lists of layers; a stage is calibrated after earlier stages are quantized."""
        if not self.calibrated or self.by_block:
            return [names]
        return self.family.stages(names) or groups

    def _split_by_format(self, block, group):
        """Split layers that share an input where formats differ or one solve would couple them.

        Scales per tensor, smoothing factors and low-rank branches belong to a single layer. Layers are split, too, if a
        common solve saves nothing.
        """
        coupled = any(transform.needs for transform in self.transforms if transform.MARK is None)
        separate = self.by_block or not self.solving or coupled
        parts = {}
        for name in group:
            formats, layer = self.allocation[block.layers[name]], block.module.get_submodule(name)
            of_one_layer = load_format(formats["weights"]).of_one_layer
            geometry = Convolution.of(layer)
            alone = separate or of_one_layer or (geometry and geometry.groups > 1)
            key = json.dumps(formats, sort_keys=True), geometry, name if alone else None
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
        done = self.done.get(block.layers[names[0]], [])
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
            report={key: value for _, report in done for key, value in report.items()},
            done=[transform for transform, _ in done],
        )

    def _stage(self, block, plans, streams, reference):
        """Transform and solve layers that do not depend on one another."""
        spans = [[] for _ in plans]
        self._transform(block, plans, streams, spans)
        observed = [None] * len(plans)
        if self.solving:
            observed = streams.observe(block.module, plans, self.solving, reference=reference)
        for plan, statistics, plan_spans in zip(plans, observed, spans, strict=True):
            with _span(plan_spans):
                choice, values = hold_out.choose(plan, self._solve(block, plan, statistics), statistics)
            errors = output_errors.relative(plan, values, statistics)
            yield from self._install(block, plan, choice, errors, plan_spans)

    def _together(self, solver, block, plans, streams, targets):
        """Transform all layers of a block and solve them together.

        The held-out error is that of the whole block, because each layer is fitted together with the others.
        """
        spans = [[] for _ in plans]
        self._transform(block, plans, streams, spans)
        seen = streams.observe(block.module, plans, {"count", "held_out"} if self.share else {"count"})
        named = {name: plan for plan in plans for name in plan.names}  # one layer each
        with _span(shared := []), torch.enable_grad():
            solutions = solver.solve_block(block.module, named, streams.batches, targets, self.family, streams.held)

        def errors(weights):
            return streams.errors(self._copy(block, named, weights), targets)

        nearest = {name: plan.finish(plan.nearest) for name, plan in named.items()}
        before, rounding = fitted, _ = errors(nearest)
        if any(plan.weight is not plan.original for plan in plans):
            before, _ = errors({name: plan.untransformed() for name, plan in named.items()})
        weights = {name: plan.finish(solutions[name].weight) for name, plan in named.items()}
        after, held_out = errors(weights)
        if worse := hold_out.is_worse(held_out, rounding):
            weights, after = nearest, fitted
        reported = {"error_before": before, "relative_error": after, "error_of": "block outputs"}
        total = sum(plan.weight.numel() for plan in plans)
        for (name, plan), (statistics, *_), plan_spans in zip(named.items(), seen, spans, strict=True):
            plan_spans += [(start, stop, plan.weight.numel() / total) for start, stop, _ in shared]
            solution = replace(solutions[name], weight=weights[name], **(hold_out.REFUSED if worse else {}))
            report = hold_out.report(solution, statistics, held_out, rounding)
            choice = hold_out.Choice({name: weights[name]}, {name: report})
            yield from self._install(block, plan, choice, {name: reported}, plan_spans)

    def _copy(self, block, plans, weights):
        """Copy a block's module with quantized weights in some layers."""
        copied = copy.deepcopy(block.module)
        for name, plan in plans.items():
            copied.set_submodule(name, self._layer(plan, name, weights[name]))
        return copied

    def _transform(self, block, plans, streams, spans):
        for transforms, needs in self.rounds:
            prepared = [None] * len(plans)
            if needs:
                prepared = streams.observe(block.module, plans, needs, raw=True)
            for plan, statistics, plan_spans in zip(plans, prepared, spans, strict=True):
                with _span(plan_spans):
                    plan.transform(transforms, statistics, last=transforms is self.rounds[-1][0])

    def _layer(self, plan, name, weight):
        """Build the simulated (fake-quantized) layer of one of a plan's names."""
        activations = plan.settings["activations"]
        bias = plan.biases[name]
        built = SimulatedLinear.build(weight, plan.weight_format, activations, bias, plan.dtype, plan.geometry)
        return built.to(self.device)

    def _install(self, block, plan, choice, errors, spans):
        """Put a plan's layers into the block; yield (layer, (state, report)) of each."""
        for name, rows in plan.names.items():
            weight = choice.weights[name]
            block.module.set_submodule(name, self._layer(plan, name, weight))
            share = (rows.stop - rows.start) / len(plan.weight)
            report = {
                **plan.settings,
                **_description(weight, plan),
                **plan.report,
                **errors[name],
                **choice.reports[name],
                "spans": [(start, stop, share * part) for start, stop, part in spans],
            }
            yield block.layers[name], (weight.state(plan.weight_format), report)

    def _solve(self, block, plan, statistics):
        if isinstance(self.solver, ExternalSolver):
            if self.solved is None:
                raise ValueError("an external solver needs the folder `solved` with its results")
            return Solution(self.solver.read(self.solved, block.layers[next(iter(plan.names))]))
        if not isinstance(self.solver, LayerSolver):
            raise TypeError(f"{self.solver} does not solve layers")
        if len(plan.groups) == 1 or statistics is None:
            return self.solver.solve(plan.weight, plan.bound_format, statistics and statistics[0])
        if plan.weight_format.shares_rows:
            raise DataError(
                f"layer {block.layers[next(iter(plan.names))]}: this solver takes each group of a convolution apart, "
                f"and the scales of its {plan.settings['weights']['format']} span groups; set granularity: channel."
            )
        solver = self.solver.of_channel_groups()
        parts = [
            solver.solve(plan.weight[rows], plan.bound_format, observers)
            for rows, observers in zip(plan.groups, statistics, strict=True)
        ]
        worst = max(parts, key=lambda part: (part.fallback is not None, part.damping or 0))
        return replace(worst, weight=QuantizedWeight.of_rows([part.weight for part in parts]))


@contextmanager
def _span(spans):
    """Append (start, stop, 1) of the code inside, including its pending work on an accelerator."""
    start = _now()
    yield
    spans.append((start, _now(), 1.0))


def _now():
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def _description(weight, plan):
    """Return the shape and the bits of a layer for its report."""
    rows, columns = weight.codes.shape
    branch = 0 if plan.down is None else 16 * len(plan.down) * (rows + columns) / (rows * columns)
    return {
        "in_features": columns,
        "out_features": rows,
        **(plan.geometry.settings() if plan.geometry else {}),
        "groups_per_row": weight.scale.shape[1],
        "parts": sorted(weight.state(plan.weight_format)),
        "weight_bits": stored_bits(rows, columns, plan.weight_format) + branch,
        "activation_bits": plan.activation_format.bits if plan.activation_format else 8 * plan.dtype.itemsize,
    }
