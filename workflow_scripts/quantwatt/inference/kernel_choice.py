"""Which kernel computes a layer on this device, if any does.

A method whose layers have no kernel on the device is simulated: its values are those of the format, its speed, memory
and energy are not, and none of the three is ever reported.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

from quantwatt import registry
from quantwatt.inference.kernels import Kernel

# Of every format of weights, in order of preference: the first that takes a layer computes it.
KERNELS = {
    "cpu": {
        "integer": ["avx2_int8", "onednn_int8", "onednn_convolution", "int4pack", "unpacked"],
        "nf4": ["unpacked", "bitsandbytes_four_bit"],
        "fp4": ["unpacked", "bitsandbytes_four_bit"],
    },
    "cuda": {
        "integer": ["triton_w4a8", "fused_int_mm", "int_mm", "fused_tinygemm", "tinygemm", "unpacked"],
        "nf4": ["bitsandbytes_four_bit", "unpacked"],
        "fp4": ["bitsandbytes_four_bit", "unpacked"],
    },
}


def trials(layer: Mapping[str, Any], device: str) -> Iterator[tuple[Kernel, str | None]]:
    """Try the kernels made for a layer's formats on a device, in order of preference.

    Yields:
        (module, why it does not compute the layer, or None).
    """
    for name in KERNELS[device].get(layer["weights"]["format"], []):
        kernel = registry.load("kernels", name)
        if kernel.refusal(layer, device):
            continue  # made for other formats
        try:
            metadata.version(kernel.PACKAGE)
        except metadata.PackageNotFoundError:
            yield kernel, f"{kernel.PACKAGE} is not installed"
            continue
        from quantwatt.inference import probe  # computes; what is above only reads

        reason = probe.failure(name, layer, device)
        yield kernel, reason and f"{kernel.NAME} {reason}"


def kernel_for(layer: Mapping[str, Any], device: str) -> tuple[Kernel | None, str | None]:
    """(module of the kernel of one layer on a device, or None; why there is none, or None)."""
    refused = []
    for kernel, reason in trials(layer, device):
        if reason is None:
            return kernel, None
        refused.append(reason)
    because = f": {'; '.join(refused)}" if refused else ""
    return None, f"no kernel computes {describe(layer)} on {device}{because}"


def compute_of(layers, device):
    """Whether a checkpoint computes in its formats on a device.

    Args:
        layers: {name: layer} of a checkpoint manifest; empty for the baseline.
    Returns:
        ("real" | "simulated" | "unsupported", {name of a kernel: how many layers it computes} or None, why not or
        None). One layer without a kernel makes the whole simulated. What a library stores only that library computes:
        where it cannot, the checkpoint is unsupported.
    """
    computed, without = Counter(), {}
    for name, layer in layers.items():
        if layer.get("library"):
            from quantwatt.formats.library import library_of  # and torch

            library = library_of(layer["weights"])
            if reason := library.unsupported(device):
                return "unsupported", None, reason
            if reason := library.simulated(device):
                return "simulated", None, reason
            computed[layer["library"]] += 1
            continue
        kernel, reason = kernel_for(layer, device)
        if kernel is None:
            without[name] = reason
        else:
            computed[kernel.NAME] += 1
    if not without:
        return "real", dict(sorted(computed.items())), None
    name, reason = next(iter(without.items()))
    others = f" and {len(without) - 1} more" if len(without) > 1 else ""
    return "simulated", None, f"{reason} (layer {name}{others})"


def describe(layer):
    """A layer's formats in a few words, such as 'integer W8A8 per channel with static asymmetric inputs per tensor'."""
    weights, activations = layer["weights"], layer["activations"]
    words = [weights["format"], f"W{weights['bits']}A{activations['bits'] if activations else 16}"]
    if weights.get("granularity"):
        words.append(f"per {weights['granularity']}")
    if activations:
        kind = "dynamic" if activations["dynamic"] else "static"
        symmetry = "symmetric" if activations["symmetric"] else "asymmetric"
        words.append(f"with {kind} {symmetry} inputs per {activations['granularity']}")
    if "kernel_size" in layer:
        words.append("by convolution")
    return " ".join(words)
