"""Linear layers that compute in a format, and the simulated one that does not.

A method whose layers have no kernel on the device is simulated: its values are those of the format, its speed, memory
and energy are not, and none of the three is ever reported.
"""

from dataclasses import dataclass
from importlib import util

from quantwatt import registry
from quantwatt.manifest import DataError


class Unsupported(DataError):
    """This device or installation cannot compute what a checkpoint holds; the message says why."""


@dataclass(frozen=True)
class Kernel:
    """name: what computes; layer: name of the class in quantwatt.linear; devices: where it runs."""

    name: str
    layer: str
    requires: str | None  # a package beside torch
    devices: tuple

    def accepts(self, layer, device):
        if "kernel_size" in layer:  # no library at hand convolves in a format
            return False
        return device in self.devices and ACCEPTS[self.layer](layer, layer["weights"], layer["activations"], device)


def _int8(layer, weights, activations, device):
    if device == "cuda" and (layer["in_features"] % 8 or layer["out_features"] % 8):
        return False
    return (
        weights["format"] == "integer"
        and (weights["bits"], weights["granularity"], weights["symmetric"]) == (8, "channel", True)
        and activations is not None
        and (activations["bits"], activations["symmetric"]) == (8, True)
    )


def _four_bit(layer, weights, activations, device):
    return (
        weights["format"] in ("nf4", "fp4")
        and activations is None
        and layer["in_features"] % weights["block"] == 0
        and "group_index" not in layer["parts"]  # the kernel's blocks are consecutive columns
    )


ACCEPTS = {"Int8Linear": _int8, "FourBitLinear": _four_bit}

KERNELS = (
    Kernel("torch._int_mm", "Int8Linear", None, ("cpu", "cuda")),
    Kernel("bitsandbytes matmul_4bit", "FourBitLinear", "bitsandbytes", ("cpu", "cuda")),
)


def kernel_for(layer, device):
    """The kernel of one layer on a device, or None.

    Args:
        layer: {"weights", "activations", "in_features", "out_features"} of a checkpoint manifest.
        device: "cpu" or "cuda".
    """
    for kernel in KERNELS:
        if kernel.accepts(layer, device):
            if kernel.requires is None or util.find_spec(kernel.requires):
                return kernel
    return None


def compute_of(layers, device):
    """Whether a checkpoint computes in its formats on a device.

    Args:
        layers: {name: layer} of a checkpoint manifest; empty for the baseline.
    Returns:
        ("real" | "simulated" | "unsupported", names of the kernels or None, why not or None). What a library stores
        only that library computes: where it cannot, the checkpoint is unsupported.
    """
    kernels = set()
    for name, layer in layers.items():
        if layer.get("library"):
            module = registry.load("formats", layer["weights"]["format"])
            if reason := module.unsupported(layer["weights"], device):
                return "unsupported", None, reason
            if reason := hasattr(module, "simulated") and module.simulated(layer["weights"], device):
                return "simulated", None, reason
            kernels.add(layer["library"])
        elif kernel := kernel_for(layer, device):
            kernels.add(kernel.name)
        else:
            return "simulated", None, f"no kernel computes {describe(layer)} on {device} (layer {name})"
    return "real", ", ".join(sorted(kernels)) or "torch linear", None


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
    return " ".join(words)
