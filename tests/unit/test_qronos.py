"""Qronos against its least-squares problem, solved column by column."""

import pytest
import torch

from quantwatt.formats.quantized_weight import fit_groups, load_format, quantize_to_nearest
from quantwatt.quantize.observers import Observers
from quantwatt.quantize.solvers import gptq, qronos

ALPHA, SETTINGS = 1e-6, {"act_order": True, "static_groups": True, "block_size": 128}
SOLVER = qronos.Solver(alpha=ALPHA, **SETTINGS)


def integer(bits, group_size=None):
    granularity = "group" if group_size else "channel"
    return load_format(
        {"format": "integer", "bits": bits, "granularity": granularity, "group_size": group_size, "symmetric": False}
    )


def layer(seed, mismatch=0.05, rows=24, columns=96, tokens=400):
    """(weight, X, X with the noise of quantized layers before it, statistics of both)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    reference = torch.randn(tokens, columns, generator=generator) @ mixing
    inputs = reference + mismatch * reference.std() * torch.randn(tokens, columns, generator=generator)
    statistics = Observers.new(SOLVER.NEEDS, columns)
    for part in range(0, tokens, 150):
        statistics.observe(inputs[part : part + 150], reference[part : part + 150])
    return torch.randn(rows, columns, generator=generator), reference, inputs, statistics


def mismatch_error(weight, found, reference, inputs):
    """How far the quantized layer on quantized inputs is from the float layer on float inputs, relative."""
    truth = reference @ weight.T
    return ((truth - inputs @ found.T).norm() / truth.norm()).item()


def by_least_squares(weight, reference, inputs, weight_format, alpha):
    """Algorithm 1 of arXiv 2505.11695 as it is written: after each column all that remain are solved for anew."""
    inputs, reference = inputs.double(), reference.double()
    hessian, cross = inputs.T @ inputs, inputs.T @ reference
    order = torch.argsort(hessian.diagonal(), descending=True)
    width = weight_format.group_width(len(order))
    scale, zero = fit_groups(weight, weight_format)
    hessian, cross = hessian[order][:, order], cross[order][:, order]
    ridge = alpha * torch.linalg.eigvalsh(hessian)[-1] * torch.eye(len(order))
    original = weight[:, order].double()  # [rows, columns]
    current, quantized = original.clone(), torch.zeros_like(original)
    for j in range(len(order)):
        value = current[:, j]
        if j == 0:
            value = (original @ cross[0] - original[:, 1:] @ hessian[0, 1:]) / hessian[0, 0]
        group = order[j] // width
        codes = weight_format.encode(value.float(), scale[:, group], zero[:, group])
        quantized[:, j] = weight_format.decode(codes, scale[:, group], zero[:, group])
        rest = slice(j + 1, None)
        aimed = original @ (cross + ridge)[rest].T - quantized[:, : j + 1] @ hessian[rest, : j + 1].T
        current[:, rest] = torch.linalg.solve((hessian + ridge)[rest, rest], aimed.T).T
    result = torch.empty_like(quantized)
    result[:, order] = quantized
    return result.float()


@pytest.mark.parametrize(("bits", "group_size"), [(2, None), (3, None), (4, None), (4, 32), (8, None)])
def test_values_equal_naive_least_squares(bits, group_size):
    weight, reference, inputs, statistics = layer(seed=bits)
    weight_format = integer(bits, group_size)
    expected = by_least_squares(weight, reference, inputs, weight_format, ALPHA)
    solution = SOLVER.solve(weight, weight_format, statistics)
    found = solution.weight.dequantize(weight_format)
    assert solution.fallback is None and isinstance(solution.damping, float)  # it goes into a manifest
    assert torch.isclose(found, expected, rtol=1e-4, atol=1e-5).all(dim=1).float().mean() >= 0.9
    assert mismatch_error(weight, found, reference, inputs) == pytest.approx(
        mismatch_error(weight, expected, reference, inputs), rel=1e-3
    )


@pytest.mark.parametrize("act_order", [False, True])
def test_equal_inputs_give_gptq(act_order):
    weight, _, _, statistics = layer(seed=0, mismatch=0.0)
    settings = {**SETTINGS, "act_order": act_order}
    hessian = statistics.hessian.value
    ridge = ALPHA * torch.linalg.eigvalsh(hessian)[-1] / hessian.diagonal().mean()
    expected = gptq.Solver(damping=ridge.item(), **settings).solve(weight, integer(4), statistics).weight.codes
    found = qronos.Solver(alpha=ALPHA, **settings).solve(weight, integer(4), statistics).weight.codes
    assert (found == expected).float().mean() > 0.999


def test_mean_mismatch_is_below_gptqs_at_equal_damping():
    errors = {"rtn": [], "gptq": [], "qronos": []}
    for seed in range(12):
        weight, reference, inputs, statistics = layer(seed)
        hessian = statistics.hessian.value
        ridge = ALPHA * torch.linalg.eigvalsh(hessian)[-1] / hessian.diagonal().mean()
        found = {
            "rtn": quantize_to_nearest(weight, integer(4)),
            "gptq": gptq.Solver(damping=ridge.item(), **SETTINGS).solve(weight, integer(4), statistics).weight,
            "qronos": SOLVER.solve(weight, integer(4), statistics).weight,
        }
        for name, quantized in found.items():
            errors[name].append(mismatch_error(weight, quantized.dequantize(integer(4)), reference, inputs))
    mean = {name: sum(values) / len(values) for name, values in errors.items()}
    assert mean["qronos"] < 0.98 * mean["gptq"] < 0.9 * mean["rtn"]
    assert sum(q < g for q, g in zip(errors["qronos"], errors["gptq"], strict=True)) >= 10


def test_indefinite_hessian_climbs_the_ladder():
    weight, _, _, statistics = layer(seed=0)
    statistics.hessian.sum.diagonal().sub_(1.02 * torch.linalg.eigvalsh(statistics.hessian.value)[0] * 200)
    solution = SOLVER.solve(weight, integer(4), statistics)
    assert solution.fallback == "damping" and solution.weight.dequantize(integer(4)).isfinite().all()


def test_dead_and_broken_columns():
    weight, reference, inputs, _ = layer(seed=0)
    for tensor in (reference, inputs):
        tensor[:, 5] = 0
    inputs[3, 7] = float("nan")
    statistics = Observers.new(SOLVER.NEEDS, 96)
    statistics.observe(inputs, reference)
    solution = SOLVER.solve(weight, integer(4), statistics)
    found = solution.weight.dequantize(integer(4))
    assert solution.fallback == "columns" and found.isfinite().all() and (found[:, 5] == 0).all()
    assert torch.equal(solution.weight.codes[:, 7], quantize_to_nearest(weight, integer(4)).codes[:, 7])
