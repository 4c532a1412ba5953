"""Every kernel against the dequantized layer, and what happens if a kernel is missing or wrong."""

import pytest
import torch

from quantwatt import registry
from quantwatt.artifacts.errors import DataError
from quantwatt.inference import kernel_choice, probe
from quantwatt.inference.kernels import int_mm

INT8 = {"format": "integer", "bits": 8, "granularity": "channel", "group_size": None, "symmetric": True}
TOKEN = {"bits": 8, "granularity": "token", "dynamic": True, "symmetric": True}
LAYER = {"weights": INT8, "activations": TOKEN, "in_features": 64, "out_features": 64, "library": None, "parts": []}


@pytest.fixture(autouse=True)
def tried_anew():
    probe._trial.cache_clear()
    yield
    probe._trial.cache_clear()


def only(monkeypatch, *names):
    monkeypatch.setattr(kernel_choice, "KERNELS", {"cpu": {"integer": list(names)}})


def test_a_kernel_whose_sums_saturate_is_refused(monkeypatch):
    def saturating(codes, weight):
        pairs = codes.unflatten(1, (-1, 2)).float(), weight.T.unflatten(1, (-1, 2)).float()
        sums = torch.einsum("mkp,nkp->mnk", *pairs).clamp(-(2**14), 2**14 - 1)
        return sums.sum(-1).int()

    only(monkeypatch, "int_mm")
    assert kernel_choice.kernel_for(LAYER, "cpu") == (int_mm, None)
    probe._trial.cache_clear()
    monkeypatch.setattr(torch, "_int_mm", saturating)
    kernel, reason = kernel_choice.kernel_for(LAYER, "cpu")
    assert kernel is None
    assert (
        "no kernel computes integer W8A8" in reason and "computes something else: its outputs are off by 0." in reason
    )


def test_a_kernel_that_is_missing_says_so_in_its_own_words(monkeypatch):
    def missing(codes, weight):
        raise RuntimeError("not implemented for this CPU.\nCall stack")

    only(monkeypatch, "int_mm")
    monkeypatch.setattr(torch, "_int_mm", missing)
    reason = kernel_choice.kernel_for(LAYER, "cpu")[1]
    assert reason.endswith("on cpu: torch._int_mm cannot compute it: not implemented for this CPU")


def test_a_package_that_is_missing_is_named(monkeypatch):
    only(monkeypatch, "int_mm")
    monkeypatch.setattr(int_mm, "PACKAGE", "no-such-package")
    assert kernel_choice.kernel_for(LAYER, "cpu")[1].endswith("on cpu: no-such-package is not installed")


@pytest.mark.parametrize(
    "refused",
    [
        AssertionError("Torch not compiled with CUDA enabled"),
        RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might"),
    ],
)
def test_a_device_that_torch_cannot_compute_on_is_no_missing_kernel(monkeypatch, refused):
    """A GPU that a new torch has no code for any more (bnsreenu/digitalsreeni-image-annotator#57), too."""

    def ones(size, device):
        raise refused

    probe.check_device.cache_clear()
    monkeypatch.setattr(torch, "ones", ones)
    with pytest.raises(DataError, match=f"device: cuda: .*cannot compute there \\({str(refused)[:30]}.*device: cpu"):
        kernel_choice.compute_of({"linear": LAYER}, "cuda")


def test_layers_are_counted_by_kernel_and_the_first_without_one_is_named(monkeypatch):
    monkeypatch.setattr(kernel_choice, "KERNELS", {"cpu": {"integer": ["int_mm"], "nf4": ["bitsandbytes_four_bit"]}})
    nf4 = LAYER | {"weights": {"format": "nf4", "bits": 4, "group_size": 64, "clip_search": False}, "activations": None}
    layers = {"q": LAYER, "k": LAYER, "mlp": nf4}
    computed = {"bitsandbytes matmul_4bit": 1, "torch._int_mm": 2}
    assert kernel_choice.compute_of(layers, "cpu") == ("real", computed, None)
    without = {"v": LAYER | {"activations": None}, "o": LAYER | {"activations": None}}
    said = "no kernel computes integer W8A16 per channel on cpu (layer v and 1 more)"
    assert kernel_choice.compute_of(layers | without, "cpu") == ("simulated", None, said)


@pytest.mark.parametrize("device", kernel_choice.KERNELS)
def test_every_kernel_is_described(device):
    for names in kernel_choice.KERNELS[device].values():
        for name in names:
            kernel = registry.load("kernels", name)
            assert kernel.NAME and kernel.PACKAGE and 0 < kernel.BOUND < 0.1
