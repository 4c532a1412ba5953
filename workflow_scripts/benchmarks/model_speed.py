"""The width from which on W8A8 is faster: transformer blocks as in Stable Diffusion 3, with random weights.

Whole blocks are timed, because attention, normalization and the quantization of activations do not get faster, and
their share of the time grows as blocks get narrower.
"""

import copy
import time

import numpy as np
import torch

from benchmarks import peers
from benchmarks.layer_speed import FORMATS, own_words
from quantwatt import intervals
from quantwatt.allocate import layer_costs
from quantwatt.artifacts import manifest
from quantwatt.jobs import torchvision_ops  # noqa: F401  (before diffusers)
from quantwatt.measuring import instruments
from quantwatt.measuring.meters import Metering, open_meter

WIDTHS = (128, 256, 512, 1024, 1536)
TOKENS = {64: 78, 1024: 333}  # image tokens: text tokens, of the embedded model and of 3.5 Medium at 512 pixels
HEAD = 64  # width of an attention head
QUANTIZED = "W8A8"
COLUMNS = (
    *("part", "device", "configuration", "kernel", "dtype", "width", "tokens", "pairs", "ms"),
    *("ratio_to_bf16", "ratio_to_bf16_low", "ratio_to_bf16_high"),
    *("ratio_to_fp32", "ratio_to_fp32_low", "ratio_to_fp32_high", "reason"),
)


def rows_of(part, device, width, tokens, found):
    """Rows with the keys COLUMNS, for configurations that were timed alternately.

    Args:
        found: {configuration: (kernel, dtype, seconds, reason)}; seconds: a list with one array [n] for each turn or
            fresh process, empty where nothing was timed.
    """
    for name, (kernel, dtype, groups, reason) in found.items():
        row = {"part": part, "device": device, "configuration": name, "kernel": kernel, "dtype": dtype, "width": width,
               "tokens": tokens, "pairs": len(groups), "ms": None}  # fmt: skip
        if groups:
            row["ms"] = 1000 * float(np.mean([np.median(group) for group in groups]))
        for key, baseline in (("ratio_to_bf16", peers.BFLOAT16), ("ratio_to_fp32", peers.FLOAT32)):
            ratio = [None] * 3
            if groups and found[baseline][2]:
                ratio = map(manifest.finite, intervals.ratio_of_turns(found[baseline][2], groups, np.median))
            row |= dict(zip((key, f"{key}_low", f"{key}_high"), ratio, strict=True))
        yield row | {"reason": reason}


def block(width):
    """A transformer block over image and text tokens, in float32 on the CPU."""
    from diffusers.models.attention import JointTransformerBlock

    torch.manual_seed(0)
    return JointTransformerBlock(width, max(1, width // HEAD), min(HEAD, width), qk_norm="rms_norm").eval()


def block_inputs(width, tokens, text_tokens):
    """Inputs of a block with guidance, which doubles the batch to two."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"hidden_states": (2, tokens, width), "encoder_hidden_states": (2, text_tokens, width), "temb": (2, width)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@torch.no_grad()
def quantize(model, run, device, formats=FORMATS[QUANTIZED]):
    """Replace the linear layers of a model by quantized layers of kernels, in place.

    Args:
        run: function that calls the model once, to record the shapes of its layers' inputs.
    Returns:
        names of the kernels.
    Raises:
        LookupError: the device has no kernel for a layer.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    shapes, kernels = layer_costs.input_shapes(model, names, run), set()
    for name, shape in shapes.items():
        layer = model.get_submodule(name)
        weights, activations = formats
        built, kernel, reason = layer_costs.build(
            layer, torch.zeros(shape), {"weights": weights, "activations": activations}, device
        )
        if built is None:
            raise LookupError(f"{reason} (layer {name})")
        model.set_submodule(name, built)
        kernels.add(kernel)
    return ", ".join(sorted(kernels))


@torch.no_grad()
def widths(device, dtype, chosen, rounds, turn_s, tokens=None, clock=time.perf_counter):
    """Rows with the keys COLUMNS, for blocks; pairs are rounds, in which the configurations alternate."""
    for width in chosen:
        model = block(width)
        for count, text_tokens in (tokens or TOKENS).items():
            inputs = block_inputs(width, count, text_tokens)
            cases = {}
            types = {peers.FLOAT32: torch.float32, peers.BFLOAT16: torch.bfloat16, QUANTIZED: dtype}
            for name, used in types.items():
                cases[name] = used, _case(model, inputs, used, device, name == QUANTIZED)
            settings = {"rounds": rounds, "seconds": turn_s, "blocks": 0}
            synchronize = instruments.synchronize_of(device)
            layer_costs.measure(
                [case for _, case in cases.values()], settings, open_meter(Metering()), synchronize, 0.0, clock
            )
            timed = {
                name: (case.kernel, str(used).removeprefix("torch."), [[s] for s in case.seconds], case.reason)
                for name, (used, case) in cases.items()
            }
            yield from rows_of("block", device, width, count, timed)


def _case(model, inputs, dtype, device, quantized):
    copied = copy.deepcopy(model).to(device, dtype)
    typed = {name: tensor.to(device, dtype) for name, tensor in inputs.items()}
    kernel = "torch linear"
    if quantized:
        try:
            kernel = quantize(copied, lambda: copied(**typed), device)
        except LookupError as missing:
            return layer_costs.Case(None, own_words(missing))
    return layer_costs.Case(kernel, None, lambda: copied(**typed))


def pays_from(rows, key="ratio_to_bf16"):
    """The smallest width from which on a W8A8 block is faster, by the low ends of the intervals; None if it never is.

    Args:
        rows: rows of one number of tokens.
    """
    least = None
    for row in sorted((r for r in rows if r["configuration"] == QUANTIZED), key=lambda r: -r["width"]):
        if row[f"{key}_low"] is None or row[f"{key}_low"] <= 1:
            break
        least = row["width"]
    return least
