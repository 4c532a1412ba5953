"""Solvers against recorded results of auto-gptq, gptqmodel and brevitas on the same layers (tests/peers)."""

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from quantwatt.artifacts import manifest
from quantwatt.formats.quantized_weight import load_format, quantize_to_nearest
from quantwatt.quantize.solvers import auto_gptq, gptq, gptqmodel, qronos

ROOT = Path(__file__).parents[2]
PEERS = ROOT / "tests/peers"
LAYERS = {name: tensor.float() for name, tensor in load_file(PEERS / "layers.safetensors").items()}
BACKENDS = {"auto-gptq": auto_gptq, "gptqmodel": gptqmodel}


def recording(name):
    """[(settings, {part: tensor})] of a file in tests/peers."""
    with safe_open(PEERS / f"{name.replace('-', '_')}.safetensors", "pt") as file:
        recorded = [(chosen, {}) for chosen in json.loads(file.metadata()["settings"])]
        for key in file.keys():  # noqa: SIM118  (no mapping, but a file)
            index, part = key.split(".")
            recorded[int(index)][1][part] = file.get_tensor(key)
    return recorded


def cases(name):
    """The recording's rows as pytest parameters that are named by their settings."""
    for chosen, recorded in recording(name):
        words = [name, f"{chosen['bits']}-bits"]
        words += [f"{key}-{chosen[key]}" for key in ("group_size", "damping", "alpha") if chosen.get(key)]
        words += [key for key in ("symmetric", "act_order", "static_groups", "clip_search") if chosen.get(key)]
        yield pytest.param(chosen, recorded, id="-".join(words))


def format_of(chosen):
    """The libraries' integer grid: their symmetric one is not narrow."""
    return {
        "format": "integer",
        "bits": chosen["bits"],
        "granularity": "group" if chosen["group_size"] else "channel",
        "group_size": chosen["group_size"],
        "symmetric": chosen["symmetric"],
        "narrow": False,
        "zero_point": "integer",
        "clip_search": chosen["clip_search"],
    }


def solution_of(chosen, recorded):
    """(integers, scale, zero, group of each column) of a recorded gptq."""
    codes, columns = recorded["codes"], LAYERS["gptq.weight"].shape[1]
    if chosen["bits"] <= 4:
        codes = torch.stack([codes & 15, codes >> 4], dim=2).flatten(1)
    group = recorded.get("g_idx", torch.arange(columns) // (chosen["group_size"] or columns)).long()
    return codes, recorded["scale"], recorded["zero"], group


def mean_product(first, second):
    return 2 * first.T @ second / len(first)


@pytest.mark.parametrize(("chosen", "recorded"), [*cases("auto-gptq"), *cases("gptqmodel")])
def test_gptq_equals_the_libraries(chosen, recorded):
    weight, inputs = LAYERS["gptq.weight"], LAYERS["gptq.inputs"]
    weight_format = load_format(format_of(chosen))
    codes, scale, zero, group = solution_of(chosen, recorded)
    settings = {key: chosen[key] for key in ("damping", "act_order", "static_groups")} | {"block_size": 128}
    statistics = SimpleNamespace(hessian=SimpleNamespace(value=mean_product(inputs, inputs)))
    solved = gptq.Solver(**settings).solve(weight, weight_format, statistics).weight

    def error(value):
        return (inputs.double() @ (weight - value).double().T).norm().item()

    theirs = (codes.float() - zero[:, group]) * scale[:, group]
    assert (solved.codes == codes).float().mean() >= 0.999
    assert error(solved.dequantize(weight_format)) == pytest.approx(error(theirs), rel=1e-3)
    torch.testing.assert_close(solved.scale, scale, rtol=1e-4, atol=0)
    if solved.zero is not None:
        assert (solved.zero == zero).float().mean() >= 0.99
    if solved.group_index is not None:
        assert torch.equal(solved.group_index.long(), group)
    elif "g_idx" in recorded:
        assert torch.equal(torch.arange(len(group)) // chosen["group_size"], group)
    # What these bounds would not let pass.
    nearest = quantize_to_nearest(weight, weight_format)
    assert (nearest.codes == codes).float().mean() < 0.99
    assert error(nearest.dequantize(weight_format)) > 1.05 * error(theirs)


@pytest.mark.parametrize(("chosen", "recorded"), cases("brevitas-qronos"))
def test_qronos_equals_brevitas(chosen, recorded):
    weight, reference, inputs = (LAYERS[f"qronos.{name}"] for name in ("weight", "reference", "inputs"))
    weight_format = load_format(
        {"format": "integer", "bits": chosen["bits"], "granularity": "channel", "group_size": None, "symmetric": True}
    )
    statistics = SimpleNamespace(
        hessian=SimpleNamespace(value=mean_product(inputs, inputs)),
        cross=SimpleNamespace(value=mean_product(inputs, reference), float_value=mean_product(reference, reference)),
    )
    settings = {"act_order": chosen["act_order"], "static_groups": True, "block_size": 128}
    solved = qronos.Solver(alpha=chosen["alpha"], **settings).solve(weight, weight_format, statistics).weight
    codes = recorded["codes"].int() + 2 ** (chosen["bits"] - 1)

    def error(value):
        return (reference.double() @ weight.double().T - inputs.double() @ value.double().T).norm().item()

    assert (solved.codes == codes).float().mean() >= 0.999
    assert error(solved.dequantize(weight_format)) == pytest.approx(
        error(recorded["codes"] * recorded["scale"]), rel=1e-3
    )
    torch.testing.assert_close(solved.scale, recorded["scale"])
    for other in (
        quantize_to_nearest(weight, weight_format),
        gptq.Solver(damping=0.01, **settings).solve(weight, weight_format, statistics).weight,
    ):
        assert (other.codes == codes).float().mean() < 0.9


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_solving_through_files_equals_the_recordings(backend, tmp_path):
    """solve_layers.py in the library's own environment, every recorded setting."""
    python = ROOT / f".venvs/{backend}/bin/python"
    if not python.exists():
        pytest.skip("make backends has not run")
    exchange, columns = tmp_path / "exchange", LAYERS["gptq.weight"].shape[1]
    exchange.mkdir()
    files = {"weight": "layer.safetensors", "inputs": "layer.inputs.safetensors"}
    for part, name in files.items():
        save_file({part: LAYERS[f"gptq.{part}"]}, exchange / name)
    runs = {}  # one start of the library for all layers with the same solver settings
    for index, (chosen, recorded) in enumerate(recording(backend)):
        solver = {"name": backend} | {key: chosen[key] for key in ("damping", "act_order", "static_groups")}
        runs.setdefault(json.dumps(solver), {})[f"layer{index}"] = chosen, recorded
    for solver, rows in runs.items():
        allocation = {name: {"weights": format_of(chosen), "activations": None} for name, (chosen, _) in rows.items()}
        manifest.write_json(tmp_path / "allocation.json", allocation)
        described = manifest.describe_files(exchange, files.values())
        exported = {"seconds": 1.0, "calibration": None, "layers": dict.fromkeys(rows, files), "files": described}
        manifest.write_json(exchange / "manifest.json", exported)
        command = [python, "workflow_scripts/solve_layers.py", "--backend", backend, "--solver", solver]
        command += ["--exchange", exchange / "manifest.json", "--allocation", tmp_path / "allocation.json"]
        command += ["--output", tmp_path / "solved/manifest.json"]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
        report = manifest.read_json(tmp_path / "solved/manifest.json")
        assert report["status"] == "ok" and report["provenance"]["versions"][backend]
        for name, (chosen, recorded) in rows.items():
            assert report["layers"][name]["damping"] == chosen["damping"]
            found = BACKENDS[backend].read(tmp_path / "solved", name)
            codes, scale, zero, group = solution_of(chosen, recorded)
            assert (found.codes == codes).float().mean() >= 0.999
            torch.testing.assert_close(found.scale, scale, rtol=1e-4, atol=0)
            assert found.zero is None if chosen["symmetric"] else (found.zero == zero).float().mean() >= 0.99
            columns_group = torch.arange(columns) // (chosen["group_size"] or columns)
            assert torch.equal(columns_group if found.group_index is None else found.group_index.long(), group)
