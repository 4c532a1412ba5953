"""SVDQuant's low-rank branch against the singular values, and against a plain loop over its definition."""

import itertools

import pytest
import torch

from quantwatt.formats.quantized_weight import load_format
from quantwatt.inference import linear
from quantwatt.quantize.observers import Observers
from quantwatt.quantize.solvers import rtn
from quantwatt.quantize.transforms import low_rank

INTEGER = {"format": "integer", "bits": 4, "granularity": "group", "group_size": 32, "symmetric": True}
SETTINGS = {"rank": 8, "iterations": 100, "early_stop": True}


def layer(rows=96, columns=64):
    """A weight with a few strong directions and an outlier column, and inputs that weigh the columns unevenly."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(rows, columns, generator=generator)
    strong = torch.randn(rows, 6, generator=generator) @ torch.randn(6, columns, generator=generator)
    weight += 2 * strong
    weight[:, 5] *= 20
    inputs = torch.randn(400, columns, generator=generator) * torch.linspace(0.2, 3, columns)
    return weight, inputs


def statistics_of(inputs):
    found = Observers.new(low_rank.Transform(**SETTINGS).needs, inputs.shape[1])
    found.observe(inputs)
    return found


def branch(weight, inputs, weight_format=None, **settings):
    weight_format = weight_format or load_format(INTEGER)
    return low_rank.Transform(**{**SETTINGS, **settings}).apply(weight, weight_format, None, statistics_of(inputs))


def rounded(weight, weight_format):
    return rtn.Solver().solve(weight, weight_format).weight.dequantize(weight_format)


def output_error(found, weight, inputs, weight_format):
    """Relative error of the output with the residual rounded to nearest."""
    product = rounded(found.weight, weight_format) + found.up.float() @ found.down.float()
    return ((inputs @ (product - weight).T).norm() / (inputs @ weight.T).norm()).item()


@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (64, 64)])
def test_residual_and_branch_are_the_weight(shape):
    weight, inputs = layer(*shape)
    found = branch(weight, inputs)
    assert found.down.shape == (8, shape[1]) and found.up.shape == (shape[0], 8) and found.input_factor is None
    assert found.down.dtype == found.up.dtype == torch.bfloat16  # so rounded, and the residual knows
    assert torch.allclose(found.weight + found.up.float() @ found.down.float(), weight, atol=1e-5 * weight.abs().max())
    outputs = inputs @ found.weight.T + inputs @ found.down.float().T @ found.up.float().T
    assert torch.allclose(outputs, inputs @ weight.T, atol=1e-5 * (inputs @ weight.T).abs().max())


@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (1, 8)])
def test_truncation_equals_the_singular_value_decomposition(shape):
    matrix = layer(*shape)[0] if shape != (1, 8) else torch.randn(1, 8)
    u, values, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    for rank in {1, min(5, *shape), min(shape)}:
        up, down = low_rank.truncated_svd(matrix, rank)
        assert up.dtype == torch.float64
        assert torch.allclose(up @ down, u[:, :rank] * values[:rank] @ vh[:rank], atol=1e-10 * values[0])


def test_residual_has_the_norm_of_the_values_cut_off():
    """Eckart-Young, where rounding is fine enough to change nothing: what is left are the smaller singular values."""
    weight, inputs = layer()
    fine = load_format({**INTEGER, "bits": 8})
    values = torch.linalg.svdvals(weight.double())
    for rank in (1, 8, 32):
        residual = branch(weight, inputs, fine, rank=rank).weight
        # bfloat16 factors have 8 significant bits: what they miss of L is left to the residual.
        missed = 2**-9 * values[:rank].square().sum().sqrt()
        assert values[rank:].square().sum().sqrt() == pytest.approx(residual.norm().item(), abs=missed.item())


def test_error_falls_with_the_rank():
    weight, inputs = layer()
    weight_format = load_format(INTEGER)
    errors = [output_error(branch(weight, inputs, rank=r), weight, inputs, weight_format) for r in (1, 4, 8, 16, 32)]
    plain = ((inputs @ (rounded(weight, weight_format) - weight).T).norm() / (inputs @ weight.T).norm()).item()
    assert all(later < earlier for earlier, later in zip([plain, *errors], errors, strict=False))
    assert errors[2] < 0.5 * plain  # the outlier column and the strong directions fit into rank 8


def test_rank_is_at_most_the_matrix():
    weight, inputs = layer()
    found = branch(weight, inputs, rank=500)
    assert found.down.shape == (64, 64) and found.weight.norm() < 2**-7 * weight.norm()


def test_iterations_follow_the_definition_and_the_best_is_kept():
    weight, inputs = layer()
    weight_format = load_format({**INTEGER, "bits": 2})  # so coarse that iterating too long does harm
    errors, quantized = [], torch.zeros_like(weight)
    for _ in range(12):  # the paper's loop, with the whole decomposition and the error on the inputs themselves
        u, values, vh = torch.linalg.svd((weight - quantized).double(), full_matrices=False)
        low = (u[:, :8] * values[:8] @ vh[:8]).float()
        quantized = rounded(weight - low, weight_format)
        errors.append(((inputs @ (quantized + low - weight).T).norm() / (inputs @ weight.T).norm()).item())
    assert min(errors) < 0.95 * errors[0] and min(errors) < 0.95 * errors[-1]
    branches = [branch(weight, inputs, weight_format, iterations=n, early_stop=False) for n in (1, 3, 12)]
    found = [output_error(found, weight, inputs, weight_format) for found in branches]
    # Factors in bfloat16 start the next iteration a little elsewhere.
    assert found == pytest.approx([min(errors[:n]) for n in (1, 3, 12)], rel=0.01)
    assert found[0] > found[1] >= found[2]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_more_iterations_never_grow_the_error(bits):
    weight, inputs = layer()
    weight_format = load_format({**INTEGER, "bits": bits})
    branches = [branch(weight, inputs, weight_format, iterations=n, early_stop=False) for n in range(1, 16)]
    errors = [output_error(found, weight, inputs, weight_format) for found in branches]
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 0.99 * errors[0]


def test_early_stop_ends_at_the_first_iteration_that_brings_nothing(monkeypatch):
    weight, inputs = layer()
    weight_format = load_format({**INTEGER, "bits": 3})
    errors, calls = [], []

    def watched(matrix, rank, own=low_rank.truncated_svd):
        calls.append(rank)
        return own(matrix, rank)

    for n in range(1, 101):
        found = branch(weight, inputs, weight_format, iterations=n, early_stop=False)
        errors.append(output_error(found, weight, inputs, weight_format))
        if len(errors) > 1 and errors[-1] == errors[-2]:
            break
    monkeypatch.setattr(low_rank, "truncated_svd", watched)
    stopped = branch(weight, inputs, weight_format)
    assert 2 < len(calls) == len(errors) < 100
    assert output_error(stopped, weight, inputs, weight_format) == errors[-1]


def test_a_layer_adds_the_branch_to_its_quantized_product():
    weight, inputs = layer()
    weight_format = load_format(INTEGER)
    found = branch(weight, inputs)
    quantized = rtn.Solver().solve(found.weight, weight_format).weight
    quantized.down, quantized.up = found.down, found.up
    built = linear.SimulatedLinear.build(quantized, weight_format, None, None, torch.float32)
    error = ((built(inputs) - inputs @ weight.T).norm() / (inputs @ weight.T).norm()).item()
    assert error == pytest.approx(output_error(found, weight, inputs, weight_format), rel=1e-3)
