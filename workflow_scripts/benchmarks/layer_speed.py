"""Speed of one linear layer in every format: by each kernel of the device, by other libraries, and in float.

For each number of tokens, all implementations alternate in rounds, and medians over rounds are reported. Ratios are
speed-ups: above 1 is faster. Errors are those of the layer's outputs, rounding included, against the float32 layer.
"""

import time
from dataclasses import dataclass, field

import numpy as np
import torch

from benchmarks import peers
from quantwatt.allocate import layer_costs
from quantwatt.artifacts.errors import DataError
from quantwatt.inference import kernel_choice
from quantwatt.measuring import instruments
from quantwatt.measuring.meters import Metering, open_meter

INTEGER = {"format": "integer", "granularity": "channel", "group_size": None, "symmetric": True}
GROUPS = {"granularity": "group", "group_size": 128}
TOKEN = {"bits": 8, "granularity": "token", "dynamic": True, "symmetric": True}
STATIC = {"bits": 8, "granularity": "tensor", "dynamic": False, "symmetric": True}
FLOAT8 = {"format": "float8", "bits": 8, "element": "e4m3", "granularity": "channel"}
MXFP8 = {"format": "mxfp8", "bits": 8, "element": "e4m3", "scale_rounding": "up"}
NVFP4 = {"format": "nvfp4", "bits": 4, "scale_rounding": "nearest"}
FORMATS = {  # name: (weights, activations)
    "W8A8": ({**INTEGER, "bits": 8}, TOKEN),
    "W8A8 per tensor": ({**INTEGER, "bits": 8}, {**TOKEN, "granularity": "tensor"}),
    "W8A8 static": ({**INTEGER, "bits": 8}, STATIC),
    "W8A8 static asymmetric": ({**INTEGER, "bits": 8}, {**STATIC, "symmetric": False}),
    "W8A16": ({**INTEGER, "bits": 8}, None),
    "W4A8": ({**INTEGER, "bits": 4}, TOKEN),
    "W4A8 asymmetric": ({**INTEGER, "bits": 4, "symmetric": False}, TOKEN),
    "W4A8 group 128": ({**INTEGER, **GROUPS, "bits": 4}, TOKEN),
    "W4A4": ({**INTEGER, "bits": 4}, {**TOKEN, "bits": 4}),
    "W4A16 group 128": ({**INTEGER, **GROUPS, "bits": 4}, None),
    "W4A16 group 128 asymmetric": ({**INTEGER, **GROUPS, "bits": 4, "symmetric": False}, None),
    "W3A16 group 128": ({**INTEGER, **GROUPS, "bits": 3}, None),
    "W2A16 group 128": ({**INTEGER, **GROUPS, "bits": 2}, None),
    "nf4": ({"format": "nf4", "bits": 4, "group_size": 64}, None),
    "fp4": ({"format": "fp4", "bits": 4, "group_size": 64}, None),
    "float8 W8A16": (FLOAT8, None),
    "mxfp8 W8A16": (MXFP8, None),
    "mxfp6 W6A16": ({"format": "mxfp6", "bits": 6, "element": "e2m3", "scale_rounding": "up"}, None),
    "mxfp4 W4A16": ({"format": "mxfp4", "bits": 4, "element": "e2m1", "scale_rounding": "up"}, None),
    "nvfp4 W4A16": (NVFP4, None),
    "q8_0": ({"format": "q8_0", "bits": 8}, None),
    "q6_k": ({"format": "q6_k", "bits": 6}, None),
    "q5_1": ({"format": "q5_1", "bits": 5}, None),
    "q4_0": ({"format": "q4_0", "bits": 4}, None),
    "q4_k": ({"format": "q4_k", "bits": 4}, None),
    "iq4_nl": ({"format": "iq4_nl", "bits": 4}, None),
    "float8 W8A8": (
        FLOAT8,
        {"format": "float8", "bits": 8, "element": "e4m3", "granularity": "token", "dynamic": True},
    ),
    "mxfp8 W8A8": (MXFP8, {**MXFP8, "dynamic": True}),
    "nvfp4 W4A4": (NVFP4, {**NVFP4, "dynamic": True}),
}
ROUNDS, TURN_S = 7, 0.2
LIMIT_S = 20  # seconds of a call: a layer that takes longer is called once
GIVE_UP_S = 120  # a layer is not called if a call would take longer, extrapolated from fewer tokens
RATIOS = {"ratio_to_bf16": peers.BFLOAT16, "ratio_to_bf16_prepacked": peers.PREPACKED, "ratio_to_fp32": peers.FLOAT32}


@dataclass
class Contender:
    """One implementation of the layer.

    dtype: dtype of its inputs.
    layer: the layer; None where it could not be built, and `reason` says why.
    compiles: whether its first call compiles it.
    seconds: {tokens: seconds of a call}, in the order in which they were timed.
    """

    format: str
    kernel: str | None
    provider: str | None
    dtype: torch.dtype
    layer: object = None
    reason: str | None = None
    compiles: bool = False
    seconds: dict = field(default_factory=dict)

    def expected_s(self, tokens):
        """Seconds of a call, extrapolated linearly from the last two numbers of tokens; 0 with fewer than two."""
        if len(self.seconds) < 2:
            return 0.0
        (few, short), (many, long) = list(self.seconds.items())[-2:]
        return long + (long - short) / (many - few) * (tokens - many)


def computing_type(device):
    """The dtype that models compute in on a device: bfloat16 where the hardware multiplies it, else float32."""
    fast = device == "cuda" or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def random_layer(in_features, out_features):
    """A float32 Linear with random weights and bias, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(in_features, out_features, device="meta")
    weight = torch.randn(out_features, in_features, generator=generator) / in_features**0.5
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    linear.bias = torch.nn.Parameter(torch.randn(out_features, generator=generator), requires_grad=False)
    return linear


def contenders(linear, inputs, device, dtype, formats, others):
    """Every implementation of a layer on a device: the float products, kernels by format, and other libraries.

    Args:
        linear: the layer, float32, on the CPU; inputs: [tokens, columns] float32, which static grids are calibrated on.
        dtype: dtype of the inputs of kernels and libraries.
        formats: {name: (weights, activations)}; others: libraries, in the form of benchmarks.peers.LIBRARIES.
    """
    built = [_peer(name, *entry, linear, dtype, device) for name, entry in peers.FLOATS.items()]
    typed = peers.plain(linear, dtype, "cpu")
    for name, (weights, activations) in formats.items():
        entry = {"weights": weights, "activations": activations}
        try:
            description, build_for = layer_costs.quantized(typed, inputs, entry)
        except DataError as refused:  # blocks that do not divide the inputs
            built.append(Contender(name, None, None, dtype, reason=own_words(refused)))
            continue
        tried = list(kernel_choice.trials(description, device))
        for kernel, reason in tried:
            candidate = Contender(name, kernel.NAME, kernel.PACKAGE, dtype, reason=reason)
            if not reason:
                _built(candidate, lambda k=kernel, build=build_for: build(k).to(device))
            built.append(candidate)
        if not tried:
            built.append(Contender(name, None, None, dtype, reason=kernel_choice.kernel_for(description, device)[1]))
    return built + [_peer(name, *entry, linear, dtype, device) for name, entry in others.items()]


def _peer(name, format_name, provider, build, linear, dtype, device):
    dtype = peers.DTYPES.get(name, dtype)
    peer = Contender(format_name, name, provider, dtype, compiles=name in peers.COMPILED)
    return _built(peer, lambda: build(linear, dtype, device))


def _built(contender, build):
    """The Contender with its layer, or with the reason why the layer cannot be built."""
    try:
        contender.layer = build()
    except Exception as refused:  # noqa: BLE001  (a library may raise anything)
        contender.reason = own_words(refused)
    return contender


def own_words(refused):
    """The first line of the message of an error that a library raised."""
    return (str(refused).strip() or type(refused).__name__).splitlines()[0].rstrip(".")[:300]


def table(shapes, tokens, device, dtype, formats=None, others=None, **settings):
    """Rows of `rows_of` for all layers [(in_features, out_features)] and numbers of tokens.

    Args:
        formats: in the form of FORMATS, the default; others: in the form of benchmarks.peers.LIBRARIES; default: all.
        settings: arguments of `rows_of`.
    """
    formats = FORMATS if formats is None else formats
    others = peers.LIBRARIES | peers.COMPILED if others is None else others
    for in_features, out_features in shapes:
        linear = random_layer(in_features, out_features)
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randn(max(tokens), in_features, generator=generator)
        built = contenders(linear, inputs, device, dtype, formats, others)
        for count in tokens:
            yield from rows_of(built, linear, inputs[:count], device, **settings)


@torch.no_grad()
def rows_of(
    found,
    linear,
    inputs,
    device,
    rounds=ROUNDS,
    turn_s=TURN_S,
    limit_s=LIMIT_S,
    give_up_s=GIVE_UP_S,
    clock=time.perf_counter,
):
    """A row for each contender on inputs [tokens, columns] of the layer: medians over rounds.

    Args:
        found: the contenders.
        turn_s: seconds of each contender in a round.
        limit_s: a call that takes longer is not repeated.
        give_up_s: a call that would take longer is not made, except for float products, which the ratios need.
    """
    synchronize, expected = instruments.synchronize_of(device), linear(inputs)
    tried = [_first_call(each, inputs, expected, device, limit_s, give_up_s, synchronize, clock) for each in found]
    cases = [case for case, _ in tried]
    settings = {"rounds": rounds, "seconds": turn_s, "blocks": 0}
    layer_costs.measure(cases, settings, open_meter(Metering()), synchronize, 0.0, clock)
    ms_of = {each.kernel: case.figures()["milliseconds"] for each, case in zip(found, cases, strict=True)}
    operations = 2 * linear.weight.numel() * len(inputs)
    for contender, (case, error) in zip(found, tried, strict=True):
        ms = case.figures()["milliseconds"]
        low, high = 1000 * np.quantile(case.seconds, [0.1, 0.9]) if ms else (None, None)
        contender.seconds |= {len(inputs): ms / 1000} if ms else {}
        yield {
            "device": device,
            "format": contender.format,
            "kernel": contender.kernel,
            "provider": contender.provider,
            "dtype": str(contender.dtype).removeprefix("torch."),
            "tokens": len(inputs),
            "in_features": linear.in_features,
            "out_features": linear.out_features,
            "ms": ms,
            "ms_p10": low,
            "ms_p90": high,
            "rounds": len(case.seconds),
            **{ratio: ms and ms_of.get(other) and ms_of[other] / ms for ratio, other in RATIOS.items()},
            "gops": ms and operations / ms / 1e6,
            "relative_error": error,
            "reason": case.reason,
        }


def _first_call(contender, inputs, expected, device, limit_s, give_up_s, synchronize, clock):
    """(Case to be timed, relative error or None) of a contender."""
    case = layer_costs.Case(contender.kernel, contender.reason)
    if contender.layer is None:
        return case, None
    if contender.kernel not in peers.FLOATS and contender.expected_s(len(inputs)) > give_up_s:
        case.reason = f"left out: extrapolated from fewer tokens, a call takes more than {give_up_s:g} s"
        return case, None
    typed = inputs.to(device, contender.dtype)
    try:
        for _ in range(2 if contender.compiles else 1):
            synchronize()
            before = clock()
            outputs = contender.layer(typed)
            synchronize()
            seconds = clock() - before
    except Exception as refused:  # noqa: BLE001  (a library may raise anything)
        case.reason = own_words(refused)
        return case, None
    if seconds > limit_s:
        case.seconds, case.reason = [seconds], f"called once: a call takes more than {limit_s:g} s"
    else:
        case.run = lambda: contender.layer(typed.detach())  # a new tensor: no layer has quantized it before
    return case, ((outputs.cpu().float() - expected).norm() / expected.norm()).item()
