"""Walsh-Hadamard transforms: PyTorch's and C's against SciPy's matrices, and each layer's inputs rotated once."""

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from scipy.linalg import hadamard as matrix

from quantwatt.formats import rotation
from quantwatt.formats.quantized_weight import load_format, quantize_to_nearest
from quantwatt.inference import hadamard
from quantwatt.inference.kernels import int8_in_c, unpacked
from quantwatt.inference.linear import SimulatedLinear

BLOCKS = [2**power for power in range(1, 13)]
NEEDS_C = pytest.mark.skipif(not hadamard.paths(), reason="no C compiler")
PATHS = [pytest.param(path, marks=NEEDS_C, id=hadamard.PATHS[path]) for path in hadamard.paths() or (0,)]
TOKEN = {"bits": 8, "granularity": "token", "dynamic": True, "symmetric": True}
W8 = {"format": "integer", "bits": 8, "granularity": "channel", "group_size": None, "symmetric": True}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_matrix(inputs, block):
    """The transform as products with SciPy's matrix, in float64."""
    blocks = inputs.double().reshape(-1, block) @ torch.from_numpy(matrix(block)).double().T / block**0.5
    return blocks.reshape(inputs.shape)


@pytest.mark.parametrize("block", BLOCKS)
def test_steps_equal_the_product_with_the_matrix(block):
    inputs = random(3, 5, 3 * block)
    expected = by_matrix(inputs, block)
    assert torch.allclose(rotation.walsh_hadamard(inputs.double(), block), expected, atol=1e-12)
    assert torch.allclose(rotation.walsh_hadamard(inputs, block).double(), expected, atol=2e-6)
    again = rotation.walsh_hadamard(rotation.walsh_hadamard(inputs, block), block)
    assert torch.allclose(again, inputs, atol=2e-6)  # its own inverse


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("block", BLOCKS)
def test_c_rounds_as_pytorch_does(block, path):
    signs = rotation.random_signs(3 * block, seed=1)
    for shape in ((1, 3 * block), (2, 17, 3 * block)):
        inputs = random(*shape) * 10
        expected = rotation.rotated(inputs, block, signs)
        assert torch.equal(hadamard.rotate(inputs, block, signs, path=path), expected)
        assert torch.equal(hadamard.rotate(inputs, block, path=path), rotation.rotated(inputs, block))
        narrow = inputs.bfloat16()
        found = hadamard.rotate(narrow, block, signs, path=path)
        assert found.dtype == torch.bfloat16 and torch.equal(found, rotation.rotated(narrow, block, signs))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("columns", "block"), [(6, 2), (12, 4), (24, 8), (48, 16), (96, 32), (2432, 128), (1536, 512)])
def test_factors_before_and_after_are_applied_in_the_same_pass(columns, block, path):
    inputs, before, after = random(7, columns), random(columns, seed=1), random(columns, seed=2)
    expected = by_matrix(inputs.double() * before, block) * after
    assert torch.allclose(hadamard.rotate(inputs, block, before, after, path=path).double(), expected, atol=1e-5)
    assert torch.allclose(rotation.rotated(inputs, block, before, after).double(), expected, atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_what_is_not_a_number_stays_in_its_block(path):
    inputs = random(4, 512)
    inputs[1, 300] = torch.nan
    found = hadamard.rotate(inputs, 256, path=path)
    bad = torch.zeros(4, 512, dtype=torch.bool)
    bad[1, 256:] = True
    assert torch.equal(found.isnan(), bad)


@NEEDS_C
def test_many_threads_views_and_no_rows():
    inputs = random(1024, 2, 512)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(hadamard.rotate(inputs, 256), rotation.rotated(inputs, 256))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(hadamard.rotate(inputs.transpose(0, 1), 64), rotation.rotated(inputs, 64).transpose(0, 1))
    assert hadamard.rotate(inputs[:0], 256).shape == (0, 2, 512)
    half = inputs.half()
    assert torch.equal(hadamard.rotate(half, 256), rotation.rotated(half, 256))


def test_blocks_are_the_largest_that_divide():
    found = {columns: rotation.block_of(columns, 256) for columns in (1536, 2432, 1152, 4096, 40, 6, 77, 1)}
    assert found == {1536: 256, 2432: 128, 1152: 128, 4096: 256, 40: 8, 6: 2, 77: None, 1: None}
    assert rotation.block_of(1536, 4096) == 512 and rotation.block_of(1536, 32) == 32


def test_signs_follow_from_the_seed_and_the_width():
    signs = rotation.random_signs(1000, seed=3)
    assert torch.equal(signs, rotation.random_signs(1000, seed=3)) and set(signs.tolist()) == {-1.0, 1.0}
    assert abs(signs.mean()) < 0.1 and not torch.equal(signs, rotation.random_signs(1000, seed=4))


def test_a_folded_weight_has_the_product_of_the_weight_and_unfolds_to_it():
    weight, inputs, before, after = random(12, 96), random(9, 96, seed=1), random(96, seed=2), random(96, seed=3)
    for block, *factors in [(32, before, after), (32, before, None), (32, None, None), (None, before, None)]:
        folded = rotation.folded(weight.double(), block, *factors)
        mapped = rotation.rotated(inputs.double(), block, *factors) if block else inputs.double() * before
        assert torch.allclose(mapped @ folded.T, inputs.double() @ weight.double().T, atol=1e-9)
        assert torch.allclose(rotation.unfolded(folded, block, *factors), weight.double(), atol=1e-9)


def test_gradients_pass():
    inputs, signs = random(3, 64).double().requires_grad_(), rotation.random_signs(64, 0).double()
    assert torch.autograd.gradcheck(lambda values: hadamard.rotate(values, 32, signs), inputs)
    inputs = random(3, 64).requires_grad_()
    hadamard.rotate(inputs, 32).square().sum().backward()
    assert torch.allclose(inputs.grad, 2 * inputs.detach(), atol=1e-5)  # lengths are kept


def layer(kind=SimulatedLinear, columns=256, activations=TOKEN, weights=W8, dtype=torch.float32, seed=0, signs=0):
    """A quantized layer whose inputs are rotated, and the product it stands for."""
    weight, weight_format = random(48, columns, seed=seed), load_format(weights)
    before = rotation.random_signs(columns, signs)
    quantized = quantize_to_nearest(rotation.folded(weight, 128, before, None), weight_format)
    quantized.input_factor, quantized.rotation = before, torch.tensor([128], dtype=torch.int32)
    built = kind.build(quantized, weight_format, activations, None, dtype)
    hadamard.attach(built)
    return built, weight


@pytest.mark.parametrize("kind", ["simulated", "int8", "unpacked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_of_every_kind_rotate_their_inputs(kind, dtype):
    kinds = {"simulated": SimulatedLinear, "int8": int8_in_c.Layer, "unpacked": unpacked.Layer}
    if kind == "int8" and int8_in_c.refusal({"weights": W8, "activations": TOKEN}, "cpu"):
        pytest.skip("this machine does not compute it in C")
    built, weight = layer(kinds[kind], activations=None if kind == "unpacked" else TOKEN, dtype=dtype)
    inputs = random(20, 256, seed=5).to(dtype)
    for some in (inputs, inputs[:1]):  # kernels compute few tokens in another way
        expected = some.float() @ weight.T
        found = built(some)
        assert (found.float() - expected).norm() < 0.02 * expected.norm()
        built.rotate = rotation.rotated  # as while a model is quantized
        assert torch.equal(built(some), found)
        hadamard.attach(built)


def test_layers_of_one_input_rotate_it_once(monkeypatch):
    calls, real = [], hadamard.rotate
    monkeypatch.setattr(hadamard, "rotate", lambda *given: calls.append(given[1]) or real(*given))
    query, key, other = layer(seed=1)[0], layer(seed=2)[0], layer(seed=1, signs=9)[0]
    inputs = random(20, 256)
    first = query(inputs)
    key(inputs)
    assert len(calls) == 1
    other(inputs)  # other signs
    query(inputs)
    assert len(calls) == 3 and torch.equal(query(inputs), first) and len(calls) == 3
    inputs += 1  # the same tensor, other values
    assert torch.equal(query(inputs), query(inputs.clone())) and len(calls) == 5
    with torch.inference_mode():
        inside = random(20, 256)
        query(inside), query(inside)
    assert len(calls) == 7  # such a tensor does not count its changes


def test_rotated_inputs_go_with_the_inputs():
    query, inputs = layer()[0], random(20, 256)
    query(inputs)
    kept = weakref.ref(hadamard._KEPT.outputs)
    assert kept() is not None
    del inputs
    gc.collect()
    assert kept() is None and hadamard._KEPT.outputs is None


def test_torch_compile_has_the_rotation_as_one_operator():
    torch._dynamo.reset()  # other tests' layers count towards its limit
    built, _ = layer(activations=None)
    inputs = random(20, 256)
    assert torch.equal(torch.compile(built, backend="aot_eager", fullgraph=True)(inputs), built(inputs))
    torch.library.opcheck(torch.ops.quantwatt.hadamard.default, (inputs, 64, None, None))


def test_without_a_compiler_pytorch_rotates(tmp_path):
    program = (
        "import torch\nfrom quantwatt.inference import hadamard\nfrom quantwatt.formats import rotation\n"
        "inputs = torch.randn(3, 64)\nassert hadamard.paths() == ()\n"
        "assert torch.equal(hadamard.rotate(inputs, 32), rotation.rotated(inputs, 32))\n"
    )
    environment = {"PATH": "", "CC": "no-such-compiler", "XDG_CACHE_HOME": str(tmp_path)}
    environment["PYTHONPATH"] = str(Path(rotation.__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the C functions are not compiled" in done.stderr
