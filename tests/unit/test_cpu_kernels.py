"""CPU kernels against the dequantized layer: every supported format, and edge-case shapes."""

import copy
import os
import pickle
import subprocess
from pathlib import Path

import preloaded
import pytest
import torch

from quantwatt.formats.activations import ActivationFormat
from quantwatt.formats.convolution import Convolution
from quantwatt.formats.quantized_weight import load_format, quantize_to_nearest
from quantwatt.inference import fused, int8, kernel_choice, linear, packed
from quantwatt.inference.kernels import int8_in_c, onednn_convolution, onednn_int8, unpacked

SCRIPTS = Path(__file__).parents[2] / "workflow_scripts"
# Norm of the error relative to that of the outputs: sums in another order, and rounded to bfloat16 in other places.
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}
DTYPES = [torch.float32, torch.bfloat16]


def integer(bits, granularity="channel", group_size=None, symmetric=True, **more):
    sizes = {"bits": bits, "granularity": granularity, "group_size": group_size}
    return {"format": "integer", **sizes, "symmetric": symmetric, **more}


def inputs_of(bits, granularity="token", dynamic=True, symmetric=True):
    return {"bits": bits, "granularity": granularity, "dynamic": dynamic, "symmetric": symmetric}


INTEGERS = {
    "w8": integer(8),
    "w8-wide-per-tensor": integer(8, "tensor", narrow=False),
    "w4-asymmetric": integer(4, symmetric=False),
    "w3": integer(3),
    "w2-asymmetric": integer(2, symmetric=False),
}
INPUTS = {
    "token": inputs_of(8),
    "token-asymmetric": inputs_of(8, symmetric=False),
    "tensor-asymmetric": inputs_of(8, "tensor", symmetric=False),
    "static": inputs_of(8, "tensor", dynamic=False),
    "static-asymmetric": inputs_of(8, "tensor", dynamic=False, symmetric=False),
    "a4": inputs_of(4),
}
WEIGHT_ONLY = {
    "w8": integer(8),
    "w8-asymmetric": integer(8, symmetric=False),
    "w4": integer(4),
    "w4-groups": integer(4, "group", 64, symmetric=False),
    "w4-float-zero": integer(4, "group", 128, symmetric=False, zero_point="float"),
    "w3-tensor": integer(3, "tensor", symmetric=False),
    "w2-odd-groups": integer(2, "group", 7),
    "w2-groups": integer(2, "group", 32, symmetric=False),
    "w8-groups": integer(8, "group", 8, symmetric=False),
    "nf4": {"format": "nf4", "bits": 4, "group_size": 64},
    "fp4": {"format": "fp4", "bits": 4, "group_size": 48},
    "mxfp8": {"format": "mxfp8", "element": "e5m2", "scale_rounding": "up"},
    "mxfp6": {"format": "mxfp6", "element": "e2m3", "scale_rounding": "even"},
    "mxfp4": {"format": "mxfp4", "element": "e2m1", "scale_rounding": "floor"},
    "nvfp4": {"format": "nvfp4", "scale_rounding": "nearest"},
    "float8": {"format": "float8", "element": "e4m3", "granularity": "channel"},
    "float8-blocks": {"format": "float8", "element": "e4m3", "granularity": "block"},
}


NEEDS_C = pytest.mark.skipif(not int8.paths(), reason="no C compiler, or no AVX2")
INT8 = [onednn_int8, pytest.param(int8_in_c, marks=NEEDS_C)]


@pytest.fixture(params=["compiled", "eager"])
def passes(request, monkeypatch):
    """What goes around the products: in C, and as PyTorch has it where nothing compiles C."""
    if request.param == "eager":
        monkeypatch.setattr(fused, "library", lambda: None)
    elif fused.library() is None:
        pytest.skip("no C compiler")


def both(kernel, weights, activations, weight, inputs, bias, geometry=None):
    """(the kernel's outputs, the dequantized layer's)."""
    weight_format = load_format(weights)
    quantized = quantize_to_nearest(weight, weight_format)
    if activations and not activations["dynamic"]:
        activation_format = ActivationFormat.from_settings(activations)
        grid = activation_format.grid(inputs.float().amin() / 2, inputs.float().amax() / 2)  # so that some are clipped
        quantized.activation_scale, quantized.activation_zero = (part.reshape(1) for part in grid)
    arguments = (quantized, weight_format, activations, bias, inputs.dtype, geometry)
    with torch.no_grad():
        return kernel.Layer.build(*arguments)(inputs), linear.SimulatedLinear.build(*arguments)(inputs)


def agree(found, expected):
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    error = (found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30)
    return error <= BOUNDS[found.dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activations", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("weights", INTEGERS.values(), ids=INTEGERS)
def test_int8_product_agrees_with_the_dequantized_layer(passes, weights, activations, dtype):
    torch.manual_seed(0)
    inputs = torch.randn(2, 19, 83, dtype=dtype) + 0.7
    assert agree(*both(onednn_int8, weights, activations, torch.randn(37, 83), inputs, torch.randn(37)))


@pytest.fixture(params=int8.PATHS)
def path(request, monkeypatch):
    """The C product computes by one path, which is skipped where this CPU does not run it."""
    number = int8.PATHS.index(request.param)
    if number not in int8.paths():
        pytest.skip(f"this CPU has no {request.param}")
    monkeypatch.setattr(int8, "paths", lambda: (number,))
    monkeypatch.setattr(int8_in_c.kernel_times, "is_faster", lambda *_: False)


GROUPED = {
    "w4-groups": integer(4, "group", 32),
    "w4-groups-asymmetric": integer(4, "group", 24, symmetric=False),
    "w8-groups": integer(8, "group", 64),
    "w2-groups": integer(2, "group", 16, symmetric=False),
    "w6-groups": integer(6, "group", 40, symmetric=False),
}
SHAPES = [(29, 83, 37), (1, 64, 200), (24, 128, 16), (50, 7, 1), (13, 200, 64), (7, 33, 131)]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activations", INPUTS.values(), ids=INPUTS)
def test_c_product_agrees_with_the_dequantized_layer(path, monkeypatch, activations, shape, threads):
    torch.manual_seed(0)
    monkeypatch.setattr(int8, "PER_THREAD", 1000)
    tokens, columns, rows = shape
    torch.set_num_threads(threads)
    for dtype in (*DTYPES, torch.float16):
        inputs = torch.randn(tokens, columns, dtype=dtype) + 0.7
        for weights in (INTEGERS | GROUPED).values():
            weight = torch.randn(rows, columns)
            assert agree(*both(int8_in_c, weights, activations, weight, inputs, torch.randn(rows)))


def test_many_tokens_are_shared_by_threads(path, monkeypatch):
    torch.manual_seed(0)
    inputs, weight = torch.randn(1000, 520), torch.randn(300, 520)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        for weights in (integer(8), integer(4, "group", 104)):
            assert agree(*both(int8_in_c, weights, inputs_of(8), weight, inputs, torch.randn(300)))


@NEEDS_C
def test_groups_of_any_columns_are_put_next_to_each_other():
    weight_format = load_format(integer(4, "group", 16))
    order = torch.randperm(64)
    quantized = quantize_to_nearest(torch.randn(20, 64), weight_format)
    quantized.group_index = (torch.arange(64) // 16)[order].int()
    arguments = (quantized, weight_format, inputs_of(8), None, torch.float32)
    inputs = torch.randn(9, 64)
    assert agree(int8_in_c.Layer.build(*arguments)(inputs), linear.SimulatedLinear.build(*arguments)(inputs))


def layer_of(weights=None, activations=None, columns=64, rows=48, dtype=torch.float32, seed=0):
    """A layer of random weights that C computes."""
    generator = torch.Generator().manual_seed(seed)
    weight_format = load_format(weights or integer(8))
    quantized = quantize_to_nearest(torch.randn(rows, columns, generator=generator), weight_format)
    if activations and not activations["dynamic"]:
        quantized.activation_scale, quantized.activation_zero = torch.tensor([0.02]), torch.zeros(1)
    return int8_in_c.Layer.build(quantized, weight_format, activations or inputs_of(8), None, dtype)


@pytest.fixture
def quantized_again(monkeypatch):
    """Whether each product since then quantized its inputs."""
    done, call = [], int8.Kept.holds
    monkeypatch.setattr(int8.Kept, "holds", lambda *arguments: done.append(not call(*arguments)) or not done[-1])
    monkeypatch.setattr(int8_in_c.kernel_times, "is_faster", lambda *_: False)
    int8.KEPT.forget()
    return done


@NEEDS_C
def test_inputs_of_several_layers_are_quantized_once(quantized_again):
    layers = [layer_of(seed=seed) for seed in range(3)]
    inputs = torch.randn(2, 5, 64)
    alone = [layer(inputs.clone()) for layer in layers]
    quantized_again.clear()
    assert all(map(torch.equal, (layer(inputs) for layer in layers), alone))
    assert quantized_again == [True, False, False]
    layer_of(activations=inputs_of(8, symmetric=False))(inputs)
    layer_of(activations=inputs_of(8, "tensor", dynamic=False))(inputs)
    layers[0](inputs)
    assert quantized_again[3:] == [True, True, True]  # other formats


@NEEDS_C
def test_inputs_that_change_are_quantized_again(quantized_again):
    layer, inputs = layer_of(), torch.randn(5, 64)
    first = layer(inputs)
    inputs.mul_(2)
    assert torch.allclose(layer(inputs), 2 * first) and quantized_again == [True, True]
    with torch.inference_mode():
        inputs = torch.randn(5, 64)
        first = layer(inputs)
        inputs.mul_(2)
        assert torch.allclose(layer(inputs), 2 * first)
    del inputs
    layer(torch.randn(5, 64))
    assert all(quantized_again)


@NEEDS_C
def test_a_copy_of_a_layer_computes_after_the_original_is_gone():
    layer, inputs = layer_of(), torch.randn(5, 64)
    expected = layer(inputs)
    copied, restored = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
    other = layer_of(seed=1)
    del layer
    for again in (copied, restored, copied.to(torch.device("cpu"))):
        assert torch.equal(again(inputs), expected)
    assert not torch.equal(other(inputs), expected)


@NEEDS_C
@pytest.mark.parametrize(
    "activations", [inputs_of(8), inputs_of(8, "tensor", dynamic=False)], ids=["dynamic", "static"]
)
@pytest.mark.parametrize("weights", [integer(8), integer(4, "group", 32, symmetric=False)], ids=["w8", "w4-groups"])
def test_torch_compile_has_the_product_as_one_operator(weights, activations):
    layer, inputs, graphs = layer_of(weights, activations), torch.randn(2, 5, 64), []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    assert torch.equal(torch.compile(layer, backend=backend, fullgraph=True)(inputs), layer(inputs))
    [graph] = graphs
    assert [str(node.target) for node in graph.graph.nodes if node.op == "call_function"] == ["quantwatt.int8_linear"]
    assert torch.equal(torch.compile(layer, backend="aot_eager", fullgraph=True)(inputs), layer(inputs))


@NEEDS_C
@pytest.mark.skipif(onednn_int8.saturates(), reason="oneDNN's product of bytes is not exact on this CPU")
def test_onednn_computes_where_it_is_faster(monkeypatch):
    asked = []
    monkeypatch.setattr(int8_in_c.kernel_times, "is_faster", lambda *shape: asked.append(shape) or shape[2] > 16)
    for weights in INTEGERS.values():
        for activations in INPUTS.values():
            if activations["dynamic"]:
                layer, inputs = layer_of(weights, activations), torch.randn(70, 64)
                few = layer(inputs[:4])
                assert layer.reordered is None
                assert torch.allclose(layer(inputs)[:4], few, atol=1e-4) or activations["granularity"] == "tensor"
                assert layer.reordered is not None
    assert set(asked) == {(64, 48, 4, torch.get_num_threads()), (64, 48, 64, torch.get_num_threads())}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weights", WEIGHT_ONLY.values(), ids=WEIGHT_ONLY)
def test_unpacked_weight_is_the_dequantized_one_bit_for_bit(passes, weights, dtype):
    inputs = torch.randn(3, unpacked.FEW, 131, dtype=dtype)
    found, expected = both(unpacked, weights, None, torch.randn(29, 131), inputs, torch.randn(29))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("kernel", "weights", "activations"),
    [
        (unpacked, WEIGHT_ONLY["w4-groups"], None),
        (unpacked, WEIGHT_ONLY["nf4"], None),
        (unpacked, WEIGHT_ONLY["mxfp4"], None),
        (unpacked, WEIGHT_ONLY["nvfp4"], None),
        (onednn_int8, integer(8), inputs_of(8)),
    ],
)
def test_a_compiled_layer_computes_the_same(kernel, weights, activations):
    torch.manual_seed(0)
    weight, bias, weight_format = torch.randn(16, 64), torch.randn(16), load_format(weights)
    quantized = quantize_to_nearest(weight, weight_format)
    layer = kernel.Layer.build(quantized, weight_format, activations, bias, torch.float32)
    with torch.no_grad():
        for tokens in (unpacked.FEW + 9, 2):
            inputs = torch.randn(tokens, 64)
            assert torch.allclose(torch.compile(layer, backend="aot_eager")(inputs), layer(inputs), atol=1e-4)


def test_a_large_weight_is_unpacked_in_parts(passes, monkeypatch):
    monkeypatch.setattr(unpacked, "PART", 4 * 131 + 7)  # four rows
    inputs, made = torch.randn(unpacked.FEW + 1, 131), []
    for kind, name in ((packed.PackedWeight, "unpacked"), (unpacked.Layer, "_unpacked")):
        unpack = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda *arguments, unpack=unpack: made.append(unpack(*arguments)) or made[-1])
    for bias in (torch.randn(29), None):
        found, expected = both(unpacked, WEIGHT_ONLY["w4-groups"], None, torch.randn(29, 131), inputs, bias)
        assert agree(found, expected)
    assert [len(weight) for weight in made] == 2 * [4, 4, 4, 4, 4, 4, 4, 1]


TAKEN = [
    (onednn_int8, integer(8), inputs_of(8, symmetric=False)),
    pytest.param(int8_in_c, integer(8), inputs_of(8, symmetric=False), marks=NEEDS_C),
    (unpacked, integer(4, "group", 64, symmetric=False), None),
    (unpacked, integer(3), None),
]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kernel", "weights", "activations"), TAKEN)
@pytest.mark.parametrize("shape", [(1, 64), (0, 64), (2, 0, 64), (64,), (3, 1, 64)], ids=str)
def test_one_token_none_and_a_bare_vector(passes, kernel, weights, activations, shape, dtype, bias):
    inputs = torch.randn(shape, dtype=dtype)
    assert agree(*both(kernel, weights, activations, torch.randn(64, 64), inputs, torch.randn(64) if bias else None))


@pytest.mark.parametrize(("kernel", "weights", "activations"), TAKEN)
def test_inputs_that_are_not_contiguous(passes, kernel, weights, activations):
    inputs = torch.randn(64, 3, 22).transpose(0, 2)[::2, :, :]  # [11, 3, 64]
    assert not inputs.is_contiguous()
    assert agree(*both(kernel, weights, activations, torch.randn(64, 64), inputs, torch.randn(64)))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("side", [-1.0, 1.0])
@pytest.mark.parametrize("kernel", INT8)
def test_largest_codes_everywhere_do_not_saturate(passes, kernel, side, symmetric):
    inputs, weight = torch.full((8, 3072), 3.0), torch.full((32, 3072), side)
    found, expected = both(kernel, integer(8), inputs_of(8, symmetric=symmetric), weight, inputs, None)
    assert torch.allclose(found, expected, rtol=1e-6)


def test_a_product_that_cannot_overflow_is_not_computed_in_halves():
    halves = {}
    for bits in (2, 3, 4, 8):
        arguments = (load_format(integer(bits)), inputs_of(8), None, torch.float32)
        halves[bits] = onednn_int8.Layer.build(
            quantize_to_nearest(torch.randn(16, 64), arguments[0]), *arguments
        ).halves
    assert halves == {2: False, 3: False, 4: False, 8: onednn_int8.saturates()}


@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf")])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kernel", INT8)
def test_what_is_not_finite_is_not_lost(passes, kernel, bad, symmetric):
    inputs = torch.randn(6, 64)
    inputs[2, 5] = bad
    found, _ = both(kernel, integer(8), inputs_of(8, symmetric=symmetric), torch.randn(16, 64), inputs, None)
    assert not found[2].isfinite().any() and found[[0, 1, 3, 4, 5]].isfinite().all()


def test_codes_are_those_of_the_activation_format(passes):
    inputs = torch.randn(7, 45) * torch.logspace(-3, 3, 7)[:, None]
    inputs[0] = 0
    for settings in INPUTS.values():
        activation_format = ActivationFormat.from_settings(settings)
        grid = torch.tensor([0.01]), torch.tensor([0.0 if activation_format.symmetric else 3.0])
        static = None if activation_format.dynamic else grid
        expected, scale, zero = activation_format.encode(inputs, static)
        codes, own_scale, own_zero = fused.quantize(inputs, activation_format, static)
        assert torch.equal(codes.short() + activation_format.lowest, expected.short())
        assert torch.equal(own_scale, scale.expand(7, 1)[:, 0])
        assert zero is None or torch.equal(own_zero, zero.expand(7, 1)[:, 0])
        high, low = fused.quantize(inputs, activation_format, static, halves=True)[0].split(7)
        assert torch.equal(2 * high + low, codes)


def around(kernel_size, stride, padding, dilation, groups, mode="zeros"):
    vertical, horizontal = padding
    return Convolution(kernel_size, stride, (horizontal, horizontal, vertical, vertical), mode, dilation, groups)


GEOMETRIES = {
    "3x3": (around((3, 3), (1, 1), (1, 1), (1, 1), 1), 6, 10, (9, 7)),
    "strided": (around((3, 3), (2, 2), (1, 1), (1, 1), 1), 16, 8, (8, 8)),
    "1x1": (around((1, 1), (1, 1), (0, 0), (1, 1), 1), 32, 16, (5, 3)),
    "dilated": (around((3, 1), (1, 2), (2, 0), (2, 1), 1), 4, 12, (8, 9)),
    "groups": (around((3, 3), (1, 1), (1, 1), (1, 1), 4), 16, 24, (6, 6)),
    "uneven": (around((2, 5), (1, 1), (1, 2), (1, 1), 1), 3, 5, (11, 13)),
    "reflected": (around((3, 3), (2, 1), (1, 1), (1, 1), 1, "reflect"), 6, 8, (9, 7)),
    "one side": (Convolution((2, 2), (1, 1), (0, 1, 0, 1), "zeros", (1, 1), 1), 6, 8, (9, 7)),
}


@pytest.mark.parametrize("activations", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_int8_convolution_agrees_with_the_dequantized_layer(passes, name, activations):
    torch.manual_seed(0)
    geometry, channels, rows, size = GEOMETRIES[name]
    weight = torch.randn(rows, channels // geometry.groups * geometry.kernel_size[0] * geometry.kernel_size[1])
    for dtype, bias in ((torch.float32, torch.randn(rows)), (torch.bfloat16, None)):
        inputs = torch.randn(3, channels, *size, dtype=dtype) + 0.7
        for weights in (INTEGERS["w8"], INTEGERS["w4-asymmetric"]):
            assert agree(*both(onednn_convolution, weights, activations, weight, inputs, bias, geometry))
            channels_last = inputs.to(memory_format=torch.channels_last)
            assert agree(*both(onednn_convolution, weights, activations, weight, channels_last, bias, geometry))
        assert torch.equal(*both(unpacked, WEIGHT_ONLY["w4"], None, weight, inputs, bias, geometry))


FLOAT_BITS = {"mxfp8": 8.25, "mxfp6": 6.25, "mxfp4": 4.25, "nvfp4": 4.5, "float8-blocks": 8}


def test_a_layer_holds_its_weight_in_the_formats_size():
    weight, rows, columns = torch.randn(256, 512), 256, 512
    for kernel, weights, activations, most in (
        (unpacked, integer(3), None, 3 / 8),
        (unpacked, integer(4, "group", 128), None, 1 / 2),
        *((unpacked, WEIGHT_ONLY[name], None, bits / 8) for name, bits in FLOAT_BITS.items()),
        (onednn_int8, integer(4), inputs_of(8), 1),
        *(
            [(int8_in_c, integer(8), inputs_of(8), 1), (int8_in_c, integer(3), inputs_of(8), 1 / 2)]
            if int8.paths()
            else []
        ),
    ):
        weight_format = load_format(weights)
        quantized = quantize_to_nearest(weight, weight_format)
        layer = kernel.Layer.build(quantized, weight_format, activations, None, torch.bfloat16)
        held = sum(tensor.numel() * tensor.element_size() for tensor in layer.buffers())
        assert most <= held / (rows * columns) <= most + 0.07


PRODUCT, GROUPS = (int8_in_c, int8_in_c) if int8.paths() else (onednn_int8, None)


def described(weights, activations, columns=256, rows=64, **more):
    return {"weights": weights, "activations": activations, "in_features": columns, "out_features": rows} | {
        "library": None,
        "parts": [],
        **more,
    }


@pytest.mark.parametrize(
    ("layer", "kernel"),
    [
        (described(integer(8), inputs_of(8)), PRODUCT),
        (described(integer(4, symmetric=False), inputs_of(4)), PRODUCT),
        (described(integer(8, symmetric=False), inputs_of(8)), None),
        (described(integer(4, "group", 64), inputs_of(8)), GROUPS),
        (described(integer(4, "group", 12), inputs_of(8)), None),
        (described({"format": "nf4", "bits": 4, "group_size": 64}, inputs_of(8)), None),
        (described(integer(4, "group", 64), None), unpacked),
        (described(integer(4, "group", 48), None), unpacked),
        (described(integer(4), None, rows=50), unpacked),
        (described(integer(4), None, parts=["group_index"]), unpacked),
        (described(integer(2), None, kernel_size=[3, 3]), unpacked),
        (described(integer(8), inputs_of(8), 27, 5, kernel_size=[3, 3], groups=1), onednn_convolution),
        (described(integer(8), inputs_of(8), 9, 64, kernel_size=[3, 3], groups=64), onednn_convolution),
        (described(integer(8), inputs_of(8), 18, 64, kernel_size=[3, 3], groups=32), None),
    ],
)
def test_each_format_finds_its_kernel(layer, kernel):
    assert kernel_choice.kernel_for(layer, "cpu")[0] is kernel


def test_without_a_compiler_the_log_says_so_and_the_outputs_are_right(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "from quantwatt.inference import probe; from quantwatt.inference.kernels import onednn_int8\n"
        f"print(probe.relative_error(onednn_int8, {integer(8)}, {inputs_of(8)}, 'cpu'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS), "XDG_CACHE_HOME": str(tmp_path)}
    for compiler, said in (("no-such-compiler", "the C functions are not compiled ("), ("cc", "")):
        run = [preloaded.jobs().python, program]
        done = subprocess.run(run, env={**environment, "CC": compiler}, capture_output=True, text=True, check=True)
        assert float(done.stdout) < 1e-5 and (said in done.stderr if said else not done.stderr)
    compiled = list((tmp_path / "quantwatt").iterdir())
    assert len(compiled) == 1 and compiled[0].suffix == ".so"
