"""Prompts with an input picture: read from a table, checked before any job, and drawn by image-to-image pipelines."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_popular
import torch
from plans import plan_of

import calibrate
import generate
import model
import quantize
from quantwatt.allocate.allocation import allocate
from quantwatt.artifacts import instructions, manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.config import experiment
from quantwatt.config.schemas import ConfigurationError
from quantwatt.data import prompts
from quantwatt.measuring import fresh_process
from quantwatt.models.families import load_family, pipelines
from quantwatt.models.sampling import Drawing, Sampling

FAMILY = load_family("diffusers")
TEXTS = ["a large red circle", "a small blue square"]
DRAWING = Drawing(steps=4, guidance=3.0, height=16, width=16)


def settings(folder, strength=0.5):
    return {"family": "diffusers", "path": str(folder), "dtype": "float32", "arguments": {"strength": strength}}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_popular.sdxl_img2img(tmp_path_factory.mktemp("img2img"))


@pytest.fixture(scope="module")
def pipeline(folder):
    return FAMILY.load(settings(folder), folder)


@pytest.fixture
def asked(tmp_path):
    return tiny_popular.instructions(TEXTS, tmp_path)


@pytest.fixture
def table(asked, tmp_path):
    """A table of the prompts and their pictures, which lie beside it."""
    rows = [f"{prompt}\t{prompt.picture.name}" for prompt in asked]
    (tmp_path / "edits.tsv").write_text("\n".join(["prompt\tinput_image", *rows]))
    return tmp_path / "edits.tsv"


def test_a_table_gives_each_prompt_its_picture(table, asked):
    read, _ = prompts.read(table)
    assert read == TEXTS and instructions.pictures(read) == [prompt.picture for prompt in asked]
    first = prompts.first(table, 3, cycle=True)
    assert first[2] == TEXTS[0] and first[2].picture == asked[0].picture
    table.write_text("prompt\tinput_image\na ring\tnone.png")
    with pytest.raises(DataError, match=r"edits.tsv: line 2: there is no picture 'none.png'"):
        prompts.read(table)


def test_an_image_depends_on_its_picture_which_is_scaled_to_its_size(pipeline, asked):
    one, two = (FAMILY.generate(pipeline, [prompt], [5], DRAWING) for prompt in asked)
    exchanged = instructions.Instruction(asked[0], asked[1].picture)
    other = FAMILY.generate(pipeline, [exchanged], [5], DRAWING)
    assert one.shape == (1, 16, 16, 3) and np.abs(other - one).max() > 1e-3 and np.abs(other - two).max() > 1e-3
    assert FAMILY.generate(pipeline, asked[:1], [5], replace(DRAWING, height=24)).shape == (1, 24, 16, 3)
    whole = FAMILY.prepare(pipeline, asked[:1], [5], DRAWING)
    asked[0].picture.unlink()  # read before the call that is timed
    assert np.allclose(whole().permute(0, 2, 3, 1).numpy(), one, atol=1e-4)


def test_calibration_records_the_steps_that_image_to_image_takes(pipeline, asked):
    kept = FAMILY.record(pipeline, asked[:1], [5], DRAWING, {0, 3})
    assert pipeline.scheduler.timesteps.tolist() == [999, 666, 333, 0]
    assert kept.timesteps == {0: 333, 3: 0}  # half the strength: the last two
    assert [kept[step]["timestep"].unique().item() for step in (0, 3)] == [333, 0]


def test_pictures_that_are_missing_too_many_or_of_no_use_are_refused(pipeline, asked):
    with pytest.raises(DataError, match=r"Img2ImgPipeline changes a picture; .*columns prompt and input_image"):
        FAMILY.generate(pipeline, TEXTS[:1], [5], DRAWING)
    with pytest.raises(DataError, match=r"is given one input picture at a time; set batch_size: 1"):
        FAMILY.generate(pipeline, asked, [5, 6], DRAWING)
    with pytest.raises(DataError, match="takes no input pictures, and these prompts have them"):
        pipelines.draw(pipeline, [5], prompt=asked)


def test_a_measured_batch_holds_one_picture(table):
    sampling = Sampling(prompts=str(table), steps=4)
    batches = fresh_process.batches_of(None, sampling, 1, 2)
    assert [instructions.pictures(batch)[0].name for batch, _ in batches] == ["0.png", "1.png"]
    with pytest.raises(DataError, match=r"drawn one by one; set images_per_batch: 1"):
        fresh_process.batches_of(None, sampling, 2, 1)


def planned(table, folder, **changes):
    def change(entries):
        entries["models"] = {"edit": {"family": "diffusers", "path": str(folder)} | changes.pop("model", {})}
        entries["samplings"] = {"edits": {"prompts": str(table), "steps": 4, "images": 2, "batch_size": 1} | changes}

    return plan_of("embedded", change)


def test_before_any_job_pictures_are_inputs_of_jobs_and_what_cannot_be_is_refused(table, folder, asked):
    names = {"model": "edit", "method": "float32", "sampling": "edits"}
    plan = planned(table, folder)
    assert plan.prompts("generate", names) == [str(table), *(str(prompt.picture) for prompt in asked)]
    assert plan.prompts("calibrate", names) == [plan.texts("calibrate", names)]
    with pytest.raises(ConfigurationError, match=r"samplings.edits.batch_size: .*one by one; set 1, not 2"):
        planned(table, folder, batch_size=2)
    sd3 = {"family": "sd3", "path": "resources/models/tiny-sd3", "text_encoder_3": False}
    with pytest.raises(ConfigurationError, match=r"edits.prompts: .* models.edit is of family 'sd3', which takes none"):
        planned(table, folder, model=sd3)
    asked[1].picture.unlink()
    with pytest.raises(ConfigurationError, match=r"samplings.edits.prompts: .*line 3: there is no picture '1.png'"):
        planned(table, folder)


def run(script, **options):
    script.main([word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))])


def test_an_editing_model_goes_through_the_scripts(table, folder, tmp_path):
    run(model, model="edit", settings=json.dumps(settings(folder)), output=tmp_path / "model.json")
    strata = {"timesteps": 2, "timesteps_per_prompt": 1, "seed": 7, "batch_size": 1}
    calibration = {**DRAWING.to_settings(), "prompts": str(table), **strata}
    calibrated = tmp_path / "calibration/manifest.json"
    run(calibrate, model=tmp_path / "model.json", calibration=json.dumps(calibration), output=calibrated)
    method = {"solver": {"name": "gptq"}, "weights": {"format": "integer", "bits": 4}}
    method = experiment.complete_method(method, "test", "gptq")
    allocation = allocate(manifest.read_json(tmp_path / "model.json")["layers"], method, "gptq")
    manifest.write_json(tmp_path / "allocation.json", allocation)
    checkpoint = tmp_path / "checkpoint/manifest.json"
    run(quantize, model=tmp_path / "model.json", calibration=calibrated, allocation=tmp_path / "allocation.json",
        method=json.dumps(method), method_name="gptq", output=checkpoint)  # fmt: skip
    sampling = {**DRAWING.to_settings(), "prompts": str(table), "images": 2, "seed": 3}
    made = tmp_path / "images/manifest.json"
    run(generate, checkpoint=checkpoint, sampling=json.dumps(sampling), sampling_name="edits", output=made)
    images = manifest.read_json(made)
    assert [image["picture"] for image in images["images"]] == ["0.png", "1.png"]
    assert [image["prompt"] for image in images["images"]] == TEXTS
    assert len({image["picture_sha256"] for image in images["images"]}) == 2
    before = images["prompts_sha256"]
    (tmp_path / "0.png").write_bytes(Path(tmp_path / "1.png").read_bytes())
    run(generate, checkpoint=checkpoint, sampling=json.dumps(sampling), sampling_name="edits", output=made)
    assert manifest.read_json(made)["prompts_sha256"] != before


def test_pixels_outside_of_0_to_1_are_refused_and_nan_is_left_to_be_told_as_such():
    with pytest.raises(DataError, match=r"the pipeline gives pixels from -0.50 to 0.25, and not from 0 to 1"):
        pipelines.arrays(torch.tensor([-0.5, 0.25]).reshape(1, 1, 1, 2))
    grey = pipelines.arrays(torch.tensor([torch.nan, 1.0]).reshape(1, 1, 1, 2))
    assert grey.shape == (1, 1, 2, 3) and np.isnan(grey[0, 0, 0]).all() and (grey[0, 0, 1] == 1).all()
    assert np.array_equal(pipelines.arrays(np.zeros((1, 2, 2, 3))), np.zeros((1, 2, 2, 3)))
