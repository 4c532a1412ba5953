"""A small results tree with plausible numbers for the tests of tables, figures and report; nothing was measured."""

import csv
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from quantwatt.data import scenes

BASELINE = "bf16"
METRICS = ["fid", "kid", "clip-score", "psnr", "ssim"]
CPU = {"name": "Example CPU, 8 cores", "kind": "cpu", "uuid_hash": None, "driver": None, "fake": False}
GPU = {"name": "Example GPU", "kind": "cuda", "uuid_hash": "3f9a1c", "driver": "580.1", "power_limit_w": 700.0,
       "fake": False, "temperature_c": {"min": 51.0, "max": 58.0}}  # fmt: skip
FAKE = GPU | {"name": "FAKE GPU", "fake": True}
N_IMAGES = 12
BLOCKS = 8
PAIRS, DISTURBED = 8, 2  # of which other programs disturbed two


class Method(NamedTuple):
    """Numbers of a made-up method; without joules it is simulated."""

    solver: str
    weight_bits: float
    activation_bits: int
    size_mb: float
    psnr: float | None
    fid: float
    clip: float
    joules: float | None = None
    seconds: float | None = None
    library: str | None = None
    chunks: int = 1  # of the modulation layers
    allocation: str = "uniform"
    cache: float | None = None  # the threshold of a first-block cache, which skips a third
    steps: int | None = None  # of its own

    @property
    def error_of(self):
        if self.solver == "qronos":
            return "float outputs"
        return "outputs" if self.solver in ("gptq", "brecq", "auto-gptq", "gptqmodel") else "weights"


METHODS = {
    "bf16": Method("none", 16, 16, 7.10, None, 3.20, 0.312, 1.100, 0.0610),
    "rtn-w8a8": Method("rtn", 8, 8, 3.71, 41.2, 3.22, 0.312, 0.880, 0.0480),
    "rtn-w4a16": Method("rtn", 4.125, 16, 2.02, 31.8, 3.55, 0.309),
    "rtn-w4a8": Method("rtn", 4.125, 8, 2.02, 31.4, 3.58, 0.309),
    "rtn-w3a16": Method("rtn", 3.125, 16, 1.60, 26.3, 4.90, 0.301),
    "rtn-w2a16": Method("rtn", 2.125, 16, 1.18, 20.5, 14.2, 0.268),
    "gptq-w4a8": Method("gptq", 4.125, 8, 2.02, 33.9, 3.41, 0.311),
    "gptq-w3a16": Method("gptq", 3.125, 16, 1.60, 28.8, 4.02, 0.306),
    "gptq-w2a16": Method("gptq", 2.125, 16, 1.18, 22.1, 9.80, 0.281),
    "nf4": Method("rtn", 4.5, 16, 2.21, 32.6, 3.50, 0.310, 1.240, 0.0702),
}
# As many methods as an experiment compares, most of one size.
MANY = {
    "bf16": METHODS["bf16"],
    "rtn-w8a8": METHODS["rtn-w8a8"],
    "bitsandbytes-int8": Method("rtn", 8.06, 8, 3.74, 40.6, 3.22, 0.312, 0.905, 0.0502, library="bitsandbytes"),
    "torchao-int8": Method("rtn", 8.06, 16, 3.74, 42.8, 3.21, 0.312, 0.961, 0.0531, library="torchao"),
    "quanto-int8": Method("rtn", 8.06, 16, 3.74, 42.5, 3.21, 0.312, 1.302, 0.0722, library="optimum-quanto"),
    "nf4": METHODS["nf4"],
    "fp4": Method("rtn", 4.5, 16, 2.21, 31.0, 3.62, 0.309, 1.251, 0.0709),
    "rtn-w4a16": METHODS["rtn-w4a16"],
    "rtn-w4a8": METHODS["rtn-w4a8"],
    "rtn-w4a8-clip-search": Method("rtn", 4.125, 8, 2.02, 32.0, 3.53, 0.309),
    "hqq-w4a16-g64": Method("hqq", 4.5, 16, 2.21, 32.9, 3.48, 0.310),
    "gptq-w4a8": METHODS["gptq-w4a8"],
    "gptq-w4a8-smooth": Method("gptq", 4.125, 8, 2.03, 34.1, 3.40, 0.311),
    "gptq-w4a8-segments": Method("gptq", 4.125, 8, 2.02, 35.2, 3.33, 0.311, chunks=6),
    "gptqmodel-w4a16": Method("gptqmodel", 4.125, 16, 2.02, 34.3, 3.39, 0.311),
    "auto-gptq-w4a16": Method("auto-gptq", 4.125, 16, 2.02, 34.3, 3.39, 0.311),
    "qronos-w4a8": Method("qronos", 4.125, 8, 2.02, 35.0, 3.35, 0.311),
    "qronos-w4a8-segments": Method("qronos", 4.125, 8, 2.02, 36.4, 3.29, 0.312, chunks=6),
    "qronos-w3a16": Method("qronos", 3.125, 16, 1.60, 30.4, 3.71, 0.308),
    "brecq-w4a8": Method("brecq", 4.125, 8, 2.02, 35.5, 3.31, 0.311),
    "brecq-w4a8-static": Method("brecq", 4.125, 8, 2.02, 29.4, 3.90, 0.307),
    "brecq-w2a16": Method("brecq", 2.125, 16, 1.18, 25.9, 5.10, 0.300),
    "svdquant-w4a8-rank32": Method("rtn", 4.925, 8, 2.44, 35.9, 3.30, 0.311),
    "svdquant-gptq-w4a8-rank32": Method("gptq", 4.925, 8, 2.44, 37.0, 3.27, 0.312),
    "rtn-w2a16": METHODS["rtn-w2a16"],
}
# Methods under several numbers of denoising steps.
SWEPT = {
    "float32": Method("none", 32, 32, 3.10, None, 1.10, 0.312, 0.110, 0.0061),
    "rtn-w8": Method("rtn", 8.2, 32, 0.82, 44.0, 1.12, 0.312),
    "rtn-w4": Method("rtn", 4.2, 32, 0.44, 27.8, 2.90, 0.311),
    "rtn-w2": Method("rtn", 2.2, 32, 0.25, 11.2, 96.0, 0.240),
    "gptq-w2": Method("gptq", 2.2, 32, 0.25, 13.4, 60.0, 0.252),
    "brecq-w8": Method("brecq", 8.2, 32, 0.82, 44.6, 1.11, 0.312),
    "brecq-w4": Method("brecq", 4.2, 32, 0.44, 31.5, 1.60, 0.312),
    "brecq-w2": Method("brecq", 2.2, 32, 0.25, 18.9, 14.0, 0.290),
}
STEPS = {1: "step-1", 2: "steps-2", 4: "steps-4", 8: "steps-8"}
# Mixed precision, each row of its ablation under the one before.
MIXED = {
    "fp16": Method("none", 16, 16, 6.40, None, 17.2, 0.272, 1.100, 0.0610),
    "naive-w8a8": Method("rtn", 8.06, 8, 3.25, 19.3, 104.0, 0.262, 0.880, 0.0480),
    "bos-w8a8": Method("rtn", 8.06, 8, 3.25, 27.4, 31.7, 0.269, 0.884, 0.0482),
    "sqnr-w8a8": Method("rtn", 8.05, 8.1, 3.24, 26.9, 37.4, 0.268, 0.891, 0.0486, allocation="mixed"),
    "mixdq-w8a8": Method("rtn", 8.04, 8.1, 3.24, 33.2, 17.0, 0.270, 0.890, 0.0485, allocation="mixed"),
    "naive-w4a8": Method("rtn", 4.06, 8, 1.66, 12.0, 359.0, 0.240),
    "mixdq-w5a8": Method("rtn", 5.05, 8.1, 2.05, 31.4, 17.4, 0.270, allocation="mixed"),
    "mixdq-w4a8": Method("rtn", 4.04, 8.1, 1.65, 29.1, 17.7, 0.270, allocation="mixed"),
    "rtn-w4": Method("rtn", 4.06, 16, 1.66, 22.0, 24.0, 0.266),
    "gptq-w4": Method("gptq", 4.06, 16, 1.66, 29.5, 17.6, 0.270),
    "mixdq-w4": Method("rtn", 4.03, 16, 1.65, 29.7, 17.2, 0.270, allocation="mixed"),
    "mixdq-w3.66": Method("rtn", 3.69, 16, 1.51, 28.1, 17.5, 0.270, allocation="mixed"),
}
# Formats, with a cache, and in fewer steps.
DRAWN = {
    "bf16": METHODS["bf16"],
    "cached": Method("none", 16, 16, 7.10, 38.0, 3.30, 0.311, 0.740, 0.0410, cache=0.2),
    "steps-10": Method("none", 16, 16, 7.10, 33.0, 3.50, 0.310, 0.560, 0.0310, steps=10),
    "rtn-w8a8": METHODS["rtn-w8a8"],
    "rtn-w8a8-cached": Method("rtn", 8, 8, 3.71, 37.1, 3.31, 0.311, 0.610, 0.0330, cache=0.2),
    "rtn-w8a8-steps-10": Method("rtn", 8, 8, 3.71, 32.4, 3.52, 0.310, 0.450, 0.0250, steps=10),
    "rtn-w8a8-both": Method("rtn", 8, 8, 3.71, 31.0, 3.60, 0.309, 0.340, 0.0190, cache=0.2, steps=10),
    "rtn-w4a8": METHODS["rtn-w4a8"],
}
LAYERS = [
    f"transformer_blocks.{block}.{name}"
    for block in range(3)
    for name in ("attn.to_q", "attn.to_out.0", "ff.net.0.proj", "ff.net.2", "norm1.linear")
]
MANY_LAYERS = [
    f"transformer_blocks.{block}.{name}"
    for block in range(6)
    for name in (
        *("norm1.linear", "norm1_context.linear"),
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        *("attn.to_out.0", "attn.to_add_out"),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    )
    if block < 5 or name not in ("attn.to_add_out", "ff_context.net.0.proj", "ff_context.net.2")
]
UNET_PARTS = (
    *("resnets.0.conv1", "resnets.0.time_emb_proj", "resnets.0.conv2", "attentions.0.proj_in"),
    *(f"attentions.0.transformer_blocks.0.{attn}.{to}" for attn in ("attn1", "attn2")
      for to in ("to_q", "to_k", "to_v", "to_out.0")),
    *("attentions.0.transformer_blocks.0.ff.net.0.proj", "attentions.0.transformer_blocks.0.ff.net.2"),
    "attentions.0.proj_out",
)  # fmt: skip
CANDIDATES = ("w8", "w4", "w2", "a8", "a4")
SAMPLING = {"prompts": "shapes-test.txt", "images": 12, "steps": 20, "guidance": 3.0, "height": 64, "width": 64}
SAMPLINGS = {"steps-20": SAMPLING | {"seed": 0}}
SEEDS = {f"seed-{seed}": SAMPLING | {"seed": seed} for seed in (0, 1000, 2000)}
UNSUPPORTED = {
    "gptqmodel-w4a16": ("unsupported", "gptqmodel is not installed here: run with --sdm conda, or make backends"),
    "auto-gptq-w4a16": ("unsupported", "auto-gptq is not installed here: run with --sdm conda, or make backends"),
    "quanto-int8": ("unsupported", "optimum-quanto is not installed"),
}
EVALUATION = {
    "seed": 0,
    "size_mb": {"tiny-sd3": 8.8, "judge": 2.1, "attributes": 0.6},
    "autoencoder_psnr_db": 31.62,
    "classifier_right_on_renders": {"one_object": 0.998, "two_objects": 0.991, "all": 0.9936},
    "generated_right": {"one_object": 0.94, "two_objects": 0.86, "all": 0.9},
    "generated_with": {"images": 512, "steps": 20, "guidance": 3.0, "seed": 0},
    "judge_ranks_right_caption_first": {
        "colour": 0.99,
        "shape": 0.96,
        "size": 0.97,
        "relation": 0.93,
        "background": 1.0,
    },
    "clip_score": {"renders": 72.0, "generated": 71.2},
    "training": {
        "vae": {"steps": 3000, "learning_rate": 0.002, "batch": 64, "steps_done": 3000, "cpu_s": 272},
        "flow": {"steps": 20000, "learning_rate": 0.0012, "batch": 64, "steps_done": 20000, "cpu_s": 12000},
    },
}


def cells_of(model="tiny-sd3", sampling="steps-20", methods=METHODS):
    """The list that a rule hands to tables.py."""
    return [{"model": model, "method": method, "sampling": sampling} for method in methods]


def write_grid(folder, cells, **settings):
    """Write the file that tables.py and report.py read of an experiment; its path."""
    path = Path(folder) / "grid.json"
    _write(path, {"cells": cells, "metrics": METRICS, "baseline": BASELINE, **settings})
    return str(path)


def write_many(results, **settings):
    """An experiment of 25 methods, three of which need a library that is not there, under three seeds; its cells."""
    return [
        cell
        for sampling, entry in SEEDS.items()
        for cell in write_tree(results, sampling=sampling, seed=entry["seed"], methods=MANY, layers=MANY_LAYERS,
                               failures=UNSUPPORTED, **settings)
    ]  # fmt: skip


def write_sweep(results, **settings):
    """An experiment of one model under 1, 2, 4 and 8 steps, which help all but the methods of two bits; its cells."""
    cells = []
    for steps, sampling in STEPS.items():
        factor = {1: 1.0, 2: 0.8, 4: 0.6, 8: 0.58}[steps]
        factors = {name: 1.0 if "w2" in name else factor for name in SWEPT} | {"rtn-w2": 2 - factor}
        methods = {name: numbers._replace(fid=numbers.fid * factors[name]) for name, numbers in SWEPT.items()}
        cells += write_tree(results, model="digits", sampling=sampling, steps=steps, methods=methods,
                            baseline="float32", **settings)  # fmt: skip
    return cells


def steps_settings():
    """The samplings of `write_sweep`."""
    return {sampling: SAMPLING | {"seed": 0, "steps": steps} for steps, sampling in STEPS.items()}


def unet_layers(blocks):
    """Names of a UNet's layers, in the order of their execution."""
    names = [f"down_blocks.{block}.{part}" for block in range(blocks) for part in UNET_PARTS]
    names += [f"mid_block.{part}" for part in UNET_PARTS]
    names += [f"up_blocks.{block}.{part}" for block in range(blocks) for part in UNET_PARTS]
    return ["conv_in", "time_embedding.linear_1", *names, "conv_out"]


def write_mixed(results, blocks=2, decoupled=True, **settings):
    """An experiment of uniform and mixed methods, its model's manifest and its sensitivity; its cells."""
    layers = unet_layers(blocks)
    groups = {name: "content" if ".ff." in name or ".attn2." in name else "quality" for name in layers}
    objective = {"content": "ssim", "quality": "sqnr"} if decoupled else "sqnr"
    cells = write_tree(results, model="few-step", sampling="step-1", steps=1, methods=MIXED, layers=layers,
                       baseline="fp16", objective=objective, **settings)  # fmt: skip
    shapes = {"in_features": 64, "out_features": 64}
    described = {name: shapes | ({"group": group} if decoupled else {}) for name, group in groups.items()}
    _write(results / "models" / "few-step" / "manifest.json", {"model": "few-step", "layers": described})
    rng, path = np.random.default_rng(5), results / "sensitivity" / "few-step" / "tried.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow("layer candidate range ssim psnr sqnr noise inputs megabytes".split())
        for name in layers:
            weak = rng.lognormal(0, 0.6) * (6 if name.endswith("attn2.to_k") else 1)
            for candidate in CANDIDATES:
                if candidate == "w2" and groups[name] == "quality":
                    continue
                noise = 0.3 * 4.0 ** -int(candidate[1]) * weak * (3 if candidate[0] == "a" else 1)
                table.writerow(
                    [name, candidate, "", 1 / (1 + noise), 30 - noise, -10 * np.log10(noise), noise, 4096, 0.004]
                )
    return cells


def write_tree(
    results,
    *,
    model="tiny-sd3",
    sampling="steps-20",
    seed=0,
    methods=METHODS,
    layers=LAYERS,
    device=CPU,
    meter="estimate",
    energy_factor=1.0,
    real=None,
    failures=None,
    energy_reason=None,
    with_images=True,
    steps=20,
    baseline=BASELINE,
    objective="sqnr",
):
    """Write the JSON, CSV and PNG files of one model and sampling under `results`; return their cells.

    Args:
        methods: {name: Method}.
        layers: names of the model's layers.
        device: written into every measurement, or `{method: device}`.
        meter: "nvml", "rapl", "estimate" or "none".
        energy_factor: multiplies the joules and seconds of every method but the baseline.
        real: methods that are measured (default: those with joules in METHODS).
        failures: `{method: (status, reason)}` of cells that ended without images.
        steps: of denoising; baseline: name of the unquantized method; objective: what mixed methods choose by.
        energy_reason: why no joules could be read; energy is then null.
    """
    results, failures = Path(results), failures or {}
    rng = np.random.default_rng(7)
    scene_rng = np.random.default_rng(3)
    drawn_psnr = np.random.default_rng(seed).normal(0, 0.35 if seed else 0, len(methods))
    drawn = [scenes.random_scene(scene_rng) for _ in range(N_IMAGES)]
    prompts = [scenes.caption(scene) for scene in drawn]
    clean = [scenes.render(scene, scene_rng) for scene in drawn]
    for (method, numbers), shift in zip(methods.items(), drawn_psnr, strict=True):
        cell = {"model": model, "method": method, "sampling": sampling}
        measured = numbers.joules is not None if real is None else method in real
        status, reason = failures.get(method, ("ok", None))
        numbers = numbers._replace(psnr=numbers.psnr and numbers.psnr + shift)
        _checkpoint(results, cell, numbers, status, reason, layers, objective)
        drawing = {"seed": seed, "steps": steps}
        _images(results, cell, prompts, clean if with_images else [], numbers, status, reason, measured, drawing, rng)
        _scores(results, cell, numbers, methods.get(baseline), status, reason, baseline)
        where = device.get(method, device)
        _measurement(results, cell, methods, status, reason, measured, where, meter, energy_factor, energy_reason, rng,
                     baseline)  # fmt: skip
    return cells_of(model, sampling, methods)


def _write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _folder(results, stage, cell):
    return results / stage / cell["model"] / cell["method"] / cell["sampling"]


def _provenance():
    return {
        "commit": "0123456789ab",
        "python": "3.11.2",
        "system": "Linux x86_64",
        "cpu": "Example CPU",
        "versions": {"torch": "2.13.0", "diffusers": "0.42.1", "bitsandbytes": None},
    }


def _checkpoint(results, cell, numbers, status, reason, layers, objective):
    rng = np.random.default_rng(len(cell["method"]))
    allocation = {"name": numbers.allocation}
    if numbers.allocation == "mixed":
        allocation |= {"sensitivity": "tried", "programs": [{"candidates": list(CANDIDATES), "objective": objective}]}
    quantized = {}
    for name in layers if numbers.solver != "none" and status != "unsupported" else []:
        chunks = numbers.chunks if name.endswith(".linear") else 1
        for chunk in range(chunks):
            layer = _layer(name, numbers, chunk, chunks, rng)
            if numbers.allocation == "mixed":
                bits = int(rng.choice([2, 4, 8], p=[0.1, 0.7, 0.2]))
                layer |= {"weights": {"format": "integer", "bits": bits}, "weight_bits": bits + 1.06,  # small groups
                          "activation_bits": float(rng.choice([8, 16])) if "a8" in cell["method"] else 16}  # fmt: skip
            quantized[name if chunks == 1 else f"{name}.{chunk}"] = layer
    _write(
        results / "checkpoints" / cell["model"] / cell["method"] / "manifest.json",
        {
            "status": status if status == "unsupported" else "ok",
            "reason": reason if status == "unsupported" else None,
            "model": cell["model"],
            "method": cell["method"],
            "solver": None if numbers.solver == "none" else numbers.solver,
            "settings": {
                "solver": None if numbers.solver == "none" else {"name": numbers.solver},
                "weights": None if numbers.solver == "none" else _format(cell["method"], numbers),
                "allocation": allocation,
                **_drawn(numbers),
            },
            "weight_bits": numbers.weight_bits,
            "activation_bits": numbers.activation_bits,
            "size_bytes": None if status == "unsupported" else round(numbers.size_mb * 1e6),
            "files": {},
            "layers": quantized,
            "quantize": None if status == "unsupported" or (numbers.solver == "none" and _drawn(numbers)) else
            {"seconds": 4.2, "energy_j": 96.0, "meter": "estimate", "estimated": True, "reason": None},
            "provenance": _provenance(),
        },
    )  # fmt: skip


def _drawn(numbers):
    """The settings of how a method draws."""
    cache = {"name": "first-block", "threshold": numbers.cache}
    return ({"cache": cache} if numbers.cache else {}) | ({"steps": numbers.steps} if numbers.steps else {})


def _format(method, numbers):
    """The settings of the weights: the libraries' and the codebooks' formats have the method's name."""
    if numbers.library or method in ("nf4", "fp4"):
        return {"format": numbers.library or method}
    return {"format": "integer", "bits": int(numbers.weight_bits)}


def _layer(name, numbers, chunk, chunks, rng):
    """Larger errors in modulation layers and late blocks, smaller where a solver or chunks help."""
    digits = [int(part) for part in name.split(".") if part.isdigit()] or [0]
    before = 4.0 ** (1.4 - numbers.weight_bits) * 2 ** (digits[0] / 3) * rng.lognormal(0, 0.5)
    before *= 3.0 if name.endswith(".linear") and chunks == 1 else 1.0
    gain = {"hqq": 0.93, "gptq": 0.7, "gptqmodel": 0.7, "auto-gptq": 0.7, "qronos": 0.6, "brecq": 0.55}
    diverged = numbers.solver == "brecq" and name.endswith("5.attn.to_q")
    return {
        "weights": {"format": f"int{int(numbers.weight_bits)}"},
        "activations": None,
        "in_features": 128,
        "out_features": 128,
        "weight_bits": numbers.weight_bits,
        "activation_bits": numbers.activation_bits,
        "error_before": None if numbers.library else float(before),
        "relative_error": float(
            before * (1.0 if diverged or numbers.solver == "rtn" else gain[numbers.solver] * rng.uniform(0.9, 1.0))
        ),
        "error_of": numbers.error_of,
        "damping": 0.01 if numbers.solver == "gptq" else None,
        "fallback": "rtn" if diverged else None,
        "seconds": 0.03,
        "energy_j": None if numbers.library else 0.6,
        **({"library": numbers.library} if numbers.library else {}),
    }


def _images(results, cell, prompts, clean, numbers, status, reason, measured, drawing, rng):
    folder = _folder(results, "images", cell)
    images = []
    spread = 0 if numbers.psnr is None else 255 * 10 ** (-numbers.psnr / 20)
    for i, pixels in enumerate(clean if status == "ok" else []):
        name = f"shard-000/{i:05d}.png"
        (folder / "shard-000").mkdir(parents=True, exist_ok=True)
        noisy = np.clip(pixels + rng.normal(0, spread, pixels.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / name)
        data = (folder / name).read_bytes()
        images.append(
            {
                "file": name,
                "sha256": hashlib.sha256(data).hexdigest(),
                "bytes": len(data),
                "prompt": prompts[i],
                "seed": drawing["seed"] + i,
            }
        )
    _write(
        folder / "manifest.json",
        cell
        | {
            "status": status,
            "reason": reason,
            "compute": "real" if measured else "simulated",
            "kernel": "torch._int_mm" if measured and cell["method"] == "rtn-w8a8" else None,
            "n_images": 0 if status != "ok" else N_IMAGES,
            "prompts_sha256": hashlib.sha256("\n".join(prompts).encode()).hexdigest(),
            **drawing,
            **_drawn(numbers),
            **({"calls": {"unit": "blocks", "asked": 120, "skipped": 40}} if numbers.cache else {}),
            "height": 64,
            "width": 64,
            "guidance": 3.0,
            "images": images,
            "seconds": 1.0,
            "provenance": _provenance(),
        },
    )


def _scores(results, cell, numbers, reference, status, reason, baseline):
    psnr, fid, clip = numbers.psnr, numbers.fid, numbers.clip
    changes = {}
    if reference is not None and cell["method"] != baseline and None not in (fid, clip):
        changes = {"fid": (fid - reference.fid, 0.1), "kid": ((fid - reference.fid) / 1000, 0.0001),
                   "clip-score": (clip - reference.clip, 0.001)}  # fmt: skip
    values = {
        "fid": (fid, 0.3, "distance", "judge"),
        "class-accuracy": (max(0.1, 1 - fid / 100), 0.02, "1", None),
        "kid": (fid / 1000, 0.0004, "distance", "judge"),
        "clip-score": (clip, 0.004, "cosine", "judge"),
        "psnr": (psnr, 0.4, "dB", None),
        "ssim": (None if psnr is None else 1 - 10 ** (-psnr / 12), 0.003, "", None),
    }
    for metric, (value, half, unit, features) in values.items():
        if status != "ok":
            record = {"status": status, "reason": reason, "value": None}
        elif value is None:
            record = {"status": "reference", "reason": "the reference itself", "value": None}
        else:
            record = {"status": "ok", "reason": None, "value": value}
        value, (change, spread) = record["value"], changes.get(metric, (None, None))
        if value is not None and change is not None:
            record |= {"change": {"value": change, "low": change - spread, "high": change + spread}}
        _write(
            _folder(results, "scores", cell) / f"{metric}.json",
            record
            | {
                "metric": metric,
                "low": None if value is None else value - half,
                "high": None if value is None else value + half,
                "n_images": N_IMAGES,
                "unit": unit,
                "higher_is_better": metric not in ("fid", "kid"),
                "library": "clean-fid 0.1.35" if features else "quantwatt",
                "features": features,
                "resize": "none",
                "reference": "shapes" if metric in ("fid", "kid") else None,
                "reference_sha256": None,
                "prompts_sha256": None,
                "level": 0.95,
                "resamples": 10_000,
                "values": None if value is None or metric in ("fid", "kid") else _around(value, half),
                "weights": None,
                "log_values": False,
            },
        )


def _around(value, half):
    """Values of single images with this mean, and about this half-width of its interval."""
    return list(value + half * np.sqrt(N_IMAGES) / 2 * np.resize([-1, 1], N_IMAGES))


def _measurement(results, cell, methods, status, reason, measured, device, meter, factor, energy_reason, rng, baseline):
    folder, numbers = _folder(results, "measurements", cell), methods[cell["method"]]
    record = cell | {
        "status": status,
        "reason": reason,
        "compute": "real" if measured else "simulated",
        "kernel": "torch._int_mm" if measured and cell["method"] == "rtn-w8a8" else None,
        "images_per_batch": 4,
        "latency_s": None,
        "energy_j": None,
        "energy_reason": None,
        "memory_mb": None,
        "meter": meter,
        "estimated": meter == "estimate",
        "n_blocks": 0,
        "n_processes": 0,
        "in_pairs": None,
        "pairs": None,
        "phases": {},
        "phases_check": {},
        "baseline": None,
        "ratio": {"energy_j": None, "latency_s": None},
        "ratio_reason": None,
        "sampler": {"interval_ms": 10, "n_samples": 8000, "n_missed": 0, "n_zero": 0},
        "device": device,
        "crosscheck": None,
        "provenance": _provenance(),
    }
    if status == "ok" and not measured:
        record |= {"status": "simulated", "reason": f"no kernel computes {cell['method']} on this device"}
    elif status == "ok":
        factor = 1.0 if cell["method"] == baseline else factor
        joules, seconds = (numbers.joules or 1.0) * factor, (numbers.seconds or 0.05) * factor
        record |= _measured(joules, seconds, energy_reason, numbers.size_mb)
        record |= _compared(record, methods[baseline])
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "measurement.json", record)
    _power(folder / "power.csv", record, rng)


def _measured(joules, seconds, energy_reason, size_mb):
    latency = {"median": seconds, "low": seconds * 0.992, "high": seconds * 1.008, "mean": seconds * 1.01}
    latency |= {"std": seconds * 0.03, "min": seconds * 0.97, "max": seconds * 1.3, "p10": seconds * 0.98}
    latency |= {"p90": seconds * 1.05, "n": 200}
    energy = {"value": joules, "low": joules * 0.994, "high": joules * 1.006, "net": joules * 0.8}
    energy |= {"idle_w": 4.1, "mean_w": joules / seconds}
    return {
        "latency_s": latency,
        "energy_j": None if energy_reason else energy,
        "energy_reason": energy_reason,
        "memory_mb": {
            "value": 702 + size_mb,
            "low": None,
            "high": None,
            "source": "peak RSS of a fresh process",
            "model": 2 + size_mb,
        },
        "n_blocks": BLOCKS - 1,
        "n_invalid": 1,
        "invalid_reasons": ["warming up"],
        "n_processes": 4,
        "in_pairs": True,
        "pairs": {"n": PAIRS, "disturbed": DISTURBED},
        "known": True,
        "level": 0.97,
        "others_share": 0.125,
        "others": [{"cpu_share": 0.1, "gpu_processes": None}],
        "measuring": {"precision": 0.05, "limit_s": 60, "block_s": 5, "blocks": 8, "processes": 8, "idle_s": 5},
        "warm_up": [{"runs": 90, "slope_c_per_min": slope} for slope in (0.5, 2.0)],
        "throttled_s": {"power": 12.5, "thermal": 0.0},
        "phases": {
            name: {
                "latency_s": share * seconds,
                "energy_j": None if energy_reason else share * joules,
                "runs": 9,
                "mean_w": None if energy_reason else joules / seconds,
                "ratio": {
                    "energy_j": None if energy_reason else {"value": 0.9, "low": 0.88, "high": 0.92},
                    "latency_s": {"value": 0.91, "low": 0.9, "high": 0.92},
                },
            }
            for name, share in (("text", 0.04), ("denoise", 0.9), ("decode", 0.05))
        },
        "phases_check": {
            key: None if whole is None else {"difference": -0.01, "low": -0.03, "high": 0.01, "verdict": "ok"}
            for key, whole in (("latency_s", seconds), ("energy_j", None if energy_reason else joules))
        },
        "crosscheck": None
        if energy_reason
        else {"counter_j": joules * 1280, "integral_j": joules * 1288, "difference": 0.006, "verdict": "ok"},
    }


def _compared(record, baseline):
    """What the baseline beside it cost, and the ratios to that; the A/A control where it is the baseline itself."""
    joules, seconds = (record["energy_j"] or {}).get("value"), record["latency_s"]["median"]
    joules = None if joules is None else joules / baseline.joules
    return {
        "baseline": {"energy_j": joules and {"value": baseline.joules}, "latency_s": {"median": baseline.seconds}},
        "ratio": {
            key: None if value is None else {"value": value, "low": 0.99 * value, "high": 1.008 * value}
            for key, value in (("energy_j", joules), ("latency_s", seconds / baseline.seconds))
        },
    }


def _power(path, record, rng):
    """Samples of one process: pairs of blocks, in every other one the phases too."""
    rows, t_s = ["t_s,watts,configuration,process,block"], 0.0
    parts = ("whole", "text", "denoise", "decode")
    order = [("method", "idle-before")] + [
        (side, part)
        for pair in range(8 if record["energy_j"] else 0)
        for part in parts[: 1 if pair % 2 else None]
        for side in (("method", "baseline"), ("baseline", "method"))[pair % 2]
    ]
    for block, (side, part) in enumerate(order if record["energy_j"] else ()):
        for _ in range(8):
            watts = (4.1 if part == "idle-before" else 18) + rng.normal(0, 0.4)
            rows.append(f"{t_s:.3f},{watts:.3f},{side},0,{block if part == 'whole' else part}")
            t_s += 0.1
    path.write_text("\n".join(rows) + "\n")
