"""Activations on their way through a denoiser's blocks, and the forward passes that statistics are gathered in.

A real forward pass of the denoiser is suspended wherever it calls a block, and goes on with what the block has
returned. So any flow of data between blocks is followed as it is (skip connections, two streams of tokens), and a pass
holds what it would hold at that place, never the activations of all layers.
"""

import contextlib
import inspect
from contextlib import contextmanager
from typing import Any

import torch

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import finite
from quantwatt.inference.linear import QuantizedLinear
from quantwatt.models.architecture import LAYERS
from quantwatt.models.denoiser_inputs import nested
from quantwatt.quantize import hold_out


class Alone(torch.nn.Module):
    """A layer that is a block by itself, quantized or not; its name inside is "layer"."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, **inputs):
        return self.layer(*inputs.values())


class Block:
    """A block of a denoiser while it is worked on.

    name: in the denoiser; module: the block, or an `Alone`; layers: {name inside it: name in the denoiser}.
    """

    def __init__(self, denoiser, name, layers, device):
        found = denoiser.get_submodule(name)
        alone = isinstance(found, (*LAYERS, QuantizedLinear))
        self.denoiser, self.name = denoiser, name
        self.module = (Alone(found) if alone else found).to(device)
        inside = {layer.removeprefix(f"{name}."): layer for layer in layers if layer.startswith(f"{name}.")}
        self.layers = {"layer": name} if alone and name in layers else inside

    def put_back(self):
        """Return the block to the denoiser, on the CPU."""
        self.module.to("cpu")
        if isinstance(self.module, Alone):
            self.denoiser.set_submodule(self.name, self.module.layer)


class SuspendedForward:
    """A denoiser's forward pass on some samples, standing at a block.

    block, inputs: the block's name and its keyword arguments; None once the pass is through.
    """

    def __init__(self, denoiser, inputs):
        import greenlet  # here, as libraries' environments that load this package have none

        self._start: Any = denoiser
        self._inputs: Any = inputs
        self._run = greenlet.greenlet(self._whole)
        self.block = self.inputs = None

    def _whole(self):
        denoiser, inputs = self._start, self._inputs
        self._start = self._inputs = None  # the pass holds what it needs
        denoiser(**inputs)

    def resume(self, *outputs):
        """Run to the next block with what this one has returned; only inside `stopping`."""
        self.inputs = None
        found = self._run.switch(*outputs)
        self.block, self.inputs = (None, None) if self._run.dead else found


@contextmanager
def stopping(denoiser, blocks):
    """While inside, a denoiser's pass stops at each of the named blocks."""
    import greenlet

    modules = {name: denoiser.get_submodule(name) for name in blocks}

    def stop_at(name, module):
        def forward(*args, **kwargs):
            return greenlet.getcurrent().parent.switch((name, arguments(module, args, kwargs)))

        return forward

    for name, module in modules.items():
        module.forward = stop_at(name, module)  # the instance's own shadows its class's
    try:
        yield
    finally:
        for module in modules.values():
            del module.forward


def arguments(module, args, kwargs):
    """A call's arguments by keyword.

    Raises:
        DataError: more arguments by position than have names.
    """
    bound = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
    named = {}
    for name, value in list(bound.arguments.items())[1:]:
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            raise DataError(f"{type(module).__name__}: is called with arguments that have no names.")
        named |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return named


class BlockActivations:
    """One pass for every batch of samples, all at the same block.

    Passes go behind the quantized blocks and, where a solver asks for it, in the float model, too. What a pass holds
    rests on the CPU.
    """

    def __init__(self, denoiser, family, samples, batch, device="cpu", paired=False, held=None):
        """The streams in front of the first block.

        Args:
            denoiser: float module on the CPU.
            samples: {denoiser input: [samples, ...]}, named as `quantwatt.models.denoiser_inputs` says.
            batch: samples per forward pass.
            device: where blocks are run.
            paired: whether the float model's stream is kept beside.
            held: [samples] bool, which of them solvers do not see, as of `hold_out.chosen`; None for none.
        """
        self.denoiser, self.family, self.device = denoiser, family, device
        self.blocks = family.blocks(denoiser)
        parts = range(0, len(next(iter(samples.values()))), batch)
        inputs = [nested({name: tensor[first : first + batch] for name, tensor in samples.items()}) for first in parts]
        self.held = [None] * len(inputs) if held is None else [held] if len(inputs) == 1 else held.split(batch)
        self.passes = [SuspendedForward(denoiser, part) for part in inputs]
        self.float_passes = [SuspendedForward(denoiser, part) for part in inputs] if paired else []
        with stopping(denoiser, self.blocks):
            for one in (*self.passes, *self.float_passes):
                one.resume()

    @property
    def block(self):
        """Name of the block where all passes stand, None behind the last.

        Raises:
            DataError: they went different ways.
        """
        (name, *others) = {one.block for one in (*self.passes, *self.float_passes)}
        if others:
            raise DataError(f"the order of blocks depends on the samples ({name} or {others[0]} comes next).")
        return name

    @property
    def batches(self):
        """The block's keyword arguments, one mapping per batch, in the quantized model."""
        return [one.inputs for one in self.passes]

    @property
    def float_batches(self):
        """Likewise in the float model."""
        return [one.inputs for one in self.float_passes]

    def sharing(self, block, names):
        """Layers of a block in groups that are fed the same tensor, in execution order."""
        fed = {}

        def note(name):
            def hook(module, args):
                # The tensor itself is kept: its address is its own only while it lives.
                fed.setdefault((args[0].data_ptr(), tuple(args[0].shape)), (args[0], []))[1].append(name)

            return hook

        with hooks(block.get_submodule(name).register_forward_pre_hook(note(name)) for name in names):
            run(block, moved(self.batches[0], self.device))
        return [members for _, members in fed.values()]

    def observe(self, block, plans, needs, raw=False, reference=None):
        """Statistics of every plan's input, one forward pass over all batches, which ends with the last of the layers.

        Args:
            needs: names of statistics.
            raw: the block's own activations instead of what the plan's product will get.
            reference: the float block, where the statistics compare with its inputs.
        Returns:
            one list of Observers per plan: one for each group of a convolution, of raw inputs one for all.
        """
        statistics = [plan.statistics(needs, raw) for plan in plans]
        firsts = [next(iter(plan.names)) for plan in plans]
        for index, batch in enumerate(self.batches):
            float_inputs, real = {}, self.family.real_tokens(batch)
            if reference is not None and "cross" in needs:
                self.watch(reference, firsts, self.float_passes[index].inputs, float_inputs.__setitem__)

            held = self.held[index] if "held_out" in needs else None

            def observe(name, inputs, float_inputs=float_inputs, real=real, held=held):
                plan, own = plans[firsts.index(name)], statistics[firsts.index(name)]
                if "first_token" in needs and plan.settings.get("first_token"):
                    own[0].first_token.see(inputs)
                inputs = plan.rest(inputs)
                parts = plan.tokens(inputs if raw else plan.seen(inputs), real, raw)
                beside = [None] * len(parts)
                if name in float_inputs:
                    beside = plan.tokens(plan.scaled(plan.rest(float_inputs.pop(name))), real)
                of_samples = real if plan.geometry is None else None
                for one, tokens, float_tokens in zip(own, parts, beside, strict=True):
                    apart = None if held is None else hold_out.rows_of(held, len(tokens), of_samples)
                    one.observe(tokens, float_tokens, apart)

            self.watch(block, firsts, batch, observe)
        return statistics

    def watch(self, block, names, batch, see):
        """Call see(name, input) for some layers, and stop the pass behind the last of them."""
        missing = set(names)

        def watch(name):
            def hook(module, args):
                see(name, args[0])
                missing.discard(name)
                if not missing:
                    raise Stop

            return hook

        with hooks(block.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names):
            run(block, moved(batch, self.device))

    def errors(self, block, targets):
        """‖outputs - targets‖ / ‖targets‖ of a block on the quantized stream, over all batches and tensors it returns.

        Padding is left out.

        Args:
            targets: what the float block returned, as of `advance`.
        Returns:
            (on the samples that solvers see, on those that are held out or None where none are).
        """
        missed, whole = [0.0, 0.0], [0.0, 0.0]
        for batch, target, held in zip(self.batches, targets, self.held, strict=True):
            outputs = moved(block(**moved(batch, self.device)), "cpu")
            real = self.family.real_tokens(batch)
            for found, expected in zip(tensors(outputs), tensors(target), strict=True):
                apart = hold_out.rows_of(torch.tensor([False]) if held is None else held, len(found))
                for i, samples in enumerate((~apart, apart)):
                    kept = samples if real is None else real.cpu() & samples[:, None]
                    missed[i] += (found[kept].float() - expected[kept].float()).square().sum().item()
                    whole[i] += expected[kept].float().square().sum().item()
        fitted, held_out = (finite((m / w) ** 0.5) if w else 0.0 for m, w in zip(missed, whole, strict=True))
        return fitted, held_out if whole[1] else None

    def outputs(self, reference):
        """What the float block returns, batch by batch."""
        return [moved(reference(**moved(inputs, self.device)), "cpu") for inputs in self.float_batches]

    def advance(self, block, reference=None, float_outputs=None):
        """Bring all passes to the next block.

        Args:
            block: the quantized block.
            reference: the float block, where the float stream is kept, or float_outputs: what it has returned.
        """
        for index, one in enumerate(self.passes):
            outputs = moved(block(**moved(one.inputs, self.device)), "cpu")
            with stopping(self.denoiser, self.blocks):
                one.resume(outputs)
            if self.float_passes:
                beside = self.float_passes[index]
                if float_outputs is not None:
                    found = float_outputs[index]
                elif reference is not None:
                    found = moved(reference(**moved(beside.inputs, self.device)), "cpu")
                else:
                    raise ValueError("the float stream needs the float block, or what it has returned")
                with stopping(self.denoiser, self.blocks):
                    beside.resume(found)


class Stop(Exception):
    """Ends a forward pass once all that it was made for is known."""


def run(module, kwargs):
    """Call a module up to where a hook ends its pass."""
    with contextlib.suppress(Stop):
        module(**kwargs)


@contextmanager
def hooks(handles):
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tensors(outputs: Any, real: torch.Tensor | None = None) -> list[torch.Tensor]:
    """The tensors that a block has returned, in order; of padded samples the real tokens alone, [tokens, channels].

    Args:
        real: of `Family.real_tokens`.
    """
    parts = [outputs] if isinstance(outputs, torch.Tensor) else [part for part in outputs if part is not None]
    return parts if real is None else [part[real.to(part.device)] for part in parts]


def moved(value: Any, device: str) -> Any:
    """A block's arguments or outputs with every tensor on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: moved(part, device) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(moved(part, device) for part in value)
    return value
