"""Print what quantizing and loading hold in memory, MB as JSON: held_memory.py FOLDER, where checkpoints are written.

{"quantizing": {solver: [{"peak_mb", "result_mb"} of each of DEPTHS]}, "loading": as of `load`}; each is measured in a
fork of this process.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import forked
import torch

from quantwatt.allocate.allocation import allocate
from quantwatt.artifacts import checkpoint_files
from quantwatt.config import experiment
from quantwatt.inference import checkpoint
from quantwatt.jobs import torchvision_ops  # noqa: F401  (before diffusers)
from quantwatt.models.families import load_family
from quantwatt.quantize import sequential

from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline  # noqa: F401, isort: skip  (once, for all forks)

SD3 = load_family("sd3")
DEPTHS, SOLVERS = (2, 5), ("gptq", "qronos")
WIDTH, SAMPLES = 192, 8

MODEL = experiment.load_experiment("embedded")["models"]["tiny-sd3"]
TINY = Path(__file__).parents[2] / MODEL["path"]
SHARD_BYTES = 4_000_000
LARGER = {"num_attention_heads": 12, "caption_projection_dim": 384}  # 384 wide: 114 MB of float32 weights


def resident_mb(name):
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def reset_peak():
    Path("/proc/self/clear_refs").write_text("5")


def quantizing(depth, solver):
    """{"peak_mb": beside the model and the result, "result_mb"}."""
    torch.manual_seed(0)
    denoiser = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_layers=depth, attention_head_dim=64,
        num_attention_heads=WIDTH // 64, joint_attention_dim=64, caption_projection_dim=WIDTH, pooled_projection_dim=64,
        out_channels=4, pos_embed_max_size=16,
    ).to(torch.bfloat16).eval()  # fmt: skip
    samples = {
        "hidden_states": torch.randn(SAMPLES, 4, 16, 16, dtype=torch.bfloat16),
        "encoder_hidden_states": torch.randn(SAMPLES, 8, 64, dtype=torch.bfloat16),
        "pooled_projections": torch.randn(SAMPLES, 64, dtype=torch.bfloat16),
        "timestep": torch.linspace(1000, 100, SAMPLES),
    }
    method = experiment.complete_method(
        {"solver": {"name": solver}, "weights": {"format": "integer", "bits": 4}}, "held_memory", "method"
    )
    allocation = allocate({name: {} for name in SD3.quantizable(denoiser)}, method, "method")
    with torch.no_grad():  # what libraries allocate once
        denoiser(**{name: tensor[:2] for name, tensor in samples.items()})
    before = resident_mb("VmRSS")
    reset_peak()
    states, _ = sequential.quantize(denoiser, SD3, allocation, method, samples, batch=4)
    result = sum(t.numel() * t.element_size() for state in states.values() for t in state.values()) / 2**20
    return {"peak_mb": resident_mb("VmHWM") - before - result, "result_mb": result}


def make(folder):
    """FOLDER/model-*: pipelines without their denoiser's weights; FOLDER/small and FOLDER/large: their checkpoints."""
    torch.manual_seed(0)
    method = experiment.complete_method({"weights": {"format": "nf4"}}, "held_memory", "method")
    for name, changes in (("small", {}), ("large", LARGER)):
        location = folder / f"model-{name}"
        shutil.copytree(TINY, location, ignore=shutil.ignore_patterns("diffusion_pytorch_model.safetensors"))
        shutil.copytree(TINY / "vae", location / "vae", dirs_exist_ok=True)
        config = json.loads((location / "transformer/config.json").read_text())
        (location / "transformer/config.json").write_text(json.dumps(config | changes))
        denoiser = SD3.meta_denoiser(location).to_empty(device="cpu")
        with torch.no_grad():
            for parameter in denoiser.parameters():
                parameter.normal_(std=0.05)
        allocation = allocate({layer: {} for layer in SD3.quantizable(denoiser)}, method, "method")
        states, reports = sequential.quantize(denoiser, SD3, allocation, method)
        for report in reports.values():
            report.pop("spans")
        details = {"status": "ok", "reason": None, "model_settings": MODEL, "location": str(location)}
        checkpoint_files.save(folder / name, denoiser, states, reports, details, SHARD_BYTES)


def load(folder):
    """{"peak_mb": above what was there before, "own_mb": of the pipeline's tensors, "largest_mb", "float_mb"}."""
    kept = checkpoint.load_pipeline(folder / "small")  # imports, trials of kernels
    before = resident_mb("VmRSS")
    reset_peak()
    loaded = checkpoint.load_pipeline(folder / "large")
    peak = resident_mb("VmHWM") - before
    parts = [part for part in loaded.pipeline.components.values() if isinstance(part, torch.nn.Module)]
    tensors = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    layers = json.loads((folder / "large/manifest.json").read_text())["layers"].values()
    floats = [4 * layer["in_features"] * layer["out_features"] / 2**20 for layer in layers]
    own = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20
    assert (kept.compute, loaded.compute) == ("real", "real")
    return {"peak_mb": peak, "own_mb": own, "largest_mb": max(floats), "float_mb": sum(floats)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    found = {solver: [forked.call(quantizing, depth, solver) for depth in DEPTHS] for solver in SOLVERS}
    forked.call(make, folder)
    print(json.dumps({"quantizing": found, "loading": forked.call(load, folder)}))
