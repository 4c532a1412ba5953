"""How fast one linear layer is in every format: by each kernel of the device, by other libraries, and in float.

All of one number of tokens take turns, round after round, and medians count; ratios are speeds, above 1 where faster.
Errors are those of the whole layer, rounding included, against the float32 layer.
"""

import time
from dataclasses import dataclass, field

import numpy as np
import torch

from benchmarks import peers
from quantwatt.allocate import layer_costs
from quantwatt.inference import kernel_choice
from quantwatt.measuring import instruments
from quantwatt.measuring.meters import Metering, open_meter

INTEGER = {"format": "integer", "granularity": "channel", "group_size": None, "symmetric": True}
GROUPS = {"granularity": "group", "group_size": 128}
TOKEN = {"bits": 8, "granularity": "token", "dynamic": True, "symmetric": True}
STATIC = {"bits": 8, "granularity": "tensor", "dynamic": False, "symmetric": True}
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
}
ROUNDS, TURN_S = 7, 0.2
LIMIT_S = 20  # of a call; what takes longer is called once ...
GIVE_UP_S = 120  # ... or, if it must take so long by its time on fewer tokens, not at all
RATIOS = {"ratio_to_bf16": peers.BFLOAT16, "ratio_to_bf16_prepacked": peers.PREPACKED, "ratio_to_fp32": peers.FLOAT32}


@dataclass
class Contender:
    """One way to compute the layer.

    dtype: of its inputs.
    layer: None where there is none, and why is in `reason`.
    compiles: its first call does.
    seconds: {tokens: of a call}, in the order in which they were timed.
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
        """Seconds of a call by the line through the last two; 0 before."""
        if len(self.seconds) < 2:
            return 0.0
        (few, short), (many, long) = list(self.seconds.items())[-2:]
        return long + (long - short) / (many - few) * (tokens - many)


def computing_type(device):
    """What models compute in on a device: bfloat16 where its hardware multiplies it, else float32."""
    fast = device == "cuda" or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def random_layer(in_features, out_features):
    """A float32 Linear on the CPU."""
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(in_features, out_features, device="meta")
    weight = torch.randn(out_features, in_features, generator=generator) / in_features**0.5
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    linear.bias = torch.nn.Parameter(torch.randn(out_features, generator=generator), requires_grad=False)
    return linear


def contenders(linear, inputs, device, dtype, formats, others):
    """Every way to compute a layer on a device: the float products, kernels by format, and other libraries.

    Args:
        linear: float32 on the CPU; inputs: [tokens, columns] float32 that calibrate static grids.
        dtype: of what kernels and libraries are fed.
        formats: {name: (weights, activations)}; others: libraries, as benchmarks.peers has them.
    """
    found = [_peer(name, *entry, linear, dtype, device) for name, entry in peers.FLOATS.items()]
    typed = peers.plain(linear, dtype, "cpu")
    for name, (weights, activations) in formats.items():
        description, build_for = layer_costs.quantized(typed, inputs, {"weights": weights, "activations": activations})
        tried = list(kernel_choice.trials(description, device))
        for kernel, reason in tried:
            one = Contender(name, kernel.NAME, kernel.PACKAGE, dtype, reason=reason)
            found.append(one if reason else _built(one, lambda k=kernel, build=build_for: build(k).to(device)))
        if not tried:
            found.append(Contender(name, None, None, dtype, reason=kernel_choice.kernel_for(description, device)[1]))
    return found + [_peer(name, *entry, linear, dtype, device) for name, entry in others.items()]


def _peer(name, format_name, provider, build, linear, dtype, device):
    own = peers.DTYPES.get(name, dtype)
    one = Contender(format_name, name, provider, own, compiles=name in peers.COMPILED)
    return _built(one, lambda: build(linear, own, device))


def _built(contender, build):
    """The Contender with its layer, or with why there is none."""
    try:
        contender.layer = build()
    except Exception as refused:  # noqa: BLE001  (a library may refuse in any way)
        contender.reason = own_words(refused)
    return contender


def own_words(refused):
    """The first line of what a library says when it refuses."""
    return (str(refused).strip() or type(refused).__name__).splitlines()[0].rstrip(".")[:300]


def table(shapes, tokens, device, dtype, formats=None, others=None, **settings):
    """Rows as of `rows_of`, of layers [(in_features, out_features)] and numbers of tokens.

    Args:
        formats: as FORMATS, which is taken without it; others: libraries, as benchmarks.peers has them, or all of them.
        settings: of `rows_of`.
    """
    formats = FORMATS if formats is None else formats
    others = peers.LIBRARIES | peers.COMPILED if others is None else others
    for in_features, out_features in shapes:
        linear = random_layer(in_features, out_features)
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randn(max(tokens), in_features, generator=generator)
        found = contenders(linear, inputs, device, dtype, formats, others)
        for count in tokens:
            yield from rows_of(found, linear, inputs[:count], device, **settings)


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
    """A row for each contender, fed one layer's inputs [tokens, columns]: medians over rounds.

    Args:
        turn_s: of each in a round.
        limit_s, give_up_s: a call that takes longer is not repeated; one that would take longer still is not made,
            but for float products, which ratios need.
    """
    synchronize, expected = instruments.synchronize_of(device), linear(inputs)
    tried = [_first_call(one, inputs, expected, device, limit_s, give_up_s, synchronize, clock) for one in found]
    cases = [case for case, _ in tried]
    settings = {"rounds": rounds, "seconds": turn_s, "blocks": 0}
    layer_costs.measure(cases, settings, open_meter(Metering()), synchronize, 0.0, clock)
    ms = {one.kernel: case.figures()["milliseconds"] for one, case in zip(found, cases, strict=True)}
    operations = 2 * linear.weight.numel() * len(inputs)
    for one, (case, error) in zip(found, tried, strict=True):
        own = case.figures()["milliseconds"]
        low, high = 1000 * np.quantile(case.seconds, [0.1, 0.9]) if own else (None, None)
        one.seconds |= {len(inputs): own / 1000} if own else {}
        yield {
            "device": device,
            "format": one.format,
            "kernel": one.kernel,
            "provider": one.provider,
            "dtype": str(one.dtype).removeprefix("torch."),
            "tokens": len(inputs),
            "in_features": linear.in_features,
            "out_features": linear.out_features,
            "ms": own,
            "ms_p10": low,
            "ms_p90": high,
            "rounds": len(case.seconds),
            **{ratio: own and ms.get(other) and ms[other] / own for ratio, other in RATIOS.items()},
            "gops": own and operations / own / 1e6,
            "relative_error": error,
            "reason": case.reason,
        }


def _first_call(one, inputs, expected, device, limit_s, give_up_s, synchronize, clock):
    """(Case to be timed, relative error or None) of a contender."""
    case = layer_costs.Case(one.kernel, one.reason)
    if one.layer is None:
        return case, None
    if one.kernel not in peers.FLOATS and one.expected_s(len(inputs)) > give_up_s:
        case.reason = f"left out: by its time on fewer tokens a call takes more than {give_up_s:g} s"
        return case, None
    own = inputs.to(device, one.dtype)
    try:
        for _ in range(2 if one.compiles else 1):
            synchronize()
            before = clock()
            outputs = one.layer(own)
            synchronize()
            seconds = clock() - before
    except Exception as refused:  # noqa: BLE001  (a library may refuse in any way)
        case.reason = own_words(refused)
        return case, None
    if seconds > limit_s:
        case.seconds, case.reason = [seconds], f"called once: a call takes more than {limit_s:g} s"
    else:
        case.run = lambda: one.layer(own)
    return case, ((outputs.cpu().float() - expected).norm() / expected.norm()).item()
