"""Choose the kernel that computes a layer on this device.

If a layer has no kernel on the device, the method is simulated (fake-quantized): it computes the format's values, but
its speed, memory and energy are not those of the format and are never reported.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

from quantwatt import registry
from quantwatt.artifacts import layer_variants
from quantwatt.inference.kernels import Kernel

GGUF = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl")
FLOATS = ("float8", "mxfp8", "mxfp6", "mxfp4", "nvfp4")
# Kernels of each weight format, in order of preference: the first kernel that accepts a layer computes it.
KERNELS = {
    "cpu": {
        "integer": ["int8_in_c", "onednn_int8", "onednn_convolution", "unpacked"],
        "nf4": ["unpacked", "bitsandbytes_four_bit"],
        "fp4": ["unpacked", "bitsandbytes_four_bit"],
        **{name: ["unpacked"] for name in FLOATS + GGUF},
    },
    "cuda": {
        "integer": ["triton_w4a8", "fused_int_mm", "int_mm", "fused_tinygemm", "tinygemm", "unpacked"],
        "nf4": ["bitsandbytes_four_bit", "unpacked"],
        "fp4": ["bitsandbytes_four_bit", "unpacked"],
        **{name: ["scaled_mm", "unpacked"] for name in FLOATS},
    },
}


def trials(layer: Mapping[str, Any], device: str) -> Iterator[tuple[Kernel, str | None]]:
    """Try the kernels for a layer's formats on a device, in order of preference.

    Yields:
        (module of the kernel, why it cannot compute the layer or None).
    """
    if (layer["activations"] or {}).get("format", layer["weights"]["format"]) != layer["weights"]["format"]:
        return  # inputs as floats: kernels take them with weights of the same format
    for name in KERNELS[device].get(layer["weights"]["format"], []):
        kernel: Any = registry.load("kernels", name)
        if kernel.refusal(layer, device):
            continue  # the kernel is for other formats
        try:
            metadata.distribution(kernel.PACKAGE)  # does not parse its metadata, unlike version()
        except metadata.PackageNotFoundError:
            yield kernel, f"{kernel.PACKAGE} is not installed"
            continue
        from quantwatt.inference import probe  # imported late: it computes on the device

        reason = probe.failure(name, layer, device)
        yield kernel, reason and f"{kernel.NAME} {reason}"


def kernel_for(layer: Mapping[str, Any], device: str) -> tuple[Kernel | None, str | None]:
    """Return (module of the kernel for one layer on a device, None), or (None, why there is no kernel)."""
    reasons = []
    for kernel, reason in trials(layer, device):
        if reason is None:
            return kernel, None
        reasons.append(reason)
    because = f": {'; '.join(reasons)}" if reasons else ""
    return None, f"no kernel computes {describe(layer)} on {device}{because}"


def compute_of(layers: Mapping[str, Mapping[str, Any]], device: str) -> tuple[str, dict[str, int] | None, str | None]:
    """Decide whether a checkpoint computes in its formats on a device.

    Args:
        layers: {name: layer} of a checkpoint manifest; empty for the baseline.
    Returns:
        ("real" | "simulated" | "unsupported", {kernel name: number of layers it computes} or None, why it is not real
        or None). A layer with other formats in other steps counts once for each. One layer without a kernel makes the
        whole checkpoint simulated. Layers that a library stores can only be computed by that library: if it cannot, the
        checkpoint is unsupported.
    """
    computed, without = Counter(), {}
    for name, layer in layer_variants.flat(layers):
        if layer.get("library"):
            from quantwatt.formats.library import library_of  # imports torch

            library = library_of(layer["weights"])
            if reason := library.unsupported(device):  # ty: ignore[missing-union-attribute]
                return "unsupported", None, reason
            if reason := library.simulated(device):  # ty: ignore[missing-union-attribute]
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


def describe(layer: Mapping[str, Any]) -> str:
    """Describe a layer's formats: 'integer W8A8 per channel with static asymmetric inputs per tensor', for example."""
    weights, activations = layer["weights"], layer["activations"]
    words = [weights["format"], f"W{weights['bits']}A{activations['bits'] if activations else 16}"]
    if weights.get("granularity"):
        words.append(f"per {weights['granularity']}")
    if activations:
        words += ["with", "dynamic" if activations["dynamic"] else "static"]
        if "format" in activations:
            words += [activations["format"], "inputs"]
        else:
            words += ["symmetric" if activations["symmetric"] else "asymmetric", "inputs"]
        if activations.get("granularity"):
            words.append(f"per {activations['granularity']}")
    if "kernel_size" in layer:
        words.append("by convolution")
    return " ".join(words)
