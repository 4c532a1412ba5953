"""The transform `hadamard` in the walk through a model: with every solver, before and after others, and left out."""

import json

import pytest
import torch

from quantwatt import registry
from quantwatt.artifacts.errors import DataError
from quantwatt.config.experiment import complete_method
from quantwatt.config.schemas import ConfigurationError
from quantwatt.formats import rotation
from quantwatt.formats.quantized_weight import QuantizedWeight, load_format
from quantwatt.inference.linear import SimulatedLinear
from quantwatt.models.families import load_family
from quantwatt.quantize import sequential

WIDTH = 96  # blocks of 32
HADAMARD, SMOOTHING = {"name": "hadamard"}, {"name": "smoothing"}
LOW_RANK = {"name": "low-rank", "rank": 4, "iterations": 3}
INTEGER = {"format": "integer", "bits": 4, "granularity": "channel", "group_size": None, "symmetric": True}
STATIC = {"bits": 8, "granularity": "tensor", "dynamic": False, "symmetric": False}


class Block(torch.nn.Module):
    """Queries, keys and values of one input, an output layer, and one with an odd number of inputs."""

    def __init__(self, width):
        super().__init__()
        self.to_q, self.to_k = torch.nn.Linear(width, width), torch.nn.Linear(width, width, bias=False)
        self.to_out = torch.nn.Linear(width, width)
        self.narrow, self.wide = torch.nn.Linear(width, 15), torch.nn.Linear(15, width)

    def forward(self, hidden_states):
        hidden_states = hidden_states + self.to_out(torch.tanh(self.to_q(hidden_states) * self.to_k(hidden_states)))
        return hidden_states + self.wide(torch.relu(self.narrow(hidden_states)))


class Denoiser(torch.nn.Module):
    def __init__(self, width=WIDTH):
        super().__init__()
        torch.manual_seed(0)
        self.transformer_blocks = torch.nn.ModuleList(Block(width) for _ in range(2))

    def forward(self, hidden_states):
        for block in self.transformer_blocks:
            hidden_states = block(hidden_states=hidden_states)
        return hidden_states


SD3 = load_family("sd3")


class Family(type(SD3)):
    def stages(self, names):
        return [[n for n in names if n in ("to_q", "to_k")], *([n] for n in names if n not in ("to_q", "to_k"))]


def samples(outlier=30.0):
    inputs = torch.randn(24, 6, WIDTH, generator=torch.Generator().manual_seed(1))
    inputs[..., 5] *= outlier
    return {"hidden_states": inputs}


def method_of(solver="rtn", transforms=(HADAMARD,), bits=4, activations=None, **settings):
    entry = {"solver": {"name": solver, **settings}, "weights": {**INTEGER, "bits": bits}}
    entry |= {"transforms": list(transforms), "activations": activations}
    return complete_method(entry, "test", "m")


def run(method, given=None, denoiser=None):
    denoiser = denoiser or Denoiser()
    formats = {"weights": method["weights"], "activations": method["activations"]}
    names = [name for name, module in denoiser.named_modules() if isinstance(module, torch.nn.Linear)]
    allocation = dict.fromkeys(names, formats)
    return denoiser, *sequential.quantize(denoiser, Family(), allocation, method, given or samples(), batch=8)


def error(method, given=None):
    given = given or samples()
    with torch.no_grad():
        expected, found = Denoiser()(**given), run(method, given)[0](**given)
    return ((found - expected).norm() / expected.norm()).item()


SOLVERS = {
    "rtn": {}, "hqq": {}, "gptq": {"held_out": 0}, "qronos": {"held_out": 0},
    "brecq": {"held_out": 0, "iterations": 20, "batch_size": 4, "activation_iterations": 4},
}  # fmt: skip
ORDERS = {
    "alone": [HADAMARD],
    "unsigned": [{**HADAMARD, "signs": False, "block": 8}],
    "smoothed before": [SMOOTHING, HADAMARD],
    "smoothed after": [HADAMARD, SMOOTHING],
    "searched after": [HADAMARD, {**SMOOTHING, "alpha": "search", "grid": 4}],
    "branch after": [SMOOTHING, HADAMARD, LOW_RANK],
}


@pytest.mark.parametrize("order", ORDERS)
def test_in_eight_bits_the_model_computes_what_it_did(order):
    method = method_of(transforms=ORDERS[order], bits=8)
    assert error(method) < 0.02
    for report in run(method)[2].values():  # errors are those of the layers' outputs or weights, in their own space
        assert report["relative_error"] < 0.02


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("order", ["alone", "smoothed before", "branch after"])
def test_it_lowers_the_error_of_every_solver_where_four_bits_hold_an_outlier(solver, order):
    plain, rotated = (
        error(method_of(solver, transforms, activations={"bits": 4}, **SOLVERS[solver]))
        for transforms in ([], ORDERS[order])
    )
    assert rotated < 0.7 * plain


@pytest.mark.parametrize("activations", [None, {"bits": 8}, STATIC, {**STATIC, "symmetric": True}])
def test_a_block_solver_compares_with_rounding_that_knows_no_rotation(activations):
    rotated, plain = (
        run(method_of("brecq", transforms, activations=activations, **SOLVERS["brecq"]))[2]
        for transforms in ([HADAMARD], [])
    )
    name = "transformer_blocks.0.to_q"  # whose block has the same inputs in both
    assert rotated[name]["error_before"] == pytest.approx(plain[name]["error_before"], rel=1e-5)
    assert rotated[name]["relative_error"] != plain[name]["relative_error"]


def test_the_error_in_the_report_is_that_of_the_layer():
    given = samples()
    denoiser, _, reports = run(method_of("gptq", ORDERS["smoothed before"], held_out=0), given)
    name, inputs = "transformer_blocks.0.to_q", given["hidden_states"]
    expected = Denoiser().get_submodule(name)(inputs) - denoiser.get_submodule(name)(inputs)
    size = Denoiser().get_submodule(name)(inputs) - Denoiser().get_submodule(name).bias
    assert reports[name]["relative_error"] == pytest.approx((expected.norm() / size.norm()).item(), rel=1e-3)
    unsolved = run(method_of("rtn", ORDERS["smoothed before"]), given)
    values = QuantizedWeight.from_state(unsolved[1][name], load_format(INTEGER), WIDTH)
    folded = values.dequantize(load_format(INTEGER))
    weight = Denoiser().get_submodule(name).weight
    difference = rotation.unfolded(folded, 32, values.input_factor, None) - weight
    assert unsolved[2][name]["error_of"] == "weights"
    assert unsolved[2][name]["relative_error"] == pytest.approx((difference.norm() / weight.norm()).item(), rel=1e-3)


def test_what_comes_after_reads_the_rotated_inputs():
    given = samples()
    inputs, name = given["hidden_states"].flatten(0, 1), "transformer_blocks.0.to_q"
    weight, signs = Denoiser().get_submodule(name).weight.detach(), rotation.random_signs(WIDTH, 0)
    rotated, folded = rotation.rotated(inputs, 32, signs), rotation.folded(weight, 32, signs, None)
    state = run(method_of(transforms=[HADAMARD, SMOOTHING], activations=STATIC), given)[1][name]
    smoothing = (rotated.abs().amax(dim=0) / folded.abs().amax(dim=0)).sqrt()
    assert torch.allclose(state["rotated_factor"], 1 / smoothing, rtol=2**-8)
    assert torch.equal(state["input_factor"], signs) and state["rotation"].tolist() == [32]
    scaled = rotated * state["rotated_factor"]
    # The range is a running mean over batches of 8 samples.
    low = torch.stack([part.amin(dim=0) for part in scaled.split(8 * 6)]).amin()
    high = torch.stack([part.amax(dim=0) for part in scaled.split(8 * 6)]).amax()
    assert 0.7 * (high - low) / 255 < state["activation_scale"] <= (high - low) / 255 * 1.001
    before = run(method_of(transforms=[SMOOTHING, HADAMARD], activations=STATIC), given)[1][name]
    own = (inputs.abs().amax(dim=0) / weight.abs().amax(dim=0)).sqrt()
    assert torch.allclose(before["input_factor"] * signs, 1 / own, rtol=2**-8) and "rotated_factor" not in before


def test_inputs_are_observed_again_only_where_they_have_to_be(monkeypatch):
    needs, real = [], sequential.BlockActivations.observe

    def observe(self, block, plans, wanted, **options):
        needs.append((sorted(wanted), options.get("raw", False)))
        return real(self, block, plans, wanted, **options)

    monkeypatch.setattr(sequential.BlockActivations, "observe", observe)
    run(method_of("gptq", [HADAMARD], held_out=0))
    assert needs and not any(raw for _, raw in needs)
    needs.clear()
    run(method_of("rtn", [SMOOTHING, HADAMARD, LOW_RANK], activations=STATIC))
    assert needs[:2] == [(["maximum"], True), (["hessian", "range"], True)]


def test_layers_of_an_odd_number_of_inputs_are_left_out_and_counted(capsys):
    _, states, reports = run(method_of())
    assert "hadamard leaves 2 of 10 layers as they are (odd numbers of inputs: 2).\n" in capsys.readouterr().err
    odd = "transformer_blocks.1.wide"
    assert "rotation" not in states[odd] and "input_factor" not in states[odd] and "hadamard_block" not in reports[odd]
    assert {reports[name]["hadamard_block"] for name in reports if not name.endswith("wide")} == {32}
    assert {"rotation", "input_factor"} <= set(reports["transformer_blocks.1.to_q"]["parts"])


def test_a_model_without_a_layer_for_it_is_refused():
    transform = registry.load("transforms", "hadamard").Transform(block=256, signs=True, seed=0, fold=False)
    assert transform.left_out({"a": 0, "b": 77, "c": 64}) == (
        "hadamard leaves 2 of 3 layers as they are (convolutions: 1, odd numbers of inputs: 1)."
    )
    with pytest.raises(DataError, match=r"'hadamard' .* none \(convolutions: 1, odd numbers of inputs: 1\); drop it"):
        transform.left_out({"a": 0, "b": 77})


def test_a_stored_layer_comes_back():
    denoiser, states, _ = run(method_of(transforms=ORDERS["branch after"], activations={"bits": 8}))
    name, inputs = "transformer_blocks.1.to_out", torch.randn(5, WIDTH)
    state = {part: tensor.clone() for part, tensor in states[name].items()}
    quantized = QuantizedWeight.from_state(state, load_format(INTEGER), WIDTH)
    settings = {"bits": 8, "granularity": "token", "dynamic": True, "symmetric": True}
    bias = denoiser.get_submodule(name).bias
    built = SimulatedLinear.build(quantized, load_format(INTEGER), settings, bias, torch.float32)
    assert torch.equal(built(inputs), denoiser.get_submodule(name)(inputs))


def test_the_schema_completes_and_refuses():
    assert method_of()["transforms"] == [{"name": "hadamard", "block": 256, "signs": True, "seed": 0, "fold": False}]
    with pytest.raises(ConfigurationError, match=r"m\.transforms\.0\.block: 96 is none of 2, 4, 8, 16, .* 4096"):
        method_of(transforms=[{**HADAMARD, "block": 96}])
    with pytest.raises(ConfigurationError, match="'low-rank' splits what the others leave; put it last"):
        method_of(transforms=[LOW_RANK, HADAMARD])
    with pytest.raises(ConfigurationError, match="write hadamard"):
        method_of(transforms=[{"name": "quarot"}])
    assert not json.loads((registry.SCHEMAS / "transforms/hadamard.schema.json").read_text()).get("x-needs-calibration")
