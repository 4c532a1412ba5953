"""Activations on their way through a denoiser's blocks, and the forward passes that statistics are gathered in."""

import inspect
from contextlib import contextmanager

import torch

from quantwatt.manifest import finite
from quantwatt.statistics import Statistics


class Streams:
    """Arguments of the next block for every batch of samples: `batches` from the quantized prefix, and the float
    model's beside them where a solver asks for it. They rest on the CPU."""

    def __init__(self, family, device, batches, paired):
        self.family, self.device, self.batches = family, device, batches
        self.float_batches = list(batches) if paired else None

    @classmethod
    def start(cls, denoiser, family, samples, batch, device="cpu", paired=False):
        """The streams in front of the first block.

        Args:
            denoiser: float module on the CPU.
            samples: {denoiser input: [samples, ...]}; batch: samples per forward pass.
            device: where blocks are run.
            paired: whether the float model's stream is kept beside.
        """
        captured = []

        first_block = denoiser.get_submodule(family.blocks(denoiser)[0])
        names = list(inspect.signature(first_block.forward).parameters)

        def capture(module, args, kwargs):
            captured.append({**dict(zip(names, args, strict=False)), **kwargs})
            raise Stop

        with hooks([first_block.register_forward_pre_hook(capture, with_kwargs=True)]):
            for first in range(0, len(next(iter(samples.values()))), batch):
                run(denoiser, {name: tensor[first : first + batch] for name, tensor in samples.items()})
        return cls(family, device, captured, paired)

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
        """
        statistics = [Statistics.new(needs, plan.weight.shape[1], plan.weight.device) for plan in plans]
        firsts = [next(iter(plan.names)) for plan in plans]
        for index, batch in enumerate(self.batches):
            float_inputs = {}
            if reference is not None and "cross" in needs:
                self.watch(reference, firsts, self.float_batches[index], float_inputs.__setitem__)

            def observe(name, inputs, float_inputs=float_inputs):
                plan, own = plans[firsts.index(name)], statistics[firsts.index(name)]
                beside = float_inputs.pop(name, None)
                if beside is not None and plan.input_factor is not None:
                    beside = beside * plan.input_factor.to(beside.dtype)
                own.observe(inputs if raw else plan.seen(inputs), beside)

            self.watch(block, firsts, batch, observe)
        return statistics

    def watch(self, block, names, batch, see):
        """Call see(name, inputs [tokens, columns]) for some layers, and stop the pass behind the last of them.

        A family with padded samples says which tokens are real, and only those are seen.
        """
        missing = set(names)
        real = real_tokens(self.family, batch)

        def watch(name):
            def hook(module, args):
                inputs = args[0].reshape(-1, args[0].shape[-1])
                see(name, inputs if real is None else inputs[real.reshape(-1).to(inputs.device)])
                missing.discard(name)
                if not missing:
                    raise Stop

            return hook

        with hooks(block.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names):
            run(block, moved(batch, self.device))

    def error(self, block, targets):
        """‖outputs - targets‖ / ‖targets‖ of a block on the quantized stream, over all batches and tensors it returns.

        Padding is left out.

        Args:
            targets: what the float block returned, as of `advance_float`.
        """
        missed = whole = 0.0
        for batch, target in zip(self.batches, targets, strict=True):
            outputs = moved(block(**moved(batch, self.device)), "cpu")
            real = real_tokens(self.family, batch)
            for found, expected in zip(*(tensors(side, real) for side in (outputs, target)), strict=True):
                missed += (found.float() - expected.float()).square().sum().item()
                whole += expected.float().square().sum().item()
        return finite((missed / whole) ** 0.5) if whole else 0.0

    def advance(self, block):
        """Replace every batch by the arguments of the next block."""
        for index, batch in enumerate(self.batches):
            self.batches[index] = self.family.advance(batch, moved(block(**moved(batch, self.device)), "cpu"))

    def advance_float(self, reference):
        """Likewise for the float model; returns the float block's outputs, batch by batch."""
        outputs = [moved(reference(**moved(batch, self.device)), "cpu") for batch in self.float_batches]
        pairs = zip(self.float_batches, outputs, strict=True)
        self.float_batches = [self.family.advance(batch, output) for batch, output in pairs]
        return outputs


class Stop(Exception):
    """Ends a forward pass once all that it was made for is known."""


def run(module, kwargs):
    try:
        module(**kwargs)
    except Stop:
        pass


@contextmanager
def hooks(handles):
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tensors(outputs, real=None):
    """The tensors that a block has returned, in order; of padded samples the real tokens alone, [tokens, channels].

    Args:
        real: of `real_tokens`.
    """
    parts = [outputs] if isinstance(outputs, torch.Tensor) else [part for part in outputs if part is not None]
    return parts if real is None else [part[real.to(part.device)] for part in parts]


def real_tokens(family, inputs):
    """[samples, tokens] bool, which tokens of a block's arguments are no padding; None where a family pads nothing."""
    return family.real_tokens(inputs) if hasattr(family, "real_tokens") else None


def moved(value, device):
    """A block's arguments or outputs with every tensor on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: moved(part, device) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(moved(part, device) for part in value)
    return value
