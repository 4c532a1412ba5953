"""What layers take in each candidate's formats, with the kernels that compute them on this device.

Layers of one shape that are fed inputs of one shape are measured once, on random numbers. All of them take turns, round
after round, so that whatever drifts meets all alike, and medians over rounds count. With the transform bos, a quantized
layer has its product with the first token stored, as in a checkpoint, and multiplies the other tokens alone.
"""

import statistics
import time
from dataclasses import dataclass, field, replace

import torch

from quantwatt.allocate.rounding import megabytes
from quantwatt.formats import convolution
from quantwatt.formats.activations import ActivationFormat
from quantwatt.formats.convolution import Convolution
from quantwatt.formats.quantized_weight import load_format, quantize_to_nearest
from quantwatt.inference import kernel_choice
from quantwatt.measuring import protocol
from quantwatt.quantize.observers import Range
from quantwatt.quantize.streams import hooks

BASELINE = "baseline"  # the unquantized layer
FLOAT = {"weights": None, "activations": None}
LOOP_S, MOST = 0.005, 1000  # a loop lasts about so long, and has no more products


@dataclass
class Case:
    """One layer in one candidate's formats.

    run: does the product once; None where there is no kernel, and why is in `reason`.
    repeats: of the product between two looks at the clock, so that waiting for a device is little beside it.
    seconds, joules: of one product, in each round.
    """

    kernel: str | None
    reason: str | None
    run: object = None
    repeats: int = 1
    seconds: list = field(default_factory=list)
    joules: list = field(default_factory=list)

    def loop(self):
        for _ in range(self.repeats):
            self.run()

    def figures(self):
        """{"milliseconds", "joules", "kernel", "reason"} of one product: medians over rounds, None without any."""
        seconds, joules = (statistics.median(found) if found else None for found in (self.seconds, self.joules))
        milliseconds = None if seconds is None else 1000 * seconds
        return {"milliseconds": milliseconds, "joules": joules, "kernel": self.kernel, "reason": self.reason}


def input_shapes(denoiser, names, draw):
    """{layer: shape of its input} in one call of the denoiser.

    Args:
        draw: function that makes the denoiser run; its first call counts.
    """
    shapes = {}

    def note(name):
        return lambda module, args: shapes.setdefault(name, tuple(args[0].shape)) and None

    with hooks(denoiser.get_submodule(name).register_forward_pre_hook(note(name)) for name in names):
        draw()
    return shapes


def shape_of(layer, inputs):
    """What layers must have in common to cost the same: kind, weight, bias, geometry, and the shape of the input."""
    geometry = [getattr(layer, key, None) for key in ("stride", "padding", "dilation", "groups", "padding_mode")]
    return type(layer).__name__, tuple(layer.weight.shape), layer.bias is not None, *map(str, geometry), inputs


def case(layer, inputs, formats, device, first_token=False):
    """A layer ready to be measured in some formats.

    Args:
        layer: float Linear or Conv2d on the device; inputs: tensor that it is fed.
        formats: {"weights", "activations"}; both None: the layer as it is.
        first_token: whether a quantized layer has its product with the first token stored.
    """
    if not any(formats.values()):
        return Case("torch", None, lambda: layer(inputs))
    built, kernel, reason = build(layer, inputs, formats, device, first_token)
    return Case(kernel, reason, None if built is None else lambda: built(inputs))


def build(layer, inputs, formats, device, first_token=False):
    """(layer that computes in the formats or None, its kernel's name or None, why there is none or None)."""
    if formats["weights"] is None:
        return None, None, f"no kernel computes 16-bit weights with quantized inputs on {device}"
    description, build_for = quantized(layer, inputs, formats, first_token)
    kernel, reason = kernel_choice.kernel_for(description, device)
    if kernel is None:
        return None, None, reason
    return build_for(kernel).to(device), kernel.NAME, None


def quantized(layer, inputs, formats, first_token=False):
    """(the layer rounded to some formats as kernels take it, function of a kernel's module that builds it on the CPU).

    Args:
        inputs: what calibrates a static grid.
        first_token: its product is stored, whatever it is.
    """
    geometry, weight_format = Convolution.of(layer), load_format(formats["weights"])
    rounded = quantize_to_nearest(layer.weight.detach().float().cpu().flatten(1), weight_format)
    if first_token:
        rounded = replace(rounded, first_output=torch.zeros(layer.out_features))
    activation_format = ActivationFormat.from_settings(formats["activations"])
    if activation_format is not None and not activation_format.dynamic:
        observed = Range(1)
        observed.observe(inputs.reshape(-1, 1).cpu())
        scale, zero = activation_format.calibrated(observed)
        rounded = replace(rounded, activation_scale=scale, activation_zero=zero)
    description = {**formats, **convolution.describe(layer), "parts": sorted(rounded.state(weight_format))}
    arguments = (rounded, weight_format, formats["activations"], layer.bias, layer.weight.dtype, geometry)
    return description, lambda kernel: kernel.Layer.build(*arguments)


def measure(cases, settings, meter, synchronize, warmup_s, clock=time.perf_counter):
    """Time all cases that have a kernel, and read their energy, in turns.

    Args:
        settings: a completed sensitivity's `costs`.
        meter: opened; without energy where it is the meter "none".
    """
    computed = [one for one in cases if one.run is not None]
    for one in computed:
        protocol.warm_up(one.run, warmup_s / len(computed), synchronize, clock)
        once = statistics.median(protocol.measure_latency(one.run, LOOP_S, 1, synchronize, clock))
        one.repeats = max(1, round(LOOP_S / max(once, LOOP_S / MOST)))
    for turn in range(settings["rounds"]):
        for one in computed[:: 1 if turn % 2 == 0 else -1]:
            seconds = protocol.measure_latency(one.loop, settings["seconds"], 1, synchronize, clock)
            one.seconds.append(float(statistics.median(seconds)) / one.repeats)
    for turn in range(settings["blocks"] if meter.name != "none" else 0):
        for one in computed[:: 1 if turn % 2 == 0 else -1]:
            blocks = protocol.measure_energy(one.loop, meter, settings["block_s"], 1, one.repeats, synchronize)
            one.joules += [block.energy_j / block.images for block in blocks if not block.invalid]


def table(
    layers, shapes, first_tokens, candidates, settings, meter, device, synchronize=protocol.nothing, warmup_s=0.0
):
    """Rows {"layer", "candidate", "megabytes", "milliseconds", "joules", "kernel", "reason"}, of one denoiser call.

    Args:
        layers: {name: float layer on the device}; shapes: of `input_shapes`.
        first_tokens: names of the layers whose product with the first token is stored once they are quantized.
        candidates: {name: formats}; the unquantized layer comes beside them.
    """
    formats = {BASELINE: FLOAT} | {name: FLOAT | own for name, own in candidates.items()}
    keys = {name: (*shape_of(layer, shapes[name]), name in first_tokens) for name, layer in layers.items()}
    generator, cases = torch.Generator().manual_seed(0), {}
    for name, layer in layers.items():
        if keys[name] not in cases:
            inputs, apart = torch.randn(shapes[name], generator=generator), name in first_tokens
            inputs = inputs.to(device, layer.weight.dtype)
            cases[keys[name]] = {c: case(layer, inputs, own, device, apart) for c, own in formats.items()}
    measure([one for of_shape in cases.values() for one in of_shape.values()], settings, meter, synchronize, warmup_s)
    for name, layer in layers.items():
        for candidate, one in cases[keys[name]].items():
            stored = megabytes(layer.weight, formats[candidate]["weights"])
            yield {"layer": name, "candidate": candidate, "megabytes": stored, **one.figures()}
