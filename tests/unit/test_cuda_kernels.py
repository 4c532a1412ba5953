"""CUDA kernels: the parts that a CPU can compute. test_on_a_gpu.py has the rest."""

import importlib.util
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import kernel_cases as cases
import pytest
import torch

from quantwatt import registry
from quantwatt.inference import kernel_choice
from quantwatt.inference.kernels import fused_int_mm, int_mm, tinygemm, triton_w4a8

HERE = Path(__file__).parent
HALF = 2e-2  # of bfloat16 outputs, which two ways of rounding set apart
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed, as `make test-all` does"
)
LAYER = {"in_features": 1536, "out_features": 1536, "library": None, "parts": []}


@pytest.mark.parametrize("kind", cases.INPUTS)
@pytest.mark.parametrize("activations", [cases.TOKEN, cases.TOKEN_ASYMMETRIC, cases.STATIC])
@pytest.mark.parametrize("weights", [cases.integer(8, True), cases.integer(4, False), cases.integer(3, True)])
def test_int_mm_is_the_dequantized_layer(weights, activations, kind):
    assert cases.error(cases.pair(int_mm, weights, activations, (24, 40)), kind) < int_mm.BOUND
    half = cases.pair(int_mm, weights, activations, (24, 40), torch.bfloat16, bias=False)
    assert cases.error(half, kind, torch.bfloat16) < HALF


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])  # which asks gcc
def test_the_fused_product_is_the_same_alone_and_inside_a_compiled_module(backend, monkeypatch):
    assert fused_int_mm.Layer.quantize is not int_mm.quantize and fused_int_mm.Layer.rescale is not int_mm.rescale
    torch._dynamo.reset()
    if backend != "inductor":
        for step in ("quantize", "rescale"):
            compiled = torch.compile(getattr(int_mm, step), dynamic=True, backend=backend)
            monkeypatch.setattr(fused_int_mm.Layer, step, staticmethod(compiled))
    layers = cases.pair(fused_int_mm, cases.integer(8, True), cases.TOKEN_ASYMMETRIC, (24, 40))
    assert all(cases.error(layers, kind) < fused_int_mm.BOUND for kind in cases.INPUTS)
    torch._dynamo.reset()
    graphs = torch._dynamo.explain(layers[0])(torch.randn(45, 40))
    assert (graphs.graph_count, graphs.graph_break_count) == (1, 0)


def word_of(half_bytes, lane, tile, sixteens):
    """One word of tinygemm's layout, from codes two a byte, as int4mm.cu writes it."""
    row, begin = tile[0] * 8 + lane // 4, (tile[1] * 8 + sixteens) * 8
    places = [begin + lane % 4, begin + lane % 4 + 4, begin + 8 + lane % 4, begin + 8 + lane % 4 + 4]
    word = 0
    for i, place in enumerate(places):
        byte = int(half_bytes[row, place])
        word |= (byte >> 4) << 4 * i | (byte & 15) << 16 + 4 * i
    return word - 2**32 if word >= 2**31 else word


def test_tinygemms_layout_is_pytorchs():
    codes = torch.randint(0, 16, (24, 256), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    words = tinygemm.packed(codes)
    half_bytes = codes[:, ::2] << 4 | codes[:, 1::2]
    assert words.shape == torch.ops.aten._convert_weight_to_int4pack(half_bytes.to("meta"), 8).shape
    for row, column in ((0, 0), (2, 1)):
        for lane in range(32):
            expected = [word_of(half_bytes, lane, (row, column), sixteens) for sixteens in (0, 2, 4, 6)]
            assert words[row, column, lane].tolist() == expected
    assert torch.equal(tinygemm.unpacked(words), codes.int())


GRIDS = {
    "group": cases.integer(4, False, 64),
    "symmetric": cases.integer(4, True, 32),
    "channel": cases.integer(4, False),
    "three-bits": cases.integer(3, True, 128),
    "two-bits": cases.integer(2, True, 256),
    "float-zero": cases.integer(4, False, 64, zero_point="float"),
}


@pytest.mark.parametrize("name", GRIDS)
def test_tinygemm_is_the_dequantized_layer(name, monkeypatch):
    asked = []

    def product(inputs, words, group, grid):
        asked.append(len(inputs))
        return inputs @ tinygemm.dequantized(words, grid, group).T

    monkeypatch.setattr(torch, "_weight_int4pack_mm", product)
    for shape, act_order in (((24, 320), False), ((21, 200), True)):  # the second is padded on both sides
        layers = cases.pair(tinygemm, GRIDS[name], None, shape, torch.bfloat16, act_order=act_order)
        assert all(cases.error(layers, kind, torch.bfloat16) < HALF for kind in cases.INPUTS)
    assert asked and max(asked) <= tinygemm.FEW_TOKENS


def test_tinygemm_takes_a_fourth_of_the_weights_memory():
    layer, _ = cases.pair(tinygemm, GRIDS["group"], None, (64, 1024), torch.bfloat16)
    held = sum(buffer.numel() * buffer.itemsize for name, buffer in layer.named_buffers() if name != "bias")
    assert held <= 0.35 * 2 * 64 * 1024


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """{case: error} of the Triton kernel, by Triton's interpreter, which is chosen before Triton is imported."""
    path = tmp_path_factory.mktemp("w4a8") / "errors.json"
    paths = os.pathsep.join([str(HERE.parents[1] / "workflow_scripts"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    subprocess.run([sys.executable, HERE / "interpreted_w4a8.py", path], check=True, env=environment)
    return json.loads(path.read_text())


@needs_triton
def test_the_w4a8_kernel_is_the_dequantized_layer_on_every_shape(interpreted):
    assert len(interpreted) > 80
    bound = {"float32": triton_w4a8.BOUND, "bfloat16": HALF, "float16": HALF}
    wrong = {case: error for case, error in interpreted.items() if error > bound[case.split()[0]]}
    assert not wrong


COMPILE = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from quantwatt.inference import w4a8_product
types = {"inputs": "*i8", "weight": "*u8", "outputs": "*bf16", "scale": "*fp32", "weight_scale": "*fp32",
         "weight_zero": "*i8", "tokens": "i32", "magnitude": "i32", "rows": "i32", "width": "i32"}
tokens, rows, warps, stages = w4a8_product.TILES[0]
constants = {"GROUP": int(sys.argv[2]), "BYTES": w4a8_product.BYTES, "TOKENS": tokens, "ROWS": rows,
             "zero": None, "weight_sums": None, "bias": None}
signature = {name: types.get(name, "constexpr") for name in w4a8_product.kernel.arg_names}
source = ASTSource(w4a8_product.kernel, signature, constexprs=constants)
target = GPUTarget("cuda", int(sys.argv[1]), 32)
print(compile(source, target=target, options={"num_warps": warps, "num_stages": stages}).asm["ptx"])
"""


@needs_triton
@pytest.mark.parametrize(("capability", "group"), [(80, 0), (90, 64)])
def test_the_w4a8_kernel_compiles_to_products_of_integers(capability, group, tmp_path):
    paths = os.pathsep.join([str(HERE.parents[1] / "workflow_scripts"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILE, str(capability), str(group)]
    done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    assert ".s32.s8.s8" in done.stdout  # of mma


def test_a_kernel_that_lacks_triton_leaves_its_layers_to_the_next(monkeypatch):
    def distribution(package):
        if package == "triton":
            raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "distribution", distribution)
    monkeypatch.setattr("quantwatt.inference.probe.failure", lambda name, layer, device: None)
    for weights, activations, name in (
        (cases.integer(8, True), cases.TOKEN, "int_mm"),
        (cases.integer(4, False), cases.STATIC, "int_mm"),
        (cases.integer(4, False, 64), None, "tinygemm"),
    ):
        layer = {**LAYER, "weights": weights, "activations": activations}
        assert kernel_choice.kernel_for(layer, "cuda") == (registry.load("kernels", name), None)
    layer = {**LAYER, "weights": cases.integer(4, False, 64), "activations": cases.TOKEN}
    assert kernel_choice.kernel_for(layer, "cuda")[1].endswith("on cuda: triton is not installed")
