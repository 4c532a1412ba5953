"""What only a GPU computes: every kernel and library against its reference, whole denoisers, solvers and the meter."""

import contextlib
import importlib.util
import itertools
import time

import kernel_cases as cases
import pytest
import torch

from benchmarks.gpu import random_denoiser
from benchmarks.gpu.denoisers import BASELINE, CONFIGURATIONS
from quantwatt import registry
from quantwatt.artifacts.errors import DataError
from quantwatt.config.experiment import complete_method
from quantwatt.formats import convolution
from quantwatt.formats.library import library_of
from quantwatt.formats.quantized_weight import load_format
from quantwatt.inference import kernel_choice, probe
from quantwatt.inference.kernels import tinygemm
from quantwatt.measuring import protocol
from quantwatt.measuring.meters import Metering, open_meter
from quantwatt.quantize.observers import Observers
from quantwatt.quantize.solvers import load_solver

pytestmark = pytest.mark.cuda

LAYER = {"in_features": 1536, "out_features": 1536, "library": None, "parts": []}
SHAPES = {"even": (64, 256), "odd": (37, 129), "wide": (136, 448), "model": (1536, 1536)}
WEIGHTS = {
    "W8": cases.integer(8, True), "W8 asymmetric": cases.integer(8, False), "W4": cases.integer(4, False),
    "W4 group 64": cases.integer(4, False, 64), "W4 group 128": cases.integer(4, True, 128),
    "W3 group 64": cases.integer(3, True, 64), "W2 group 128": cases.integer(2, True, 128),
    "nf4": {"format": "nf4", "bits": 4, "group_size": 64}, "fp4": {"format": "fp4", "bits": 4, "group_size": 64},
    "float8": {"format": "float8", "bits": 8, "element": "e4m3", "granularity": "channel"},
    "mxfp4": {"format": "mxfp4", "bits": 4, "element": "e2m1", "scale_rounding": "up"},
    "nvfp4": {"format": "nvfp4", "bits": 4, "scale_rounding": "nearest"},
}  # fmt: skip
ACTIVATIONS = {"A16": None, "A8": cases.TOKEN, "A8 asymmetric": cases.TOKEN_ASYMMETRIC, "A8 static": cases.STATIC}
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2e-2, torch.float16: 5e-3}  # of the outputs alone
KERNELS = sorted({name for names in kernel_choice.KERNELS["cuda"].values() for name in names})


def takes(kernel, weights, activations, shape):
    """Whether a kernel is for a layer of these formats."""
    rows, columns = shape
    names = kernel_choice.KERNELS["cuda"].get(weights["format"], [])
    layer = {**LAYER, "weights": weights, "activations": activations, "in_features": columns, "out_features": rows}
    return kernel.__name__.rpartition(".")[2] in names and kernel.refusal(layer, "cuda") is None


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_is_the_dequantized_layer_on_every_shape(name):
    kernel, wrong, tried = registry.load("kernels", name), {}, 0
    for (weights, shape), (inputs, activations) in itertools.product(
        itertools.product(WEIGHTS, SHAPES), ACTIVATIONS.items()
    ):
        if not takes(kernel, WEIGHTS[weights], activations, SHAPES[shape]):
            continue
        for dtype in (torch.float32, torch.bfloat16):
            layers = cases.pair(kernel, WEIGHTS[weights], activations, SHAPES[shape], dtype, device="cuda")
            for kind in cases.INPUTS:
                tried += 1
                error = cases.error(layers, kind, dtype)
                if not error <= max(kernel.BOUND, ROUNDING[dtype]):
                    wrong[f"{weights} {inputs}, {shape}, {dtype}, {kind}"] = error
    assert tried and not wrong


@pytest.mark.parametrize("name", KERNELS)
def test_the_probe_finds_no_fault_in_it(name):
    kernel, tried = registry.load("kernels", name), 0
    for weights, activations in itertools.product(WEIGHTS.values(), ACTIVATIONS.values()):
        if takes(kernel, weights, activations, (1536, 1536)):
            assert probe.failure(name, {**LAYER, "weights": weights, "activations": activations}, "cuda") is None
            tried += 1
    assert tried


@pytest.mark.parametrize("name", ["fused_int_mm", "triton_w4a8", "fused_tinygemm"])
def test_a_kernel_inside_a_compiled_module_is_the_same(name):
    kernel = registry.load("kernels", name)
    weights = cases.integer(8, True) if name == "fused_int_mm" else cases.integer(4, False, 64)
    activations = None if name == "fused_tinygemm" else cases.TOKEN
    own, reference = cases.pair(kernel, weights, activations, (256, 512), torch.bfloat16, device="cuda")
    compiled = torch.compile(own, fullgraph=True)
    assert cases.error((compiled, reference), "many", torch.bfloat16) < ROUNDING[torch.bfloat16]


def test_tinygemms_layout_is_that_of_pytorchs_own_packing():
    codes = torch.randint(0, 16, (24, 256), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    half_bytes = codes[:, ::2] << 4 | codes[:, 1::2]
    packed = torch._convert_weight_to_int4pack(half_bytes.cuda(), 8)
    assert torch.equal(packed.cpu(), tinygemm.packed(codes))


LIBRARIES = {
    "LLM.int8(), 6": {"format": "bitsandbytes-int8", "threshold": 6.0},
    "LLM.int8(), 0": {"format": "bitsandbytes-int8", "threshold": 0.0},
    **{f"torchao {name}": {"format": "torchao", "configuration": name, "group_size": 128}
       for name in ("int8-dynamic", "float8-dynamic", "int8-weight-only", "float8-weight-only", "int4-weight-only")},
}  # fmt: skip


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_librarys_layer_is_its_dequantized_weight(name):
    settings = LIBRARIES[name]
    pytest.importorskip("bitsandbytes" if "bitsandbytes" in settings["format"] else "torchao")
    library = library_of(settings)
    if reason := library.unsupported("cuda"):
        pytest.skip(reason)
    torch.manual_seed(0)
    linear = torch.nn.Linear(1024, 512, dtype=torch.bfloat16).requires_grad_(False)
    state, shape = library.state(library.convert(linear, torch.bfloat16)), convolution.describe(linear)
    layer = library.restore(state, shape, linear.bias, torch.bfloat16, "cuda")
    inputs = torch.randn(300, 1024, dtype=torch.bfloat16)
    with torch.no_grad():
        found = layer(inputs.cuda()).float().cpu()
    expected = inputs.float() @ library.dequantize(state, shape).T + linear.bias.float()
    rounding_of_inputs = 0.04 if "float8-dynamic" in name else 0.02
    assert (found - expected).norm() / expected.norm() < rounding_of_inputs


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("name", ["sd35-medium", "flux1-dev"])
def test_a_small_denoiser_is_near_bfloat16s(name, configuration):
    drawn = {}
    for each in (BASELINE, configuration):
        try:
            model, _, _ = random_denoiser.build(name, "tiny", each, "cuda")
        except DataError as refused:
            pytest.skip(str(refused))
        with torch.no_grad():
            drawn[each] = model(**random_denoiser.inputs_of(name, "tiny", model, 2, "cuda"))[0].float()
    float_, own = drawn[BASELINE], drawn[configuration]
    assert (own - float_).norm() / float_.norm() < 0.5  # another model, or noise, is at 1.4


@pytest.mark.parametrize("solver", ["gptq", "qronos"])
def test_a_solver_finds_the_same_weight_as_on_a_cpu(solver):
    method = complete_method({"solver": {"name": solver}, "weights": {"format": "integer", "bits": 4}}, "test", "m")
    chosen, weight_format = load_solver(method["solver"]), load_format(method["weights"])
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(96, 128, generator=generator), torch.randn(512, 128, generator=generator)
    errors = {}
    for device in ("cpu", "cuda"):
        observed = Observers.new(chosen.NEEDS, 128, torch.device(device))
        observed.observe(inputs.to(device), inputs.to(device))
        solved = chosen.solve(weight.to(device), weight_format, observed).weight.dequantize(weight_format).cpu()
        errors[device] = ((solved - weight) @ inputs.T).norm().item()
    assert errors["cuda"] == pytest.approx(errors["cpu"], rel=0.02)  # a tie may be rounded either way


@pytest.mark.skipif(importlib.util.find_spec("pynvml") is None, reason="nvidia-ml-py is not installed")
def test_the_counter_and_the_integral_of_a_load_agree():
    left = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    with contextlib.closing(open_meter(Metering("nvml"), device="cuda")) as meter:
        meter.start()
        time.sleep(2)
        idle = meter.stop()
        block = protocol.measure_block(lambda: left @ left, meter, 6, 1, torch.cuda.synchronize)
    assert idle.fault is None and block.reason is None
    assert block.energy_j / block.seconds > idle.energy_j / 2.5
    assert block.integral_j == pytest.approx(block.energy_j, rel=0.05)
