"""Tokens held out of the fit: their choice, the errors on them, and layers that fall back to rounding to nearest."""

import pytest
import torch
from test_sequential import SD3, Denoiser, Family, method_of

from quantwatt.quantize import hold_out, sequential
from quantwatt.quantize.observers import Observers

REFUSED = hold_out.REFUSED["fallback"]
WIDTH = 48


def walked(solver, count, tokens=6, bits=3, origins=None, held_out=0.125, batch=8, **settings):
    """(denoiser, reports) of inputs that lie near a plane of the space of columns, as calibration inputs do."""
    generator = torch.Generator().manual_seed(1)
    method, denoiser = method_of(solver, bits=bits, held_out=held_out), Denoiser(depth=1, width=WIDTH)
    method["solver"] |= settings
    mixed, alone = torch.randn(12, WIDTH, generator=generator), torch.randn(count, tokens, WIDTH, generator=generator)
    samples = {"hidden_states": torch.randn(count, tokens, 12, generator=generator) @ mixed + 0.1 * alone}
    formats = {"weights": method["weights"], "activations": method["activations"]}
    allocation = {name: formats for name in SD3.quantizable(denoiser)}
    _, reports = sequential.quantize(denoiser, Family(), allocation, method, samples, batch=batch, origins=origins)
    return denoiser, {name.removeprefix("transformer_blocks.0."): report for name, report in reports.items()}, samples


@pytest.mark.parametrize("solver", ["gptq", "qronos"])
def test_a_layer_that_a_solver_makes_worse_on_held_out_tokens_keeps_rounding(solver, capsys):
    few = {"damping": 1e-6} if solver == "gptq" else {"alpha": 1e-9}  # so that it fits what it sees
    denoiser, reports, _ = walked(solver, count=2, tokens=5, **few)
    rounded, _, _ = walked("rtn", count=2, tokens=5)
    assert [report["fallback"] for report in reports.values()].count(REFUSED) >= 2
    for name, report in reports.items():
        assert report["tokens"] == 5 and report["held_out_tokens"] == 5
        worse = report["held_out_error"] > report["held_out_rounding"]
        assert (report["fallback"] == REFUSED) == worse
        if worse:
            assert report["damping"] is None and report["relative_error"] == pytest.approx(report["error_before"])
            layers = (one.transformer_blocks[0].get_submodule(name) for one in (denoiser, rounded))
            assert torch.equal(*(layer.values for layer in layers))
    warning = capsys.readouterr().err
    assert (
        f"3 of 3 solved layers saw fewer calibration tokens than they have inputs ({SD3.blocks(denoiser)[0]}" in warning
    )
    assert f"5 tokens, {WIDTH} inputs" in warning and warning.count("warning:") == 1


@pytest.mark.parametrize("solver", ["gptq", "qronos"])
def test_with_enough_tokens_no_layer_falls_back(solver, capsys):
    _, reports, _ = walked(solver, count=64, tokens=16)
    for report in reports.values():
        assert report["fallback"] is None and report["held_out_error"] < report["held_out_rounding"]
        assert report["tokens"] == 56 * 16 and report["held_out_tokens"] == 8 * 16
    assert "warning" not in capsys.readouterr().err


def test_holding_out_costs_the_fit_next_to_nothing():
    """Against what all tokens would have given, on fresh tokens of the same kind."""
    whole, held = (walked("gptq", count=64, tokens=16, held_out=share) for share in (0, 0.125))
    assert whole[1]["to_q"]["held_out_error"] is None and whole[1]["to_q"]["tokens"] == 64 * 16
    generator = torch.Generator().manual_seed(1)
    mixed, other = torch.randn(12, WIDTH, generator=generator), torch.Generator().manual_seed(2)
    fresh = torch.randn(4000, 12, generator=other) @ mixed + 0.1 * torch.randn(4000, WIDTH, generator=other)
    weight = Denoiser(depth=1, width=WIDTH).transformer_blocks[0].to_q.weight
    layers = [denoiser.transformer_blocks[0].to_q for denoiser, _, _ in (whole, held)]
    without, with_held = ((fresh @ (weight - layer.values).T).norm().item() for layer in layers)
    assert with_held < 1.05 * without


def test_errors_on_held_out_tokens_are_those_of_the_outputs():
    denoiser, reports, samples = walked("gptq", count=16, origins=[i // 2 for i in range(16)])
    held = hold_out.chosen([i // 2 for i in range(16)], 0.125)
    inputs = samples["hidden_states"][held].reshape(-1, WIDTH)
    assert held.sum() == 2 and held[::2].equal(held[1::2])  # both samples of one origin
    layer, original = (one.transformer_blocks[0].to_q for one in (denoiser, Denoiser(depth=1, width=WIDTH)))
    weight = original.weight
    error = (inputs @ (weight - layer.values).T).norm() / (inputs @ weight.T).norm()
    assert reports["to_q"]["held_out_error"] == pytest.approx(error.item(), rel=1e-4)


def test_one_sample_lends_its_last_tokens():
    _, reports, _ = walked("gptq", count=1, tokens=160)
    assert {(report["tokens"], report["held_out_tokens"]) for report in reports.values()} == {(140, 20)}
    _, reports, _ = walked("gptq", count=1, tokens=1)  # and a single token nothing: there is nothing to judge by
    assert {(report["tokens"], report["held_out_error"]) for report in reports.values()} == {(1, None)}


def test_rows_of_padded_samples():
    held, real = torch.tensor([False, True]), torch.tensor([[True, True, True], [True, False, False]])
    assert hold_out.rows_of(held, 4, real).tolist() == [False, False, False, True]
    assert hold_out.rows_of(held, 6).tolist() == [False] * 3 + [True] * 3


def test_a_block_learned_to_the_worse_keeps_rounding(monkeypatch):
    from quantwatt import registry

    solver = registry.load("solvers", "brecq")
    draws, real = [], solver.Samples.draw
    monkeypatch.setattr(solver.Samples, "draw", lambda self: draws.append(self.index) or real(self))
    # So high a rate flips roundings at random; a rate of 1e-9 leaves all where rounding to nearest has them.
    quick = {"iterations": 3, "batch_size": 4, "regularizer": 0.0}
    _, reports, _ = walked("brecq", count=8, learning_rate=100.0, **quick)
    assert {report["fallback"] for report in reports.values()} == {REFUSED}
    assert all(report["held_out_error"] > report["held_out_rounding"] for report in reports.values())
    held = hold_out.chosen(range(8), 0.125).nonzero().flatten().tolist()
    assert len(held) == 1 and all((0, held[0]) not in index and len(index) == 7 for index in draws)
    _, kept, _ = walked("brecq", count=8, learning_rate=1e-9, **quick)
    assert {report["fallback"] for report in kept.values()} == {None}


def test_inputs_that_are_not_finite_are_in_no_held_out_error():
    statistics = Observers.new({"held_out", "count"}, 4)
    inputs = torch.randn(6, 4)
    inputs[2, 1] = float("inf")
    statistics.observe(inputs, held=torch.tensor([False] * 2 + [True] * 4))
    assert statistics.count.value == 2 and statistics.held_out.inputs.seen == 4
    assert hold_out.is_worse(None, 0.1) and not hold_out.is_worse(None, None) and not hold_out.is_worse(0.1, 0.1)
