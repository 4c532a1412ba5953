"""Write a checkpoint of 200 MB of float weights in 4 bits, or print what loading it takes.

loading_memory.py make FOLDER
loading_memory.py load FOLDER
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from peak_memory import resident_mb

from quantwatt.allocate.allocation import allocate
from quantwatt.artifacts import checkpoint_files
from quantwatt.config import experiment
from quantwatt.inference import checkpoint
from quantwatt.models.families import load_family
from quantwatt.quantize import sequential

MODEL = experiment.load_experiment("embedded")["models"]["tiny-sd3"]
TINY = Path(__file__).parents[2] / MODEL["path"]
SHARD_BYTES = 8_000_000
LARGER = {"num_attention_heads": 16, "caption_projection_dim": 512}  # 512 wide


def make(folder):
    """FOLDER/model: a pipeline without its denoiser's weights; FOLDER/small and FOLDER/large: checkpoints."""
    family = load_family("sd3")
    torch.manual_seed(0)
    method = experiment.complete_method({"weights": {"format": "nf4"}}, "loading_memory", "method")
    for name, changes in (("small", {}), ("large", LARGER)):
        location = folder / f"model-{name}"
        shutil.copytree(TINY, location, ignore=shutil.ignore_patterns("diffusion_pytorch_model.safetensors"))
        shutil.copytree(TINY / "vae", location / "vae", dirs_exist_ok=True)
        config = json.loads((location / "transformer/config.json").read_text())
        (location / "transformer/config.json").write_text(json.dumps(config | changes))
        denoiser = family.meta_denoiser(location).to_empty(device="cpu")
        with torch.no_grad():
            for parameter in denoiser.parameters():
                parameter.normal_(std=0.05)
        allocation = allocate({layer: {} for layer in family.quantizable(denoiser)}, method, "method")
        states, reports = sequential.quantize(denoiser, family, allocation, method)
        for report in reports.values():
            report.pop("spans")
        details = {"status": "ok", "reason": None, "model_settings": MODEL, "location": str(location)}
        checkpoint_files.save(folder / name, denoiser, states, reports, details, SHARD_BYTES)


def load(folder):
    """{"peak_mb": above what was there before, "own_mb": of the pipeline's tensors, "largest_mb", "float_mb"}."""
    kept = checkpoint.load_pipeline(folder / "small")  # imports, trials of kernels
    before = resident_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
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
    folder = Path(sys.argv[2])
    print(json.dumps(make(folder) if sys.argv[1] == "make" else load(folder)))
