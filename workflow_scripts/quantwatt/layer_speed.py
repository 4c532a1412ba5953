"""How fast one linear layer is in every format: by each kernel of the device, by other libraries, and in float.

All of one number of tokens take turns, round after round, and medians count; ratios are speeds, above 1 where faster.
Errors are those of the whole layer, rounding included, against the float32 layer.
"""

import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch

from quantwatt import costs, fresh_process, kernels, peers
from quantwatt.meters import open_meter

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
    "nf4": ({"format": "nf4", "block": 64}, None),
    "fp4": ({"format": "fp4", "block": 64}, None),
}
ROUNDS, TURN_S = 7, 0.2
LIMIT_S = 20  # of a call; what takes longer is called once
COLUMNS = (
    *("device", "format", "kernel", "provider", "dtype", "tokens", "in_features", "out_features"),
    *("ms", "ms_low", "ms_high", "rounds", "ratio_to_bf16", "ratio_to_bf16_prepacked", "ratio_to_fp32"),
    *("gops", "relative_error", "reason"),
)
RATIOS = {"ratio_to_bf16": peers.BFLOAT16, "ratio_to_bf16_prepacked": peers.PREPACKED, "ratio_to_fp32": peers.FLOAT32}


@dataclass
class Contender:
    """One way to compute the layer.

    dtype: of its inputs.
    layer: None where there is none, and why is in `reason`.
    compiles: its first call does.
    """

    format: str
    kernel: str | None
    provider: str | None
    dtype: torch.dtype
    layer: object = None
    reason: str | None = None
    compiles: bool = False


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
        formats: {name: (weights, activations)}; others: libraries, as quantwatt.peers has them.
    """
    found = [_peer(name, *entry, linear, dtype, device) for name, entry in (peers.FLOATS | others).items()]
    typed = peers.plain(linear, dtype, "cpu")
    for name, (weights, activations) in formats.items():
        description, build_for = costs.quantized(typed, inputs, {"weights": weights, "activations": activations})
        tried = list(kernels.trials(description, device))
        for kernel, reason in tried:
            one = Contender(name, kernel.NAME, kernel.PACKAGE, dtype, reason=reason)
            found.append(one if reason else _built(one, lambda k=kernel, build=build_for: build(k).to(device)))
        if not tried:
            found.append(Contender(name, None, None, dtype, reason=kernels.kernel_for(description, device)[1]))
    return found


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


def table(shapes, tokens, device, dtype, formats=FORMATS, others=None, **settings):
    """Rows of COLUMNS, of layers [(in_features, out_features)] and numbers of tokens.

    Args:
        others: libraries, as quantwatt.peers has them; all of them without it.
        settings: of `rows_of`.
    """
    others = peers.LIBRARIES | peers.COMPILED if others is None else others
    for in_features, out_features in shapes:
        linear = random_layer(in_features, out_features)
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randn(max(tokens), in_features, generator=generator)
        found = contenders(linear, inputs, device, dtype, formats, others)
        for count in tokens:
            yield from rows_of(found, linear, inputs[:count], device, **settings)


@torch.no_grad()
def rows_of(found, linear, inputs, device, rounds=ROUNDS, turn_s=TURN_S, limit_s=LIMIT_S, clock=time.perf_counter):
    """Rows of contenders for one layer's inputs [tokens, columns]."""
    synchronize = fresh_process.synchronize_of(device)
    expected, cases, errors = linear(inputs), [], []
    for one in found:
        case, error = _first_call(one, inputs, expected, device, limit_s, synchronize, clock)
        cases.append(case)
        errors.append(error)
    settings = {"rounds": rounds, "seconds": turn_s, "blocks": 0}
    costs.measure(cases, settings, open_meter("none"), synchronize, 0.0, clock)
    ms = {one.kernel: case.figures()["milliseconds"] for one, case in zip(found, cases, strict=True)}
    for one, case, error in zip(found, cases, errors, strict=True):
        own = case.figures()["milliseconds"]
        low, high = (None, None) if own is None else 1000 * np.quantile(case.seconds, [0.1, 0.9])
        operations = 2 * linear.weight.numel() * len(inputs)
        yield dict(zip(COLUMNS, (
            device, one.format, one.kernel, one.provider, str(one.dtype).removeprefix("torch."), len(inputs),
            linear.in_features, linear.out_features, own, low, high, len(case.seconds),
            *(own and ms[other] and ms[other] / own for other in RATIOS.values()),
            own and operations / own / 1e6, error, case.reason,
        ), strict=True))  # fmt: skip


def _first_call(one, inputs, expected, device, limit_s, synchronize, clock):
    """(Case to be timed, relative error or None) of a contender; one that takes too long is called no second time."""
    case = costs.Case(one.kernel, one.reason)
    if one.layer is None:
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
    error = ((outputs.cpu().float() - expected).norm() / expected.norm()).item()
    return case, error
