"""Run a denoiser block by block on the calibration set, and observe the inputs of layers.

A real forward pass of the denoiser is suspended at each call of a block, and resumes with the block's output. So any
data flow between blocks is reproduced exactly (skip connections, two streams of tokens), and a pass holds only the
tensors that are live at that point, never the activations of all layers.
"""

import contextlib
import inspect
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import finite
from quantwatt.inference.linear import QuantizedLinear
from quantwatt.models.architecture import LAYERS
from quantwatt.models.denoiser_inputs import nested
from quantwatt.models.network import Network
from quantwatt.quantize import hold_out
from quantwatt.quantize.layer_plan import LayerPlan
from quantwatt.quantize.observers import Observers


class Alone(torch.nn.Module):
    """Wrapper of a single layer that is a whole block, quantized or not; the layer's name inside is "layer"."""

    def __init__(self, layer: torch.nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(*inputs.values())


class Block:
    """A block of a denoiser while it is processed.

    name: in the denoiser; module: the block, or an `Alone`; layers: {name in the block: name in the denoiser}.
    """

    def __init__(self, denoiser: torch.nn.Module, name: str, layers: Iterable[str], device: str):
        module = denoiser.get_submodule(name)
        alone = isinstance(module, (*LAYERS, QuantizedLinear))
        self.denoiser, self.name = denoiser, name
        self.module = (Alone(module) if alone else module).to(device)
        inside = {layer.removeprefix(f"{name}."): layer for layer in layers if layer.startswith(f"{name}.")}
        self.layers = {"layer": name} if alone and name in layers else inside

    def put_back(self) -> None:
        """Return the block to the denoiser, on the CPU."""
        self.module.to("cpu")
        if isinstance(self.module, Alone):
            self.denoiser.set_submodule(self.name, self.module.layer)


class SuspendedForward:
    """A denoiser's forward pass on one batch, suspended at a block.

    block, inputs: the block's name and its keyword arguments; None after the end of the pass.
    """

    def __init__(self, denoiser: torch.nn.Module, inputs: Mapping[str, Any]):
        import greenlet  # imported here, because the environments of external solvers lack it

        self._start: Any = denoiser
        self._inputs: Any = inputs
        self._run = greenlet.greenlet(self._whole)
        self.block: str | None = None
        self.inputs: Any = None

    def _whole(self):
        denoiser, inputs = self._start, self._inputs
        self._start = self._inputs = None  # the pass keeps only what it still needs
        denoiser(**inputs)

    def resume(self, *outputs: Any) -> None:
        """Run to the next block, given the outputs of the current block; call it only inside `stopping`."""
        self.inputs = None
        reached = self._run.switch(*outputs)
        self.block, self.inputs = (None, None) if self._run.dead else reached


@contextmanager
def stopping(denoiser: torch.nn.Module, blocks: Iterable[str]) -> Generator[None, None, None]:
    """Within this context, a denoiser's pass suspends at each of the named blocks."""
    import greenlet

    modules = {name: denoiser.get_submodule(name) for name in blocks}

    def stop_at(name, module):
        def forward(*args, **kwargs):
            return greenlet.getcurrent().parent.switch((name, arguments(module, args, kwargs)))

        return forward

    for name, module in modules.items():
        module.forward = stop_at(name, module)  # the instance attribute shadows the class's method
    try:
        yield
    finally:
        for module in modules.values():
            del module.forward


def arguments(module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call's arguments by keyword.

    Raises:
        DataError: positional arguments have no parameter names (*args).
    """
    bound = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
    named = {}
    for name, value in list(bound.arguments.items())[1:]:
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            raise DataError(f"{type(module).__name__}: is called with positional arguments that have no names (*args).")
        named |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return named


class BlockActivations:
    """Suspended forward passes, one per batch of samples, all at the same block.

    Passes run through the quantized blocks and, if a solver needs it, also through the float model. Suspended passes
    keep their tensors on the CPU.
    """

    def __init__(
        self,
        denoiser: torch.nn.Module,
        family: Network,
        samples: Mapping[str, torch.Tensor],
        batch: int,
        device: str = "cpu",
        paired: bool = False,
        held: torch.Tensor | None = None,
    ):
        """Run every batch up to the first block.

        Args:
            denoiser: float module on the CPU.
            samples: {denoiser input: [samples, ...]}, named as in `quantwatt.models.denoiser_inputs`.
            batch: samples per forward pass.
            device: where blocks run.
            paired: whether there are also passes of the float model.
            held: [samples] bool, the samples hidden from solvers, as `hold_out.chosen` returns; None for none.
        """
        self.denoiser, self.family, self.device = denoiser, family, device
        self.calls: dict[str, int] = {}  # of each layer in one pass of a block, as `sharing` has counted
        self.blocks = family.blocks(denoiser)
        parts = range(0, len(next(iter(samples.values()))), batch)
        inputs = [nested({name: tensor[first : first + batch] for name, tensor in samples.items()}) for first in parts]
        self.held = [None] * len(inputs) if held is None else [held] if len(inputs) == 1 else held.split(batch)
        self.passes = [SuspendedForward(denoiser, part) for part in inputs]
        self.float_passes = [SuspendedForward(denoiser, part) for part in inputs] if paired else []
        with stopping(denoiser, self.blocks):
            for suspended in (*self.passes, *self.float_passes):
                suspended.resume()

    @property
    def block(self) -> str | None:
        """Name of the block at which all passes are suspended; None after the last block.

        Raises:
            DataError: the passes reached different blocks.
        """
        (name, *others) = {suspended.block for suspended in (*self.passes, *self.float_passes)}
        if others:
            raise DataError(f"the order of blocks depends on the samples ({name} or {others[0]} comes next).")
        return name

    @property
    def batches(self) -> list[dict[str, Any]]:
        """The block's keyword arguments in the quantized model, one mapping per batch."""
        return [suspended.inputs for suspended in self.passes]

    @property
    def float_batches(self) -> list[dict[str, Any]]:
        """The block's keyword arguments in the float model, one mapping per batch."""
        return [suspended.inputs for suspended in self.float_passes]

    def sharing(self, block: torch.nn.Module, names: Iterable[str]) -> list[list[str]]:
        """Group layers of a block that have the same input tensors, in the order of their first calls."""
        fed, alive = {}, []

        def note(name):
            def hook(module, args):
                alive.append(args[0])  # so that no other tensor gets its address
                fed.setdefault(name, []).append((args[0].data_ptr(), tuple(args[0].shape)))

            return hook

        with hooks(block.get_submodule(name).register_forward_pre_hook(note(name)) for name in names):
            run(block, moved(self.batches[0], self.device))
        self.calls, groups = {name: len(inputs) for name, inputs in fed.items()}, {}
        for name, inputs in fed.items():
            groups.setdefault(tuple(inputs), []).append(name)
        return list(groups.values())

    def observe(
        self,
        block: torch.nn.Module,
        plans: Sequence[LayerPlan],
        needs: Collection[str],
        raw: bool = False,
        reference: torch.nn.Module | None = None,
    ) -> list[list[Observers]]:
        """Observe every plan's input in one forward pass per batch, which stops at the last of the layers.

        Args:
            needs: names of observers.
            raw: observe what the transforms that are still to come get, instead of the inputs of the plan's product.
            reference: the float block, if observers compare with the float model's inputs.
        Returns:
            one list of Observers per plan: one per group of a convolution; for raw inputs a single one.
        """
        statistics = [plan.statistics(needs, raw) for plan in plans]
        firsts = [next(iter(plan.names)) for plan in plans]
        for index, batch in enumerate(self.batches):
            float_inputs, real = {name: [] for name in firsts}, self.family.real_tokens(batch)
            if reference is not None and "cross" in needs:
                of_floats = self.float_passes[index].inputs
                self.watch(reference, firsts, of_floats, lambda name, x, of=float_inputs: of[name].append(x))

            held = self.held[index] if "held_out" in needs else None

            def observe(name, inputs, float_inputs=float_inputs, real=real, held=held):
                plan, observers = plans[firsts.index(name)], statistics[firsts.index(name)]
                if "first_token" in needs and plan.settings.get("first_token"):
                    observers[0].first_token.see(plan.scaled(inputs))
                inputs = plan.rest(inputs)
                parts = plan.tokens(plan.scaled(inputs) if raw else plan.seen(inputs), real, raw)
                float_parts = [None] * len(parts)
                if float_inputs[name]:
                    float_parts = plan.tokens(plan.scaled(plan.rest(float_inputs[name].pop(0))), real)
                of_samples = real if plan.geometry is None else None
                for observer, tokens, float_tokens in zip(observers, parts, float_parts, strict=True):
                    held_tokens = None if held is None else hold_out.rows_of(held, len(tokens), of_samples)
                    observer.observe(tokens, float_tokens, held_tokens)

            self.watch(block, firsts, batch, observe)
        return statistics

    def watch(
        self,
        block: torch.nn.Module,
        names: Iterable[str],
        batch: Mapping[str, Any],
        see: Callable[[str, torch.Tensor], object],
    ) -> None:
        """Call see(name, input) at each call of some layers, and stop the pass at the last."""
        left = {name: self.calls.get(name, 1) for name in names}

        def watch(name):
            def hook(module, args):
                see(name, args[0])
                left[name] -= 1
                if max(left.values()) <= 0:
                    raise Stop

            return hook

        with hooks(block.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names):
            run(block, moved(batch, self.device))

    def errors(self, block: torch.nn.Module, targets: Sequence[Any]) -> tuple[float | None, float | None]:
        """Return ‖outputs - targets‖ / ‖targets‖ of a block in the quantized model, over all batches and tensors.

        Padding is ignored.

        Args:
            targets: the float block's outputs, as `outputs` returns.
        Returns:
            (error on the samples that solvers see, error on held-out samples or None without any).
        """
        missed, whole = [0.0, 0.0], [0.0, 0.0]
        for batch, target, held in zip(self.batches, targets, self.held, strict=True):
            outputs = moved(block(**moved(batch, self.device)), "cpu")
            real = self.family.real_tokens(batch)
            for actual, expected in zip(tensors(outputs), tensors(target), strict=True):
                held_rows = hold_out.rows_of(torch.tensor([False]) if held is None else held, len(actual))
                for i, samples in enumerate((~held_rows, held_rows)):
                    kept = samples if real is None else real.cpu() & samples[:, None]
                    missed[i] += (actual[kept].float() - expected[kept].float()).square().sum().item()
                    whole[i] += expected[kept].float().square().sum().item()
        fitted, held_out = (finite((m / w) ** 0.5) if w else 0.0 for m, w in zip(missed, whole, strict=True))
        return fitted, held_out if whole[1] else None

    def outputs(self, reference: torch.nn.Module) -> list[Any]:
        """Return the float block's outputs, one entry per batch."""
        return [moved(reference(**moved(inputs, self.device)), "cpu") for inputs in self.float_batches]

    def advance(
        self,
        block: torch.nn.Module,
        reference: torch.nn.Module | None = None,
        float_outputs: Sequence[Any] | None = None,
    ) -> None:
        """Advance all passes to the next block.

        Args:
            block: the quantized block.
            reference: the float block, or float_outputs: its outputs; needed if there are passes of the float model.
        """
        for index, suspended in enumerate(self.passes):
            outputs = moved(block(**moved(suspended.inputs, self.device)), "cpu")
            with stopping(self.denoiser, self.blocks):
                suspended.resume(outputs)
            if self.float_passes:
                float_pass = self.float_passes[index]
                if float_outputs is not None:
                    float_output = float_outputs[index]
                elif reference is not None:
                    float_output = moved(reference(**moved(float_pass.inputs, self.device)), "cpu")
                else:
                    raise ValueError("passes of the float model need the float block or its outputs")
                with stopping(self.denoiser, self.blocks):
                    float_pass.resume(float_output)


class Stop(Exception):
    """Ends a forward pass as soon as all wanted inputs were observed."""


def run(module: torch.nn.Module, kwargs: Mapping[str, Any]) -> None:
    """Call a module until it returns or a hook raises Stop."""
    with contextlib.suppress(Stop):
        module(**kwargs)


@contextmanager
def hooks(handles: Iterable[Any]) -> Generator[None, None, None]:
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tensors(outputs: Any, real: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Return a block's output tensors, in order; with `real` only the tokens that are not padding, [tokens, channels].

    Args:
        real: as `Family.real_tokens` returns.
    """
    parts = [outputs] if isinstance(outputs, torch.Tensor) else [part for part in outputs if part is not None]
    return parts if real is None else [part[real.to(part.device)] for part in parts]


def moved(value: Any, device: str) -> Any:
    """Return a block's arguments or outputs with every tensor moved to a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: moved(part, device) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(moved(part, device) for part in value)
    return value
