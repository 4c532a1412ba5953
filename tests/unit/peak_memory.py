"""Print the peak of memory that quantizing takes beside the model and its result, MB: peak_memory.py DEPTH SOLVER."""

import json
import re
import sys
from pathlib import Path

import torch

from quantwatt.allocate.allocation import allocate
from quantwatt.config import experiment
from quantwatt.models.families import load_family
from quantwatt.quantize import sequential

WIDTH, SAMPLES = 256, 8


def resident_mb(name):
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def main(depth, solver):
    family = load_family("sd3")  # before diffusers
    from diffusers import SD3Transformer2DModel

    torch.set_num_threads(1)
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
        {"solver": {"name": solver}, "weights": {"format": "integer", "bits": 4}}, "peak_memory", "method"
    )
    allocation = allocate({name: {} for name in family.quantizable(denoiser)}, method, "method")
    with torch.no_grad():  # what libraries allocate once
        denoiser(**{name: tensor[:2] for name, tensor in samples.items()})
    before = resident_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    states, _ = sequential.quantize(denoiser, family, allocation, method, samples, batch=4)
    result = sum(t.numel() * t.element_size() for state in states.values() for t in state.values()) / 2**20
    print(json.dumps({"peak_mb": resident_mb("VmHWM") - before - result, "result_mb": result}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
