"""The walk through the blocks: each layer's observers, what is shared, what is kept in memory, and the report."""

import itertools

import pytest
import torch

import quantize
from quantwatt import registry
from quantwatt.artifacts.errors import DataError
from quantwatt.config.experiment import complete_method
from quantwatt.formats.activations import ActivationFormat
from quantwatt.formats.quantized_weight import load_format
from quantwatt.models.families import load_family
from quantwatt.quantize import sequential
from quantwatt.quantize.observers import Observers
from quantwatt.quantize.solvers import Solution, load_solver

SD3 = load_family("sd3")


class Block(torch.nn.Module):
    """Two layers of one input, then one that reads their sum."""

    def __init__(self, width):
        super().__init__()
        self.to_q, self.to_k = torch.nn.Linear(width, width), torch.nn.Linear(width, width, bias=False)
        self.to_out = torch.nn.ModuleList([torch.nn.Linear(width, width)])

    def forward(self, hidden_states):
        return hidden_states + self.to_out[0](torch.tanh(self.to_q(hidden_states) + self.to_k(hidden_states)))


class Denoiser(torch.nn.Module):
    def __init__(self, depth=3, width=24):
        super().__init__()
        torch.manual_seed(0)
        self.transformer_blocks = torch.nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, hidden_states):
        for block in self.transformer_blocks:
            hidden_states = block(hidden_states=hidden_states)
        return hidden_states


class Family(type(SD3)):
    def stages(self, names):
        return [[name for name in names if name != "to_out.0"], [name for name in names if name == "to_out.0"]]


def method_of(solver="gptq", bits=4, held_out=0, **entry):
    settings = {"held_out": held_out} if solver in ("gptq", "qronos", "brecq") else {}
    return complete_method(
        {"solver": {"name": solver, **settings}, "weights": {"format": "integer", "bits": bits}, **entry},
        "test",
        "method",
    )


def samples(width=24):
    return {"hidden_states": torch.randn(40, 6, width, generator=torch.Generator().manual_seed(1))}


def run(method, denoiser=None, **options):
    denoiser = denoiser or Denoiser()
    formats = {"weights": method["weights"], "activations": method["activations"]}
    allocation = {name: formats for name in SD3.quantizable(denoiser)}
    return denoiser, *sequential.quantize(denoiser, Family(), allocation, method, samples(), batch=8, **options)


@pytest.fixture
def solved(monkeypatch):
    """Every call of gptq: the weight's rows and the Hessian it was given, in order."""
    calls, solver = [], registry.load("solvers", "gptq").Solver
    real = solver.solve

    def solve(self, weight, weight_format, statistics):
        calls.append((weight.clone(), statistics.hessian.value, statistics.hessian.tokens))
        return real(self, weight, weight_format, statistics)

    monkeypatch.setattr(solver, "solve", solve)
    return calls


def mean_product(inputs):
    inputs = inputs.reshape(-1, inputs.shape[-1]).float()
    return 2 * inputs.T @ inputs / len(inputs)


def test_layers_of_one_input_share_a_hessian_and_a_solve(solved):
    run(method_of())
    assert [len(weight) for weight, _, _ in solved] == [48, 24] * 3  # q and k together, then to_out, in every block
    assert {tokens for _, _, tokens in solved} == {40 * 6}


def test_stacked_layers_are_solved_as_each_would_be_alone():
    together = run(method_of())[1]
    apart = run(method_of(transforms=[{"name": "smoothing", "alpha": 0}]))[1]  # a transform keeps layers apart
    assert together.keys() == apart.keys()
    alone = Denoiser()
    hessian = mean_product(samples()["hidden_states"])
    statistics = Observers.new(("hessian",), 24)
    statistics.observe(samples()["hidden_states"].reshape(-1, 24))
    assert torch.allclose(statistics.hessian.value, hessian, rtol=1e-4)
    gptq, weight_format = load_solver(method_of()["solver"]), load_format(method_of()["weights"])
    for name in ("to_q", "to_k"):
        weight = alone.get_submodule(f"transformer_blocks.0.{name}").weight.detach()
        own = gptq.solve(weight, weight_format, statistics).weight
        assert torch.equal(together[f"transformer_blocks.0.{name}"]["codes"], own.state(weight_format)["codes"])


def test_each_layer_sees_its_inputs_after_all_quantization_before_it(solved):
    denoiser, _, _ = run(method_of(bits=2))
    hidden, seen = samples()["hidden_states"], []
    for block in denoiser.transformer_blocks:  # now quantized: what each layer meets in the finished model
        middle = torch.tanh(block.to_q(hidden) + block.to_k(hidden))
        seen += [hidden, middle]
        hidden = block(hidden)
    for (_, hessian, _), inputs in zip(solved, seen, strict=True):
        assert torch.allclose(hessian, mean_product(inputs), rtol=1e-3, atol=1e-5)


class Returning(Denoiser):
    """Its first block is called once more behind the second."""

    def forward(self, hidden_states):
        first, second, third = self.transformer_blocks
        return third(first(second(first(hidden_states))))


def test_a_block_that_is_called_again_is_then_the_quantized_one(solved):
    denoiser, _, _ = run(method_of(bits=2), Returning())
    first, second, _ = denoiser.transformer_blocks
    assert [len(weight) for weight, _, _ in solved] == [48, 24] * 3
    expected = mean_product(first(second(first(samples()["hidden_states"]))))
    assert torch.allclose(solved[4][1], expected, rtol=1e-3, atol=1e-5)  # of the third block's to_q and to_k


def test_a_block_that_is_called_again_is_refused_where_the_float_models_would_be_needed():
    with pytest.raises(DataError, match="transformer_blocks.0: a forward pass calls it twice"):
        run(method_of("qronos"), Returning())
    method, denoiser = method_of("qronos"), Returning()
    formats = {"weights": method["weights"], "activations": method["activations"]}
    others = {name: formats for name in SD3.quantizable(denoiser) if not name.startswith("transformer_blocks.0.")}
    _, reports = sequential.quantize(denoiser, Family(), others, method, samples(), batch=8)
    assert reports.keys() == others.keys()


@pytest.mark.parametrize("granularity", ["token", "tensor"])
def test_solvers_see_activations_as_the_layer_computes_with_them(solved, granularity):
    activations = {"bits": 3, "granularity": granularity}
    run(method_of(activations=activations))
    inputs = samples()["hidden_states"].reshape(5, 48, 24)  # batches of 8 samples of 6 tokens
    activation_format = ActivationFormat.from_settings(method_of(activations=activations)["activations"])
    expected = torch.cat([activation_format.fake_quantize(batch) for batch in inputs])
    assert torch.allclose(solved[0][1], mean_product(expected), rtol=1e-4)


def test_qronos_gets_the_float_models_inputs_beside(monkeypatch):
    calls, solver = [], registry.load("solvers", "qronos").Solver
    real = solver.solve

    def solve(self, weight, weight_format, statistics):
        calls.append((statistics.cross.value, statistics.hessian.value))
        return real(self, weight, weight_format, statistics)

    monkeypatch.setattr(solver, "solve", solve)
    denoiser, _, reports = run(method_of("qronos", bits=2))
    reference, hidden, pairs = Denoiser(), samples()["hidden_states"], []
    float_hidden = hidden
    for block, float_block in zip(denoiser.transformer_blocks, reference.transformer_blocks, strict=True):
        pairs.append((hidden, float_hidden))
        pairs.append((torch.tanh(block.to_q(hidden) + block.to_k(hidden)),
                      torch.tanh(float_block.to_q(float_hidden) + float_block.to_k(float_hidden))))  # fmt: skip
        hidden, float_hidden = block(hidden), float_block(float_hidden)
    for (cross, hessian), (inputs, float_inputs) in zip(calls, pairs, strict=True):
        inputs, float_inputs = inputs.reshape(-1, 24), float_inputs.reshape(-1, 24)
        assert torch.allclose(cross, 2 * inputs.T @ float_inputs / len(inputs), rtol=1e-3, atol=1e-4)
        assert torch.allclose(hessian, mean_product(inputs), rtol=1e-3, atol=1e-4)
    # The reported error is that of the layer's output against the float model's.
    layer, float_layer = denoiser.transformer_blocks[1].to_out[0], reference.transformer_blocks[1].to_out[0]
    inputs, float_inputs = pairs[3]
    truth = float_inputs @ float_layer.weight.T
    error = (truth - inputs @ layer.values.T).norm() / truth.norm()
    report = reports["transformer_blocks.1.to_out.0"]
    assert report["error_of"] == "float outputs"
    assert report["relative_error"] == pytest.approx(error.item(), rel=1e-3)


def test_reported_errors_are_those_of_the_outputs():
    denoiser, _, reports = run(method_of(bits=3))
    weight = Denoiser().transformer_blocks[0].to_q.weight
    inputs = samples()["hidden_states"]
    nearest = run(method_of("rtn", bits=3))[0].transformer_blocks[0].to_q.values
    truth = (inputs @ weight.T).norm()
    report = reports["transformer_blocks.0.to_q"]
    both = {"error_before": nearest, "relative_error": denoiser.transformer_blocks[0].to_q.values}
    for key, found in both.items():
        assert report[key] == pytest.approx(((inputs @ (weight - found).T).norm() / truth).item(), rel=1e-3)
    assert report["relative_error"] < report["error_before"] and report["error_of"] == "outputs"
    rounded = run(method_of("rtn", bits=3))[2]["transformer_blocks.0.to_q"]
    assert rounded["error_of"] == "weights"
    assert rounded["relative_error"] == rounded["error_before"] == pytest.approx(
        ((weight - nearest).norm() / weight.norm()).item(), rel=1e-4
    )  # fmt: skip


def test_spans_lie_apart_and_shares_of_a_stack_add_up():
    reports = run(method_of())[2]
    q, k = (reports[f"transformer_blocks.0.{name}"]["spans"] for name in ("to_q", "to_k"))
    assert [span[:2] for span in q] == [span[:2] for span in k]
    assert [a[2] + b[2] for a, b in zip(q, k, strict=True)] == [1.0] * len(q)
    spans = sorted({span[:2] for report in reports.values() for span in report["spans"]})
    assert all(start <= stop for start, stop in spans)
    assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(spans))


def test_static_activation_grid_comes_from_the_calibration_inputs():
    activations = {"bits": 8, "granularity": "tensor", "dynamic": False, "symmetric": False}
    denoiser, states, _ = run(method_of("rtn", activations=activations))
    state = states["transformer_blocks.0.to_q"]
    inputs = samples()["hidden_states"]
    low, high = inputs[:8].reshape(-1, 24).amin(0), inputs[:8].reshape(-1, 24).amax(0)
    for batch in inputs.split(8)[1:]:
        batch = batch.reshape(-1, 24)
        low, high = 0.95 * low + 0.05 * batch.amin(0), 0.95 * high + 0.05 * batch.amax(0)
    scale = (high.amax() - low.amin()) / 255
    assert state["activation_scale"].item() == pytest.approx(scale.item(), rel=1e-5)
    assert state["activation_zero"].item() == pytest.approx((-128 - low.amin() / scale).round().item())
    layer = denoiser.transformer_blocks[0].to_q
    found = layer.activation_format.fake_quantize(inputs, layer.static_grid)
    assert (found - inputs).abs().amax() < 0.51 * scale + (inputs.abs().amax() - 127 * scale).clamp(min=0) + 0.5


def test_a_block_solver_gets_quantized_inputs_and_float_targets(monkeypatch):
    solver = registry.load("solvers", "brecq").Solver
    calls = []

    def solve_block(self, block, plans, batches, targets, family, held):
        assert held == [None] * 5
        calls.append((list(plans), torch.cat([b["hidden_states"] for b in batches]), torch.cat(list(targets))))
        rtn = load_solver({"name": "rtn"})
        return {name: Solution(rtn.solve(plan.weight, plan.weight_format).weight) for name, plan in plans.items()}

    monkeypatch.setattr(solver, "solve_block", solve_block)
    denoiser, states, reports = run(method_of("brecq", bits=2))
    assert [names for names, _, _ in calls] == [["to_q", "to_k", "to_out.0"]] * 3 and len(states) == 9
    hidden, float_hidden = samples()["hidden_states"], samples()["hidden_states"]
    for block, float_block, call in zip(denoiser.transformer_blocks, Denoiser().transformer_blocks, calls, strict=True):
        assert torch.allclose(call[1], hidden, atol=1e-5)
        hidden, float_hidden = block(hidden), float_block(float_hidden)
        assert torch.allclose(call[2], float_hidden, atol=1e-5)
    layer = denoiser.transformer_blocks[1]
    report = reports["transformer_blocks.1.to_q"]
    found, truth = layer(calls[1][1]), calls[1][2]
    assert report["error_of"] == "block outputs"
    assert report["relative_error"] == pytest.approx(((found - truth).norm() / truth.norm()).item(), rel=1e-4)
    assert report["error_before"] == pytest.approx(report["relative_error"])  # the solver here is rounding to nearest


def test_weights_that_are_not_finite_are_refused():
    denoiser = Denoiser()
    denoiser.transformer_blocks[1].to_k.weight.data[0, 0] = float("nan")
    with pytest.raises(DataError, match=r"transformer_blocks\.1\.to_k: its weights hold NaN"):
        run(method_of(), denoiser)


def grouped(size):
    return {"format": "integer", "bits": 4, "granularity": "group", "group_size": size}


def test_a_group_larger_than_every_layer_is_refused():
    with pytest.raises(DataError, match=r"blocks\.0\.to_q: a group_size of 100000 .* its 24 inputs.*channel"):
        run(method_of("rtn", weights=grouped(100000)))


def test_a_group_larger_than_some_layers_is_one_group_a_row_there(capsys):
    denoiser = Denoiser(depth=1)
    denoiser.transformer_blocks[0].to_k = torch.nn.Linear(24, 24, bias=False)
    denoiser.transformer_blocks[0].to_out[0] = torch.nn.Linear(24, 24)
    wide = torch.nn.Linear(64, 24)
    denoiser.transformer_blocks[0].wide = wide
    method = method_of("rtn", weights=grouped(48))
    formats = {"weights": method["weights"], "activations": None}
    allocation = {name: formats for name in SD3.quantizable(denoiser)}
    _, reports = sequential.quantize(denoiser, Family(), allocation, method)
    groups = {name.rpartition("blocks.0.")[2]: report["groups_per_row"] for name, report in reports.items()}
    assert groups == {"to_q": 1, "to_k": 1, "to_out.0": 1, "wide": 2}  # the last group of 64 inputs has 16
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(warned) == 1 and "3 of 4 layers with group_size 48 (transformer_blocks.0.to_q: 24 inputs)" in warned[0]


def test_an_allocation_of_another_method_is_refused():
    method = method_of("rtn", bits=4)
    allocation = {"layer": {"weights": method_of("rtn", bits=8)["weights"], "activations": None}}
    with pytest.raises(DataError, match=r'other\.json: layer layer: the method has no such weights .*"bits": 8'):
        quantize.check_agreement(allocation, method, "other.json")
    quantize.check_agreement({"layer": {"weights": method["weights"], "activations": None}}, method, "own.json")
