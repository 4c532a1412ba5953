"""Layers exported for external solvers, and the results that are read back."""

import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file

import export_layers
import solve_layers
from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.config import experiment
from quantwatt.formats.quantized_weight import load_format, quantize_to_nearest
from quantwatt.models.families import load_family
from quantwatt.quantize import calibration, exchange, solvers
from quantwatt.quantize.observers import Observers
from quantwatt.quantize.solvers import ExternalSolver, gptq

MODEL = experiment.load_experiment("embedded")["models"]["tiny-sd3"]
WEIGHTS = {"format": "integer", "bits": 4, "granularity": "group", "group_size": 64, "symmetric": False,
           "narrow": True, "zero_point": "integer", "clip_search": False}  # fmt: skip
SOLVER = {"name": "auto-gptq", "damping": 0.01, "act_order": True, "static_groups": True}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ill_conditioned(tokens=500):
    return random(tokens, 64) @ torch.diag(torch.logspace(-4, 0, 64)) @ random(64, 64, seed=1)


def dead(tokens=500):
    inputs = random(tokens, 64)
    inputs[:, [3, 40]] = 0
    return inputs


@pytest.mark.parametrize(
    "inputs",
    [random(500, 64), ill_conditioned(), random(20, 64), dead(), dead(20), random(500, 8) @ random(8, 64, seed=1)],
    ids=["full-rank", "ill-conditioned", "few-tokens", "dead-columns", "few-tokens-dead-columns", "dependent-columns"],
)
def test_equivalent_inputs_have_the_same_sum_of_products(inputs):
    gram = inputs.double().T @ inputs.double()
    rows = exchange.equivalent_inputs(gram)
    assert rows.dtype == torch.float32 and len(rows) <= min(64, len(inputs))
    assert (rows.double().T @ rows.double() - gram).norm() < 1e-6 * gram.norm()
    assert torch.equal((rows == 0).all(dim=0), (inputs == 0).all(dim=0))


def test_a_layer_that_is_fed_zeros_has_one_row_of_zeros():
    assert torch.equal(exchange.equivalent_inputs(torch.zeros(8, 8)).unique(), torch.zeros(1))


@pytest.mark.parametrize("act_order", [False, True])
def test_equivalent_inputs_solve_to_the_same_codes(act_order):
    """Their number scales the Hessian, and damping goes with its mean diagonal."""
    inputs, weight = random(700, 128) @ random(128, 128, seed=1), random(32, 128, seed=2)
    rows = exchange.equivalent_inputs(inputs.T @ inputs)
    settings = {"damping": 0.01, "act_order": act_order, "static_groups": True, "block_size": 128}
    solved = []
    for seen in (inputs, rows):
        statistics = Observers.new(("hessian",), 128)
        statistics.observe(seen)
        solved.append(gptq.Solver(**settings).solve(weight, load_format(WEIGHTS), statistics).weight.codes)
    assert (solved[0] == solved[1]).float().mean() > 0.999
    assert (solved[0] == quantize_to_nearest(weight, load_format(WEIGHTS)).codes).float().mean() < 0.9


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The embedded model's layers, exported by the script from six random samples; ("manifest.json", samples)."""
    folder, family = tmp_path_factory.mktemp("exported"), load_family("sd3")
    location = experiment.ROOT / MODEL["path"]
    layers = family.quantizable(family.meta_denoiser(location))
    model = {"model": "tiny-sd3", "settings": MODEL, "location": MODEL["path"], "layers": layers, "files": {}}
    manifest.write_json(folder / "model.json", model)
    samples = {
        "hidden_states": random(6, 4, 16, 16),
        "encoder_hidden_states": random(6, 20, 128),
        "pooled_projections": random(6, 128),
        "timestep": torch.linspace(1, 999, 6),
    }
    samples = {name: tensor.to(getattr(torch, MODEL["dtype"])) for name, tensor in samples.items()}
    calibration.save(
        folder / "calibration", samples, [{}] * 6, {"calibration": {"batch_size": 4}, "cost": {"seconds": 1.0}}
    )
    export_layers.main(
        ["--model", str(folder / "model.json"), "--calibration", str(folder / "calibration/manifest.json"),
         "--output", str(folder / "exchange/manifest.json")]
    )  # fmt: skip
    return folder / "exchange/manifest.json", samples


def test_every_layer_is_exported_with_the_float_models_inputs(exported):
    path, samples = exported
    family = load_family("sd3")
    denoiser = family.load_denoiser(MODEL, experiment.ROOT / MODEL["path"])
    seen = {name: [] for name in family.quantizable(denoiser)}
    for name, inputs in seen.items():
        hook = lambda module, args, inputs=inputs: inputs.append(args[0].flatten(0, -2).double())  # noqa: E731
        denoiser.get_submodule(name).register_forward_pre_hook(hook)
    with torch.no_grad():
        for part in (slice(0, 4), slice(4, 6)):  # the batches of the export
            denoiser(**{name: tensor[part] for name, tensor in samples.items()})
    found = manifest.read_json(path)
    manifest.verify_files(path, found["files"])
    assert found["layers"].keys() == {name for name, inputs in seen.items() if inputs}
    for name, layer in found["layers"].items():
        inputs = torch.cat(seen[name])
        rows = load_file(path.parent / layer["inputs"])["inputs"].double()
        assert (rows.T @ rows - inputs.T @ inputs).norm() < 1e-5 * (inputs.T @ inputs).norm(), name
        assert layer["tokens"] == len(inputs)
        weight = load_file(path.parent / layer["weight"])["weight"]
        assert weight.dtype == torch.float32 and torch.equal(weight, denoiser.get_submodule(name).weight.float())


def test_layers_of_one_input_share_its_file(exported):
    layers = manifest.read_json(exported[0])["layers"]
    first = "transformer_blocks.0.attn"
    assert len({layers[f"{first}.{name}"]["inputs"] for name in ("to_q", "to_k", "to_v")}) == 1
    assert layers[f"{first}.to_q"]["inputs"] != layers[f"{first}.add_q_proj"]["inputs"]
    assert layers[f"{first}.to_q"]["inputs"] != layers["transformer_blocks.1.attn.to_q"]["inputs"]


def test_inputs_that_are_not_finite_are_refused(tmp_path):
    class Family(type(load_family("sd3"))):
        def blocks(self, denoiser):
            return ["0"]

        def quantizable(self, denoiser):
            return ["0.proj"]

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = torch.nn.Linear(4, 4)

        def forward(self, inputs):
            return self.proj(inputs)

    class Denoiser(torch.nn.Sequential):
        def forward(self, x):
            return self[0](inputs=x)

    samples = {"x": torch.full((2, 3, 4), float("inf"))}
    with pytest.raises(DataError, match="0.proj: its inputs are not finite"):
        exchange.export_layers(Denoiser(Block()), Family(), samples, 1, tmp_path)


@dataclass(frozen=True, kw_only=True)
class Nearest(ExternalSolver):
    """A library's solver that rounds to nearest, and fails as often as it is told to."""

    DAMPING_TRIES: ClassVar = 4

    failures: int = 0
    seen: list = field(default_factory=list)

    def read(self, folder, layer):
        return exchange.read(folder, layer)

    def solve_layer(self, weight, inputs, weights):
        self.seen.append(self.damping)
        if len(self.seen) <= self.failures:
            raise torch.linalg.LinAlgError("not positive-definite")
        quantized = quantize_to_nearest(weight, load_format(weights))
        g_idx = torch.arange(weight.shape[1]) // weights["group_size"]
        values = quantized.dequantize(load_format(weights))
        zero = torch.full_like(quantized.scale, 8) if quantized.zero is None else quantized.zero.float()
        return values, quantized.scale, zero, g_idx, self.damping


def nearest(**options):
    return Nearest.from_settings({**SOLVER, **options})


def solve(path, folder, monkeypatch, solver=None, **weights):
    """`solve_layers.py` on one exported layer, with the library replaced by `solver` or missing; its manifest."""
    names = list(manifest.read_json(path)["layers"])[:2]
    allocation = {name: {"weights": {**WEIGHTS, **weights}, "activations": None} for name in names}
    manifest.write_json(folder / "allocation.json", allocation)
    installed = SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: solver))
    monkeypatch.setattr(solve_layers, "importlib", installed)
    monkeypatch.setattr(solvers, "load_solver", lambda settings: solver)
    solve_layers.main(
        ["--backend", "auto-gptq", "--exchange", str(path), "--allocation", str(folder / "allocation.json"),
         "--solver", json.dumps(SOLVER), "--output", str(folder / "solved/manifest.json")]
    )  # fmt: skip
    return manifest.read_json(folder / "solved/manifest.json")


@pytest.mark.parametrize("grid", [{}, {"symmetric": True, "narrow": False}, {"bits": 3}])
def test_solved_layers_come_back_as_they_were(exported, tmp_path, monkeypatch, grid):
    report = solve(exported[0], tmp_path, monkeypatch, nearest(), **grid)
    assert report["status"] == "ok" and len(report["layers"]) == 2
    for name, layer in report["layers"].items():
        assert layer["damping"] == 0.01 and layer["fallback"] is None and layer["seconds"] > 0
        weight = load_file(exported[0].parent / f"{name}.safetensors")["weight"]
        expected = quantize_to_nearest(weight, load_format({**WEIGHTS, **grid}))
        assert layer["error_before"] == pytest.approx(layer["relative_error"]) and 0 < layer["relative_error"] < 0.3
        found = exchange.read(tmp_path / "solved", name)
        assert torch.equal(found.codes, expected.codes) and torch.equal(found.scale, expected.scale)
        assert found.group_index is None
        assert found.zero is None if grid.get("symmetric") else torch.equal(found.zero, expected.zero)


def test_a_missing_library_is_a_result(exported, tmp_path, monkeypatch):
    report = solve(exported[0], tmp_path, monkeypatch)
    assert report["status"] == "unsupported"
    assert report["reason"] == "auto-gptq is not installed here: run with --sdm conda, or make backends"


def test_damping_is_raised_where_the_library_gives_up(exported, tmp_path, monkeypatch):
    report = solve(exported[0], tmp_path, monkeypatch, nearest(failures=2))
    first, second = report["layers"].values()
    assert first["damping"] == pytest.approx(1) and first["fallback"] == "damping"
    assert second["damping"] == 0.01 and second["fallback"] is None
    report = solve(exported[0], tmp_path, monkeypatch, nearest(failures=4))
    name, first = next(iter(report["layers"].items()))
    assert (first["damping"], first["fallback"]) == (None, "rtn") and first["relative_error"] == first["error_before"]
    assert exchange.read(tmp_path / "solved", name).codes.shape[0] > 0


def test_a_layer_that_was_not_solved_or_is_corrupted_is_refused(exported, tmp_path, monkeypatch):
    name = next(iter(solve(exported[0], tmp_path, monkeypatch, nearest())["layers"]))
    with pytest.raises(DataError, match="'nothing' was not solved"):
        exchange.read(tmp_path / "solved", "nothing")
    file = tmp_path / f"solved/{name}.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="sha256"):
        exchange.read(tmp_path / "solved", name)


def test_columns_out_of_order_keep_their_groups(tmp_path):
    g_idx = torch.tensor([1, 0, 0, 1])
    scale, zero = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 3.0]])
    exchange.write_solved(tmp_path / "a.safetensors", torch.tensor([[-6.0, 5, 0, 2]]), scale, zero, g_idx, False, 4)
    manifest.write_json(tmp_path / "manifest.json", {"files": manifest.describe_files(tmp_path, ["a.safetensors"])})
    found = exchange.read(tmp_path, "a")
    assert found.codes.tolist() == [[0, 5, 0, 4]] and found.group_index.tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("values", [[[0.5, 5, 0, 2]], [[16.0, 5, 0, 2]], [[-1.0, 5, 0, 2]]])
def test_a_weight_off_its_grid_is_a_bug(tmp_path, values):
    scale, zero, g_idx = torch.ones(1, 1), torch.zeros(1, 1), torch.zeros(4, dtype=torch.int32)
    with pytest.raises(ValueError, match="does not lie on the 4-bit grid"):
        exchange.write_solved(tmp_path / "a.safetensors", torch.tensor(values), scale, zero, g_idx, False, 4)
