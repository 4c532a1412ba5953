"""Each class of the documentation's table of models goes from load through calibration and three methods to images."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import tiny_pipelines
import tiny_popular
import torch

import model
from quantwatt.allocate.allocation import allocate
from quantwatt.artifacts import checkpoint_files
from quantwatt.artifacts.images import to_uint8
from quantwatt.artifacts.instructions import pictures
from quantwatt.config import experiment
from quantwatt.inference import checkpoint, kernel_choice
from quantwatt.models.denoiser_inputs import nested
from quantwatt.models.families import load_family
from quantwatt.models.sampling import Calibration, Drawing
from quantwatt.quantize import calibration, sequential

FAMILY = load_family("diffusers")
DRAWS = {**tiny_pipelines.BUILDERS, **tiny_pipelines.RECENT, **tiny_popular.POPULAR, **tiny_popular.EDITS}
ARGUMENTS = tiny_pipelines.ARGUMENTS | tiny_popular.ARGUMENTS
UNGUIDED = {"flux-schnell"}
LARGE = {"kandinsky3"}  # 420 layers, however narrow
# Calibrated one by one: texts of several lengths without a mask, and prompts with an input picture.
ALONE = {"kandinsky5", "cogview4", *tiny_popular.EDITS}
TEXTS, SEEDS = ["a large red circle on the left", "a small blue square"], [5, 6]
METHODS = {
    "rtn-w8a8": {"weights": {"format": "integer", "bits": 8}, "activations": {"bits": 8}},
    "gptq-w4a8": {"solver": {"name": "gptq"}, "weights": {"format": "integer", "bits": 4}, "activations": {"bits": 8}},
    "nf4": {"weights": {"format": "nf4"}},
}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in DRAWS])
def name(request):
    return request.param


@pytest.fixture
def entry(name):
    return {"family": "diffusers", "dtype": "float32", "arguments": ARGUMENTS.get(name, {})}


@pytest.fixture
def drawing(name):
    size = tiny_pipelines.SIZES.get(name, 16)
    return Drawing(steps=2, guidance=1.0 if name in UNGUIDED else 3.0, height=size, width=size)


@pytest.fixture
def prompts(name, tmp_path, monkeypatch):
    if name in tiny_popular.EDITS:
        from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit

        monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda area, ratio: (64, 64, None))
        return tiny_popular.instructions(TEXTS, tmp_path)
    return ["3", "7"] if name == "dit" else TEXTS


@pytest.fixture
def folder(name, tmp_path):
    return DRAWS[name](tmp_path / "model")


def draw(pipeline, prompts, drawing):
    if hasattr(pipeline, "resolutions"):
        pipeline.resolutions = [(16, 16)]  # Kandinsky 5, as if it had been trained with them
    size = 1 if pictures(prompts) else len(prompts)
    batches = [(prompts[i : i + size], SEEDS[i : i + size]) for i in range(0, len(prompts), size)]
    drawn = [to_uint8(FAMILY.generate(pipeline, batch, seeds, drawing)) for batch, seeds in batches]
    return np.concatenate(drawn).astype(float)


def recorded(pipeline, prompts, drawing, batch_size):
    """Calibration samples of two steps, {input: [samples, ...]}; one of them is given to the denoiser again."""
    how = {"prompts": "", "timesteps": 2, "timesteps_per_prompt": 1, "seed": 7, "batch_size": batch_size}
    samples, rows = calibration.record(FAMILY, pipeline, prompts, Calibration(**drawing.to_settings(), **how))
    assert {len(tensor) for tensor in samples.values()} == {len(rows)} and len(rows) >= 2
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    assert denoiser(**nested({key: tensor[:1] for key, tensor in samples.items()}))[0] is not None
    return samples


def quantized(folder, entry, method, samples):
    """(denoiser, states, reports) with every layer quantized."""
    method = experiment.complete_method(method, "test", "method")
    denoiser = FAMILY.load_denoiser(entry, folder)
    allocated = allocate(model.describe(FAMILY, folder, "float32")["layers"], method, "method")
    states, reports = sequential.quantize(denoiser, FAMILY, allocated, method, samples, batch=1)
    assert reports.keys() == set(FAMILY.quantizable(FAMILY.meta_denoiser(folder)))
    return denoiser, states, reports


def loaded(made, folder, entry, output):
    """The pipeline of a checkpoint of what `quantized` has made."""
    denoiser, states, reports = made
    reports = {
        name: {key: value for key, value in report.items() if key != "spans"} for name, report in reports.items()
    }
    details = {"status": "ok", "reason": None, "model_settings": entry, "location": str(folder)}
    checkpoint_files.save(output, denoiser, states, reports, details)
    return checkpoint.load_pipeline(output, simulate=True).pipeline


def test_a_class_is_recorded_quantized_and_drawn(name, entry, drawing, prompts, folder, tmp_path, monkeypatch):
    pipeline = FAMILY.load(entry, folder)
    plain = draw(pipeline, prompts, drawing)
    assert plain.shape == (2, drawing.height, drawing.width, 3) and np.ptp(plain) > 25
    samples = recorded(pipeline, prompts, drawing, 1 if name in ALONE else 2)
    monkeypatch.setattr(kernel_choice, "KERNELS", {"cpu": {}})  # the formats' values, the same on every CPU
    part, errors = "unet" if hasattr(pipeline, "unet") else "transformer", {}
    for method, settings in METHODS.items():
        made = quantized(folder, entry, settings, samples)
        setattr(pipeline, part, made[0])
        images = draw(pipeline, prompts, drawing)
        errors[method] = np.abs(images - plain).mean()
    assert np.array_equal(draw(loaded(made, folder, entry, tmp_path / "checkpoint"), prompts, drawing), images)
    assert 0 < errors["rtn-w8a8"] < min(errors["gptq-w4a8"], errors["nf4"])


@pytest.mark.parametrize("name", ["cogview4"], indirect=True)
def test_a_layer_that_a_block_calls_twice_is_calibrated_on_both_of_its_inputs(entry, drawing, prompts, folder):
    samples = recorded(FAMILY.load(entry, folder), prompts, drawing, 1)
    for solver in ("gptq", "qronos"):
        method = {"solver": {"name": solver}, "weights": {"format": "integer", "bits": 4}}
        _, _, reports = quantized(folder, entry, method, samples)
        block = {name.removeprefix("transformer_blocks.1."): report["tokens"] for name, report in reports.items()}
        assert block["ff.net.0.proj"] == block["ff.net.2"] == block["attn1.to_q"]  # of image and text


@pytest.mark.parametrize("name", ["hunyuan-dit"], indirect=True)
def test_a_layer_whose_weight_another_module_reads_is_left_in_16_bit(folder):
    denoiser = FAMILY.meta_denoiser(folder)
    pooler = {f"time_extra_emb.pooler.{part}_proj" for part in "qkvc"}
    linear = {name for name, module in denoiser.named_modules() if isinstance(module, torch.nn.Linear)}
    assert pooler < linear and not pooler & set(FAMILY.quantizable(denoiser))


def test_the_table_of_models_names_the_classes_that_are_tested():
    page = (Path(__file__).parents[2] / "docs/models.md").read_text()
    table = page[page.index("| class in diffusers |") :].split("\n\n")[0]
    built = [re.search(r"\b(\w+Pipeline)\(", inspect.getsource(build))[1] for build in DRAWS.values()]
    assert set(re.findall(r"`(\w+Pipeline)`", table)) == set(built)
