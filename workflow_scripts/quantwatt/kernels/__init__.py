"""Layers that compute in a format, and which of them this device has.

A method whose layers have no kernel on the device is simulated: its values are those of the format, its speed, memory
and energy are not, and none of the three is ever reported.

A kernel is a module with

    NAME       what computes
    PACKAGE    that provides it
    BOUND      largest norm of the difference between its outputs and the dequantized layer's, relative to the latter
    refusal(layer, device) -> why it cannot take a layer, half a sentence, or None
    Layer      subclass of quantwatt.linear.QuantizedLinear

where a layer is {"weights", "activations", "in_features", "out_features", "parts"} of a checkpoint's manifest, of a
convolution also its geometry. What a kernel takes by its own word it must still prove (quantwatt.probe).
"""

from importlib import metadata

from quantwatt import registry
from quantwatt.manifest import DataError

FOUR_BIT = {"nf4": ["bitsandbytes_four_bit", "unpacked"], "fp4": ["bitsandbytes_four_bit", "unpacked"]}
# Of every format of weights, in order of preference: the first that takes a layer computes it.
KERNELS = {
    "cpu": {"integer": ["avx2_int8", "onednn_int8", "onednn_convolution", "int4pack", "unpacked"], **FOUR_BIT},
    "cuda": {"integer": ["int_mm", "unpacked"], **FOUR_BIT},
}


class Unsupported(DataError):
    """This device or installation cannot compute what a checkpoint holds; the message says why."""


def kernel_for(layer, device):
    """(module of the kernel of one layer on a device, or None; why there is none, or None)."""
    refused = []
    for name in KERNELS[device].get(layer["weights"]["format"], []):
        kernel = registry.load("kernels", name)
        if kernel.refusal(layer, device):
            continue  # made for other formats
        try:
            metadata.version(kernel.PACKAGE)
        except metadata.PackageNotFoundError:
            refused.append(f"{kernel.PACKAGE} is not installed")
            continue
        from quantwatt import probe  # computes; what is above only reads

        if reason := probe.failure(name, layer, device):
            refused.append(f"{kernel.NAME} {reason}")
            continue
        return kernel, None
    because = f": {'; '.join(refused)}" if refused else ""
    return None, f"no kernel computes {describe(layer)} on {device}{because}"


def compute_of(layers, device):
    """Whether a checkpoint computes in its formats on a device.

    Args:
        layers: {name: layer} of a checkpoint manifest; empty for the baseline.
    Returns:
        ("real" | "simulated" | "unsupported", names of the kernels or None, why not or None). What a library stores
        only that library computes: where it cannot, the checkpoint is unsupported.
    """
    names = set()
    for name, layer in layers.items():
        if layer.get("library"):
            module = registry.load("formats", layer["weights"]["format"])
            if reason := module.unsupported(layer["weights"], device):
                return "unsupported", None, reason
            if reason := hasattr(module, "simulated") and module.simulated(layer["weights"], device):
                return "simulated", None, reason
            names.add(layer["library"])
            continue
        kernel, reason = kernel_for(layer, device)
        if kernel is None:
            return "simulated", None, f"{reason} (layer {name})"
        names.add(kernel.NAME)
    return "real", ", ".join(sorted(names)) or "torch linear", None


def describe(layer):
    """A layer's formats in a few words, such as 'integer W8A8 per channel with static asymmetric inputs per tensor'."""
    weights, activations = layer["weights"], layer["activations"]
    words = [weights["format"], f"W{weights.get('bits', 4)}A{activations['bits'] if activations else 16}"]
    if weights.get("granularity"):
        words.append(f"per {weights['granularity']}")
    if activations:
        kind = "dynamic" if activations["dynamic"] else "static"
        symmetry = "symmetric" if activations["symmetric"] else "asymmetric"
        words.append(f"with {kind} {symmetry} inputs per {activations['granularity']}")
    if "kernel_size" in layer:
        words.append("by convolution")
    return " ".join(words)
