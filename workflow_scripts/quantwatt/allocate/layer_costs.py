"""Measure the cost of layers in the formats of each candidate, with the kernels of this device.

Layers of equal shape and equal input shape are measured once, on random numbers. All cases take turns, round after
round, so that drift affects all cases alike; results are medians over rounds. With the transform bos, a quantized layer
stores its product with the first token, as in a checkpoint, and multiplies only the other tokens.
"""

import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from quantwatt.inference.kernels import Kernel
    from quantwatt.measuring.meters import Meter

Layer = torch.nn.Linear | torch.nn.Conv2d
Formats = dict[str, Any]  # {"weights", "activations"}: completed settings or None

BASELINE = "baseline"  # the unquantized layer
FLOAT = {"weights": None, "activations": None}
LOOP_S, MOST = 0.005, 1000  # target duration of a loop, and its largest number of products


@dataclass
class Case:
    """One layer in the formats of one candidate.

    run: computes the product once; None if there is no kernel, and `reason` says why.
    repeats: products between two clock readings, so that synchronizing the device takes little of the time.
    seconds, joules: of one product, one value per round.
    """

    kernel: str | None
    reason: str | None
    run: Callable[[], object] | None = None
    repeats: int = 1
    seconds: list[float] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)

    def loop(self) -> None:
        for _ in range(self.repeats):
            self.run()  # ty: ignore[not-callable]  (only a case with a kernel is measured)

    def figures(self) -> dict[str, Any]:
        """Return {"milliseconds", "joules", "kernel", "reason"} of one product: medians over rounds, or None."""
        seconds, joules = (statistics.median(values) if values else None for values in (self.seconds, self.joules))
        milliseconds = None if seconds is None else 1000 * seconds
        return {"milliseconds": milliseconds, "joules": joules, "kernel": self.kernel, "reason": self.reason}


def input_shapes(
    denoiser: torch.nn.Module, names: Iterable[str], draw: Callable[[], object]
) -> dict[str, tuple[int, ...]]:
    """Return {layer: shape of its input} in one call of the denoiser.

    Args:
        draw: function that runs the denoiser; shapes are those of its first call.
    """
    shapes = {}

    def note(name):
        return lambda module, args: shapes.setdefault(name, tuple(args[0].shape)) and None

    with hooks(denoiser.get_submodule(name).register_forward_pre_hook(note(name)) for name in names):
        draw()
    return shapes


def shape_of(layer: Layer, inputs: tuple[int, ...]) -> tuple[Any, ...]:
    """Return what determines a layer's cost: type, weight shape, bias, geometry, and input shape."""
    geometry = [getattr(layer, key, None) for key in ("stride", "padding", "dilation", "groups", "padding_mode")]
    return type(layer).__name__, tuple(layer.weight.shape), layer.bias is not None, *map(str, geometry), inputs


def case(layer: Layer, inputs: torch.Tensor, formats: Formats, device: str, first_token: bool = False) -> Case:
    """Prepare a layer to be measured in some formats.

    Args:
        layer: float Linear or Conv2d on the device; inputs: its input tensor.
        formats: {"weights", "activations"}; if both are None, the float layer is measured.
        first_token: whether a quantized layer stores its product with the first token.
    """
    if not any(formats.values()):
        return Case("torch", None, lambda: layer(inputs.detach()))  # a new tensor: none knows that it was quantized
    built, kernel, reason = build(layer, inputs, formats, device, first_token)
    return Case(kernel, reason, None if built is None else lambda: built(inputs.detach()))


def build(
    layer: Layer, inputs: torch.Tensor, formats: Formats, device: str, first_token: bool = False
) -> tuple[torch.nn.Module | None, str | None, str | None]:
    """Return (layer that computes in the formats or None, its kernel's name or None, reason without a kernel)."""
    if formats["weights"] is None:
        return None, None, f"no kernel computes 16-bit weights with quantized inputs on {device}"
    description, build_for = quantized(layer, inputs, formats, first_token)
    kernel, reason = kernel_choice.kernel_for(description, device)
    if kernel is None:
        return None, None, reason
    return build_for(kernel).to(device), kernel.NAME, None


def quantized(
    layer: Layer, inputs: torch.Tensor, formats: Formats, first_token: bool = False
) -> "tuple[dict[str, Any], Callable[[Kernel], torch.nn.Module]]":
    """Return (description of the rounded layer for the kernels, function from a kernel module to the layer on the CPU).

    Args:
        inputs: tensor that calibrates a static grid.
        first_token: whether the product with the first token is stored; its values are zeros.
    """
    geometry, weight_format = Convolution.of(layer), load_format(formats["weights"])
    rounded = quantize_to_nearest(layer.weight.detach().float().cpu().flatten(1), weight_format)
    if first_token:
        rounded = replace(rounded, first_output=torch.zeros(len(layer.weight)))
    activation_format = ActivationFormat.from_settings(formats["activations"])
    if activation_format is not None and not activation_format.dynamic:
        observed = Range(1)
        observed.observe(inputs.reshape(-1, 1).cpu())
        scale, zero = activation_format.calibrated(observed)
        rounded = replace(rounded, activation_scale=scale, activation_zero=zero)
    description = {**formats, **convolution.describe(layer), "parts": sorted(rounded.state(weight_format))}
    arguments = (rounded, weight_format, formats["activations"], layer.bias, layer.weight.dtype, geometry)
    return description, lambda kernel: kernel.Layer.build(*arguments)


def measure(
    cases: Iterable[Case],
    settings: Mapping[str, Any],
    meter: "Meter",
    synchronize: Callable[[], object],
    warmup_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Measure latency and energy of all cases that have a kernel; the cases take turns.

    Args:
        settings: `costs` of a completed sensitivity.
        meter: opened; the meter "none" measures no energy.
    """
    computed = [(measured, measured.run) for measured in cases if measured.run is not None]
    for measured, run in computed:
        protocol.warm_up(run, warmup_s / len(computed), synchronize, clock)
        once = statistics.median(protocol.measure_latency(run, LOOP_S, 1, synchronize, clock))
        measured.repeats = max(1, round(LOOP_S / max(once, LOOP_S / MOST)))
    for turn in range(settings["rounds"]):
        for measured, _ in computed[:: 1 if turn % 2 == 0 else -1]:
            seconds = protocol.measure_latency(measured.loop, settings["seconds"], 1, synchronize, clock)
            measured.seconds.append(float(statistics.median(seconds)) / measured.repeats)
    for turn in range(settings["blocks"] if meter.name != "none" else 0):
        for measured, _ in computed[:: 1 if turn % 2 == 0 else -1]:
            blocks = protocol.measure_energy(
                measured.loop, meter, settings["block_s"], 1, measured.repeats, synchronize
            )
            measured.joules += protocol.joules_per_image([blocks])[0].tolist()


def table(
    layers: Mapping[str, Layer],
    shapes: Mapping[str, tuple[int, ...]],
    first_tokens: Collection[str],
    candidates: Mapping[str, Formats],
    settings: Mapping[str, Any],
    meter: "Meter",
    device: str,
    synchronize: Callable[[], object] = protocol.nothing,
    warmup_s: float = 0.0,
) -> Iterator[dict[str, Any]]:
    """Yield rows {"layer", "candidate", "megabytes", "milliseconds", "joules", "kernel", "reason"} per denoiser call.

    Args:
        layers: {name: float layer on the device}; shapes: the result of `input_shapes`.
        first_tokens: names of the layers that store their product with the first token when quantized.
        candidates: {name: formats}; the unquantized layer is measured, too, as candidate "baseline".
    """
    formats = {BASELINE: FLOAT} | {name: FLOAT | sides for name, sides in candidates.items()}
    keys = {name: (*shape_of(layer, shapes[name]), name in first_tokens) for name, layer in layers.items()}
    generator, cases = torch.Generator().manual_seed(0), {}
    for name, layer in layers.items():
        if keys[name] not in cases:
            inputs, first_token = torch.randn(shapes[name], generator=generator), name in first_tokens
            inputs = inputs.to(device, layer.weight.dtype)
            cases[keys[name]] = {c: case(layer, inputs, sides, device, first_token) for c, sides in formats.items()}
    measure([each for of_shape in cases.values() for each in of_shape.values()], settings, meter, synchronize, warmup_s)
    for name, layer in layers.items():
        for candidate, measured in cases[keys[name]].items():
            stored = megabytes(layer.weight, formats[candidate]["weights"])
            yield {"layer": name, "candidate": candidate, "megabytes": stored, **measured.figures()}
