"""Denoisers of random weights: the released sizes, on this device, and on a GPU that is not there."""

import pytest
import torch

from benchmarks import gpu_tables
from benchmarks.gpu import random_denoiser
from benchmarks.gpu.denoisers import AGAIN, BASELINE, DENOISERS
from quantwatt import registry
from quantwatt.artifacts.errors import Unsupported
from quantwatt.inference import kernel_choice
from quantwatt.inference.linear import QuantizedLinear


@pytest.mark.parametrize("name", DENOISERS)
def test_a_denoiser_has_as_many_parameters_as_the_released_one(name):
    model = random_denoiser.skeleton(name, "true", "meta")
    assert sum(each.numel() for each in model.parameters()) / 1e9 == pytest.approx(DENOISERS[name].parameters, abs=0.01)
    assert DENOISERS[name].published is None or gpu_tables.published(name)


@pytest.mark.parametrize("name", DENOISERS)
def test_a_small_denoiser_of_each_kind_draws_what_bfloat16_draws(name):
    drawn = {}
    for configuration in (BASELINE, "int8 dynamic", AGAIN):
        model, kernel, blocks = random_denoiser.build(name, "tiny", configuration, "cpu")
        assert blocks and not any(each.is_meta for each in (*model.parameters(), *model.buffers()) if each.numel())
        with torch.no_grad():
            output = model(**random_denoiser.inputs_of(name, "tiny", model, 1, "cpu"))[0]
        drawn[configuration] = torch.stack(output) if isinstance(output, list) else output
    assert torch.equal(drawn[BASELINE], drawn[AGAIN]) and kernel == "torch linear"
    difference = (drawn["int8 dynamic"] - drawn[BASELINE]).float().norm() / drawn[BASELINE].float().norm()
    assert 0 < difference < 0.5  # random weights pass errors on; noise would be at 1.4


def test_layers_of_one_shape_have_memory_of_their_own():
    model, _, _ = random_denoiser.build("flux1-dev", "tiny", "W4A8", "cpu")
    layers = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    pointers = [buffer.data_ptr() for layer in layers for name, buffer in layer.named_buffers() if buffer.numel()]
    assert len(layers) > 10 and len(pointers) == len(set(pointers))


def test_a_format_that_the_device_cannot_compute_is_refused_with_the_reason():
    with pytest.raises(Unsupported, match="cannot compute float8-dynamic on cpu|requires CUDA"):
        random_denoiser.build("sd35-medium", "tiny", "float8 rows (torchao)", "cpu")


KERNELS = {"int8 dynamic": "fused_int_mm", "W4A16 group 128": "fused_tinygemm", "nf4": "bitsandbytes_four_bit",
           "W4A8": "triton_w4a8"}  # fmt: skip


@pytest.mark.skipif(torch.version.cuda is None, reason="PyTorch's builds for CPUs have no CUDA device to feign")
@pytest.mark.parametrize("size", ["tiny", pytest.param("true", marks=pytest.mark.slow)])
@pytest.mark.parametrize("configuration", [BASELINE, *KERNELS])
@pytest.mark.parametrize("name", DENOISERS)
def test_a_denoiser_is_traced_on_a_gpu_that_is_not_there(name, configuration, size, monkeypatch):
    """Shapes, types and devices of the CUDA branches, with tensors that have no values."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    def kernel_for(layer, device):
        kernel = registry.load("kernels", KERNELS[configuration])
        return (registry.load("kernels", "unpacked") if kernel.refusal(layer, device) else kernel), None

    bare = random_denoiser.skeleton(name, size, "meta")
    monkeypatch.setattr(kernel_choice, "kernel_for", kernel_for)
    monkeypatch.setattr(random_denoiser, "skeleton", lambda *_: bare)
    monkeypatch.setattr(random_denoiser.copy, "deepcopy", lambda layer: layer)  # a feigned tensor has no memory
    monkeypatch.setattr(QuantizedLinear, "to", lambda self, *_: self)
    torch.compiler.set_stance("force_eager")
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            for module in bare.modules():
                for key, buffer in module._buffers.items():
                    module._buffers[key] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
            model, _, _ = random_denoiser.build(name, size, configuration, "cuda")
            output = model(**random_denoiser.inputs_of(name, size, model, 1, "cuda"))[0]
    finally:
        torch.compiler.set_stance("default")
    output = output[0] if isinstance(output, list) else output
    assert output.device.type == "cuda" and output.dtype == torch.bfloat16
