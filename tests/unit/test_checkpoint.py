"""Quantize the embedded model, save it, load it to compute with its formats' kernels, and damage its files."""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import preloaded
import pytest
import torch
from safetensors.torch import load_file, save_file

import model as model_rule
import share_weights
from quantwatt.allocate.allocation import allocate
from quantwatt.artifacts import checkpoint_files, manifest
from quantwatt.artifacts.errors import DataError, Unsupported
from quantwatt.config import experiment
from quantwatt.inference import checkpoint, kernel_choice
from quantwatt.inference.kernels import unpacked
from quantwatt.models import splits
from quantwatt.models.families import load_family
from quantwatt.models.sampling import Calibration, Drawing
from quantwatt.quantize import calibration, sequential
from quantwatt.quantize.streams import BlockActivations

ROOT = Path(__file__).parents[2]
METHODS = experiment.load_experiment("embedded")["methods"]
MODEL = experiment.load_experiment("embedded")["models"]["tiny-sd3"]
LOCATION = str(ROOT / MODEL["path"])
SAMPLING = Drawing(steps=2, guidance=2.0, height=64, width=64)
WEIGHTS = "weights.safetensors"  # of a checkpoint in one file
PROMPTS = ["a large red circle on a white background", "a small blue square on a black background"]


@pytest.fixture(scope="module")
def family():
    return load_family("sd3")


@pytest.fixture(scope="module")
def layers(family):
    denoiser = family.meta_denoiser(LOCATION)
    return {
        name: {"in_features": (layer := denoiser.get_submodule(name)).in_features, "out_features": layer.out_features}
        for name in family.quantizable(denoiser)
    }


@pytest.fixture(scope="module")
def samples(family):
    pipeline = family.load(MODEL, LOCATION)
    more = {"prompts": "", "batch_size": 2, "timesteps": 2, "timesteps_per_prompt": 1, "seed": 7}
    settings = Calibration.from_settings(SAMPLING.to_settings() | more)
    return calibration.record(family, pipeline, PROMPTS * 2, settings)


def quantize(method, family, layers, samples=None):
    denoiser = family.load_denoiser(MODEL, LOCATION)
    allocation = allocate(layers, METHODS[method], method)
    return denoiser, *sequential.quantize(denoiser, family, allocation, METHODS[method], samples, batch=8)


def save(folder, denoiser, quantized, reports, location=LOCATION):
    details = {"status": "ok", "reason": None, "model_settings": MODEL, "location": location}
    checkpoint_files.save(folder, denoiser, quantized, reports, details)
    return folder / "manifest.json"


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """The folder of the embedded model with its first and its last block alone."""
    folder = tmp_path_factory.mktemp("short") / "model"
    shutil.copytree(LOCATION, folder)
    config = manifest.read_json(folder / "transformer/config.json")
    manifest.write_json(folder / "transformer/config.json", config | {"num_layers": 2})
    path = folder / "transformer/diffusion_pytorch_model.safetensors"
    last = f"transformer_blocks.{config['num_layers'] - 1}."
    middle = tuple(f"transformer_blocks.{block}." for block in range(1, config["num_layers"] - 1))
    kept = {name: tensor for name, tensor in load_file(path).items() if not name.startswith(middle)}
    save_file({name.replace(last, "transformer_blocks.1."): kept[name] for name in kept}, path, {"format": "pt"})
    return str(folder)


@pytest.fixture(scope="module")
def nf4(tmp_path_factory, family, layers):
    return save(tmp_path_factory.mktemp("nf4"), *quantize("nf4", family, layers))


def test_calibration_covers_both_branches_and_rotates_timesteps(samples):
    tensors, rows = samples
    assert len(rows) == 4 * 2 == len(tensors["hidden_states"])  # four prompts, one stratum each, two branches
    assert {row["branch"] for row in rows} == {0, 1}
    assert [row["step"] for row in rows if row["branch"] == 0] == [0, 1, 0, 1]
    first = [i for i, row in enumerate(rows) if row["prompt"] == 0]
    texts = tensors["encoder_hidden_states"][first]
    assert torch.equal(tensors["hidden_states"][first[0]], tensors["hidden_states"][first[1]])
    assert not torch.equal(texts[0], texts[1])  # the unconditional branch has another text


def test_strata_are_middles_and_rotate():
    assert calibration.strata(20, 10) == list(range(1, 20, 2))
    assert calibration.strata(4, 10) == [0, 1, 2, 3]
    chosen = calibration.strata(20, 10)
    assert [calibration.strata_of_prompt(i, chosen, 2) for i in (0, 1, 5)] == [[1, 11], [3, 13], [1, 11]]


def test_sequential_gptq_beats_rounding_on_the_denoisers_output(family, layers, samples):
    tensors, _ = samples
    reference = family.load_denoiser(MODEL, LOCATION)
    errors = {}
    for method in ("gptq-w3", "rtn-w3"):
        denoiser, _, reports = quantize(method, family, layers, tensors)
        with torch.no_grad():
            truth, found = (model(**tensors, return_dict=False)[0].float() for model in (reference, denoiser))
        errors[method] = ((found - truth).norm() / truth.norm()).item()
        assert set(reports) == set(layers)
    assert errors["gptq-w3"] < 0.8 * errors["rtn-w3"]


def test_layers_fed_by_one_tensor_are_found(family, layers, samples):
    denoiser = family.load_denoiser(MODEL, LOCATION)
    found = BlockActivations(denoiser, family, samples[0], 8)
    prefix = "transformer_blocks.0."
    names = [name.removeprefix(prefix) for name in layers if name.startswith(prefix)]
    with torch.no_grad():
        groups = found.sharing(denoiser.get_submodule("transformer_blocks.0"), names)
    assert ["attn.to_q", "attn.to_k", "attn.to_v"] in groups
    assert {"attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"} in [set(group) for group in groups]
    assert sorted(name for group in groups for name in group) == sorted(names)


def test_checkpoint_has_the_formats_size(nf4, layers):
    details = manifest.read_json(nf4)
    quantized = sum(layer["in_features"] * layer["out_features"] for layer in layers.values())
    rest = details["size_bytes"] - quantized * 4.5 / 8  # 4 bits and a float32 scale per 64
    whole = (Path(LOCATION) / "transformer/diffusion_pytorch_model.safetensors").stat().st_size
    # What is not quantized, in float32 where the model's own file has bfloat16, and the header.
    assert 0 < rest < 2 * (whole - 2 * quantized) + 100_000


def test_a_compiled_method_computes_the_same_and_says_so(tmp_path, monkeypatch, short):
    monkeypatch.setitem(checkpoint.COMPILE, "cpu", {"backend": "aot_eager"})  # inductor takes a minute
    pipelines = {}
    for compiled in (False, True):
        details = {"status": "ok", "model_settings": MODEL, "location": short, "settings": {"compile": compiled}}
        manifest.write_json(tmp_path / f"{compiled}.json", {**details, "files": {}, "layers": {}})
        pipelines[compiled] = checkpoint.load_pipeline(tmp_path / f"{compiled}.json")
    assert [pipelines[key].kernel for key in (False, True)] == ["torch linear", "torch linear, compiled"]
    assert checkpoint.compute_of(tmp_path / "True.json", "cpu") == ("real", "torch linear, compiled", None)
    torch._dynamo.utils.counters.clear()
    images = [pipelines[key].generate(PROMPTS[:1], [0], replace(SAMPLING, steps=1)) for key in (False, True)]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert np.abs(images[0].astype(float) - images[1]).mean() < 1  # of 255


def test_loading_says_what_computes_how_many_layers(nf4, monkeypatch, capsys, layers):
    checkpoint.load_pipeline(nf4)
    [said] = [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"{nf4.parent} on cpu: ")]
    assert f": {len(layers)} layers by {unpacked.NAME}, " in said and said.endswith(" unquantized in float32")
    monkeypatch.setattr(kernel_choice, "KERNELS", {"cpu": {}})
    reason = f"no kernel computes nf4 W4A16 on cpu (layer {next(iter(layers))} and {len(layers) - 1} more)"
    with pytest.raises(Unsupported, match="simulate=True") as caught:
        checkpoint.load_pipeline(nf4)
    assert reason in str(caught.value)
    checkpoint.load_pipeline(nf4, simulate=True)
    assert f"{nf4.parent} on cpu: simulated, {reason}\n" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["rtn-w8a8", "nf4"])
def test_real_compute_agrees_with_the_simulation(tmp_path, monkeypatch, family, layers, method):
    path = save(tmp_path, *quantize(method, family, layers))
    real = checkpoint.load_pipeline(path, simulate=True)
    assert real.compute == "real" and real.kernel
    linear = dict(real.pipeline.transformer.named_modules())["transformer_blocks.0.attn.to_q"]
    assert not isinstance(linear, torch.nn.Linear)
    assert not [p for p in linear.parameters() if p.is_floating_point() and p.numel() > 1000]  # no float weight left
    monkeypatch.setattr(kernel_choice, "KERNELS", {"cpu": {}})
    simulated = checkpoint.load_pipeline(path, simulate=True)
    assert simulated.compute == "simulated" and "no kernel" in simulated.reason
    first, second = (p.generate(PROMPTS, [0, 1], SAMPLING).astype(float) for p in (real, simulated))
    assert np.abs(first - second).mean() < 2  # of 255: bf16 rounding in another order
    assert np.abs(first - second).max() > 0 or method == "nf4"


INTEGER = {"format": "integer", "bits": 4}
STATIC = {"bits": 8, "granularity": "tensor", "dynamic": False, "symmetric": False}
KINDS = {
    "qronos": {"solver": {"name": "qronos"}, "weights": {**INTEGER, "bits": 3}},
    "brecq": {
        "solver": {"name": "brecq", "iterations": 3, "batch_size": 2, "activation_iterations": 2},
        "weights": {**INTEGER, "bits": 2, "clip_search": True},
        "activations": STATIC,
    },
    "hqq": {
        "solver": {"name": "hqq"},
        "weights": {**INTEGER, "granularity": "group", "group_size": 64, "zero_point": "float"},
    },
    "gptq-dynamic-groups": {
        "solver": {"name": "gptq", "static_groups": False},
        "weights": {**INTEGER, "granularity": "group", "group_size": 48},
    },
    "svdquant": {
        "weights": INTEGER,
        "activations": {"bits": 4},
        "transforms": [{"name": "segments"}, {"name": "smoothing"}, {"name": "low-rank", "rank": 4, "iterations": 2}],
    },
    "smooth-int8": {
        "weights": {**INTEGER, "bits": 8, "symmetric": True},
        "activations": {"bits": 8, "granularity": "tensor", "dynamic": False},
        "transforms": [{"name": "smoothing"}, {"name": "low-rank", "rank": 2, "iterations": 1}],
    },
    "rotated": {
        "solver": {"name": "gptq"},
        "weights": {**INTEGER, "granularity": "group", "group_size": 64},
        "activations": {"bits": 8},
        "transforms": [{"name": "smoothing"}, {"name": "hadamard"}, {"name": "low-rank", "rank": 2, "iterations": 1}],
    },
    "nf4-gptq": {"solver": {"name": "gptq"}, "weights": {"format": "nf4"}},
    "nvfp4-gptq": {
        "solver": {"name": "gptq"},
        "weights": {"format": "nvfp4"},
        "activations": {"format": "nvfp4", "dynamic": False},
        "transforms": [{"name": "smoothing"}],
    },
    "float8-qronos": {
        "solver": {"name": "qronos"},
        "weights": {"format": "float8", "granularity": "block"},
    },
    "mxfp6-brecq": {
        "solver": {"name": "brecq", "iterations": 3, "batch_size": 2, "activation_iterations": 2},
        "weights": {"format": "mxfp6"},
        "activations": {"format": "float8", "granularity": "tensor", "dynamic": False},
    },
    "llm-int8": {"weights": {"format": "bitsandbytes-int8"}},
    "torchao": {"weights": {"format": "torchao", "configuration": "int8-weight-only"}},
    "quanto": {"weights": {"format": "quanto", "weights": "qint4"}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_checkpoint_comes_back_bit_for_bit(tmp_path, monkeypatch, family, short, samples, kind):
    method = experiment.complete_method(KINDS[kind], "test", kind)
    layers = model_rule.describe(family, short, "bfloat16")["layers"]
    allocation = allocate(layers, method, kind)
    denoiser = family.load_denoiser(MODEL, short)
    splits.split(denoiser, splits.of_layers(layers, allocation))
    tensors = samples[0]
    states, reports = sequential.quantize(denoiser, family, allocation, method, tensors, batch=4)
    path = save(tmp_path, denoiser, states, reports, short)
    with torch.no_grad():
        before = denoiser(**tensors, return_dict=False)[0]
        monkeypatch.setattr(kernel_choice, "KERNELS", {"cpu": {}})  # as quantizing left it: simulated
        after = checkpoint.load_pipeline(path, simulate=True).pipeline.transformer(**tensors, return_dict=False)[0]
    assert torch.equal(before, after)
    monkeypatch.undo()
    real = checkpoint.load_pipeline(path, simulate=True)
    float_inputs = "format" in (method["activations"] or {})  # no kernel takes them
    assert real.compute == ("simulated" if float_inputs else "real") or kind == "llm-int8"
    with torch.no_grad():
        computed = real.pipeline.transformer(**tensors, return_dict=False)[0]
    # Other kernels round in another order, and now and then an input of few bits then falls to the next step.
    bound = 0.15 if kind == "svdquant" else 0.05
    assert (computed - before).float().norm() < bound * before.float().norm()


@pytest.mark.parametrize("method", ["nf4", "rtn-w8a8", "rtn-w3"])
def test_fresh_process_gives_the_same_bits_in_three_lines(family, layers, tmp_path, method):
    path, out = save(tmp_path, *quantize(method, family, layers)), tmp_path / "images.npy"
    program = tmp_path / "program.py"
    program.write_text(
        "from quantwatt import load_pipeline\n"
        f"pipeline = load_pipeline({str(path.parent)!r})\n"
        f"images = pipeline.generate({PROMPTS!r}, seeds=[0, 1], steps=2, guidance=2.0)\n"
        f"import numpy; numpy.save({str(out)!r}, images)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow_scripts")}
    subprocess.run([preloaded.jobs().python, program], check=True, env=environment, capture_output=True)
    here = checkpoint.load_pipeline(path).generate(PROMPTS, [0, 1], SAMPLING)
    assert np.array_equal(np.load(out), here)


def test_a_cached_method_draws_with_the_weights_of_another_and_they_take_no_place(family, layers, tmp_path):
    made = manifest.read_json(save(tmp_path / "made", *quantize("rtn-w8a8", family, layers)))
    manifest.write_json(tmp_path / "made/manifest.json", made | {"method": "plain", "settings": METHODS["rtn-w8a8"]})
    images = {}
    for threshold in (0, 100):
        entry = {"cache": {"name": "first-block", "threshold": threshold}, "steps": 3}
        method, output = METHODS["rtn-w8a8"] | entry, tmp_path / "cached/manifest.json"
        share_weights.main(
            ["--weights", str(tmp_path / "made/manifest.json"), "--method-name", "cached", "--method",
             json.dumps(method), "--output", str(output)]
        )  # fmt: skip
        assert manifest.read_json(output) == made | {"method": "cached", "settings": method}
        assert (tmp_path / "cached" / WEIGHTS).samefile(tmp_path / "made" / WEIGHTS)
        loaded = checkpoint.load_pipeline(output)
        images[threshold] = loaded.generate(PROMPTS, [0, 1], SAMPLING)
        blocks = 3 * len(family.blocks(loaded.pipeline.transformer))
        assert loaded.calls == {"unit": "blocks", "asked": blocks, "skipped": threshold and blocks - blocks // 3 - 2}
        assert loaded.compute == "real"
    plain = checkpoint.load_pipeline(tmp_path / "made").generate(PROMPTS, [0, 1], replace(SAMPLING, steps=3))
    assert np.array_equal(images[0], plain) and not np.array_equal(images[100], plain)
    with pytest.raises(DataError, match="was quantized otherwise than cached"):
        share_weights.share(tmp_path / "made/manifest.json", "cached", METHODS["rtn-w4"], output)


def test_a_layer_without_a_kernel_is_named_with_what_it_would_take():
    weights = {"format": "integer", "bits": 8, "granularity": "group", "group_size": 4, "symmetric": True}
    layer = {"weights": weights, "in_features": 64, "out_features": 64, "library": None, "parts": []}
    inputs = {"bits": 8, "granularity": "tensor", "dynamic": False, "symmetric": False}
    compute, _, reason = kernel_choice.compute_of({"to_q": layer | {"activations": inputs}}, "cpu")
    assert compute == "simulated"
    said = "no kernel computes integer W8A8 per group with static asymmetric inputs per tensor on cpu (layer to_q)"
    assert reason == said
    assert kernel_choice.describe(layer | {"activations": None}) == "integer W8A16 per group"


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing"])
def test_damaged_checkpoint_is_refused(nf4, tmp_path, damage):
    (tmp_path / "manifest.json").write_bytes(nf4.read_bytes())
    content = bytearray((nf4.parent / WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 1 if damage == "flip" else 0
    if damage != "missing":
        (tmp_path / WEIGHTS).write_bytes(content[:-100] if damage == "truncate" else content)
    words = {"flip": "corrupted", "truncate": "truncated", "missing": "missing"}
    with pytest.raises(DataError, match=words[damage]) as caught:
        checkpoint.load_pipeline(tmp_path)
    assert "delete" in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_checkpoint_with_the_keys_of_another_version_is_refused(nf4, tmp_path):
    details = manifest.read_json(nf4)
    for layer in details["layers"].values():
        layer["weights"]["block"] = layer["weights"].pop("group_size")
    manifest.write_json(tmp_path / "manifest.json", details)
    with pytest.raises(DataError, match="another version .*nf4 weights differ in the key 'block'"):
        checkpoint.load_pipeline(tmp_path)


def test_allocation_excludes_by_pattern_and_refuses_one_that_matches_nothing(layers):
    method = {**METHODS["nf4"], "allocation": {"name": "uniform", "exclude": ["*.norm1.linear"], "overrides": {}}}
    chosen = allocate(layers, method, "nf4")
    assert 0 < len(chosen) < len(layers) and not [name for name in chosen if name.endswith("norm1.linear")]
    method["allocation"]["exclude"] = ["*.norm9"]
    with pytest.raises(DataError, match=r"methods\.nf4\.allocation\.exclude.*norm9"):
        allocate(layers, method, "nf4")
    assert allocate(layers, METHODS["float32"], "float32") == {}


def test_dual_attention_blocks_of_stable_diffusion_35_are_walked(family):
    """The architecture of 3.5 Medium in small: two blocks with a second attention, a last one without text output."""
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    denoiser = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, caption_projection_dim=32, pooled_projection_dim=24, out_channels=4,
        pos_embed_max_size=8, dual_attention_layers=(0, 1), qk_norm="rms_norm",
    ).eval()  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(5, 4, 8, 8),
        "encoder_hidden_states": torch.randn(5, 7, 24),
        "pooled_projections": torch.randn(5, 24),
        "timestep": torch.tensor([900.0, 700.0, 500.0, 300.0, 100.0]),
    }
    layers = {name: {} for name in family.quantizable(denoiser)}
    assert any(".attn2." in name for name in layers)
    method = METHODS["gptq-w3"]
    with torch.no_grad():
        before = denoiser(**inputs, return_dict=False)[0]
        _, reports = sequential.quantize(denoiser, family, allocate(layers, method, "m"), method, inputs, batch=5)
        after = denoiser(**inputs, return_dict=False)[0]
    assert set(reports) == set(layers) and all(report["error_of"] == "outputs" for report in reports.values())
    assert 0 < (after - before).norm() < 0.5 * before.norm()
