"""One seed gives one image, whichever scheduler or library draws the noise and whatever was drawn before."""

import os

import quantwatt.jobs.torchvision_ops  # noqa: F401  before diffusers
from quantwatt.models.sampling import Calibration, Drawing

# isort: split
import json
import random
import shutil

import numpy as np
import pytest
import tiny_pipelines
import torch

import generate
from quantwatt.artifacts import image_parts, manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import read_json
from quantwatt.jobs.fingerprints import ROOT
from quantwatt.models import repeat, seeding
from quantwatt.models.families import load_family
from quantwatt.quantize import calibration

MODELS = ROOT / "resources/models"
PROMPTS = ["a large red circle on a white background", "a small blue ring on a gray background"]
SETTINGS = {
    "sd3": {"dtype": "float32", "text_encoder_3": False, "max_sequence_length": 16},
    "sdxl": {"dtype": "float32"},
    "consistency": {"dtype": "float32", "timesteps": [[22, 0]]},
    "diffusers": {"dtype": "float32", "arguments": {}},
    "flux": {"dtype": "float32", "arguments": tiny_pipelines.ARGUMENTS["flux"]},
}  # fmt: skip
SAMPLING = Drawing(steps=2, guidance=2.0, height=16, width=16)


def with_scheduler(source, folder, kind=None, **config):
    """A copy of a pipeline's folder, of links, whose scheduler is of another class or has other settings."""
    shutil.copytree(source, folder, copy_function=os.symlink)
    path, index = folder / "scheduler/scheduler_config.json", folder / "model_index.json"
    known, listed = read_json(path), read_json(index)
    for written in (path, index):
        written.unlink()
    kind = kind or listed["scheduler"][1]
    path.write_text(json.dumps({**known, **config, "_class_name": kind}))
    index.write_text(json.dumps({**listed, "scheduler": ["diffusers", kind]}))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{name: folder} of pipelines whose schedulers draw noise in the middle, and are given no generator."""
    made = tmp_path_factory.mktemp("draws")
    dit = tiny_pipelines.dit(made / "plain-dit")
    return {
        "sd3": with_scheduler(MODELS / "tiny-sd3", made / "sd3", stochastic_sampling=True),
        "diffusers": with_scheduler(dit, made / "dit", "DDPMScheduler", clip_sample=False),
        "flux": with_scheduler(tiny_pipelines.flux(made / "plain-flux"), made / "flux", stochastic_sampling=True),
    }


@pytest.fixture(scope="module", params=["sd3", "diffusers", "flux"])
def stochastic(request, folders):
    """(family, pipeline, prompts, sampling) of such a pipeline."""
    family = load_family("sd3" if request.param == "sd3" else "diffusers")
    pipeline = family.load(SETTINGS[request.param], folders[request.param])
    return family, pipeline, ["3", "7"] if request.param == "diffusers" else PROMPTS, SAMPLING


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


def test_noise_that_no_generator_is_given_for_follows_from_the_seed(stochastic):
    family, pipeline, asked, sampling = stochastic
    first = family.generate(pipeline, asked, [5, 6], sampling)
    torch.randn(3)
    assert np.array_equal(family.generate(pipeline, asked, [5, 6], sampling), first)
    other = family.generate(pipeline, asked, [6, 6], sampling)
    assert not np.array_equal(other, first)


def test_a_measured_and_a_calibrated_trajectory_are_the_generated_one(stochastic):
    family, pipeline, asked, sampling = stochastic
    drawn = family.generate(pipeline, asked, [5, 6], sampling)
    run = family.prepare(pipeline, asked, [5, 6], sampling)
    torch.randn(3)
    assert np.allclose(run().float().permute(0, 2, 3, 1), drawn, atol=1e-6)
    more = {"prompts": "", "seed": 5, "batch_size": 2, "timesteps": 2, "timesteps_per_prompt": 2}
    entry = Calibration.from_settings(sampling.to_settings() | more)
    first, _ = calibration.record(family, pipeline, asked, entry)
    torch.randn(3)
    again, _ = calibration.record(family, pipeline, asked, entry)
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("name", ["sdxl", "consistency"])
def test_every_family_seeds_what_its_pipeline_draws_by_itself(name, monkeypatch):
    """Whatever a scheduler takes from the generators of torch, numpy and Python."""
    family = load_family(name)
    pipeline = family.load(SETTINGS[name], MODELS / f"tiny-{name}")
    asked = PROMPTS if name == "sdxl" else ["3", "7"]
    size = {"height": 16, "width": 16} if name == "sdxl" else {}
    sampling = Drawing(steps=1, guidance=1.0, **size)
    step = pipeline.scheduler.step

    def noisy(output, *args, **kwargs):
        level = np.random.rand() + random.random()
        return step(output + 0.1 * level * torch.randn_like(output), *args, **kwargs)

    monkeypatch.setattr(pipeline.scheduler, "step", noisy)
    first, again, other = (family.generate(pipeline, asked, [seed, 6], sampling) for seed in (5, 5, 7))
    assert np.array_equal(first, again) and not np.array_equal(first[1], other[1])


def test_the_global_generators_go_on_where_they_were():
    def following():
        return torch.rand(2).tolist(), np.random.rand(), random.random()

    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = following()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    with pytest.raises(ValueError, match="inside"), seeding.seeded(5):
        raise ValueError(f"inside, after {following()}")
    assert following() == expected


@pytest.mark.parametrize("seed", [0, 5, 2**32 - 1, 2**40, -3])
def test_added_noise_is_not_the_first_noise_again(seed):
    """Each image's latents begin at its own seed; the images of a batch have the seeds that follow."""
    with seeding.seeded(seed):
        added = torch.randn(4, 16, 16)
        torch.manual_seed(0)
    for number in range(3):
        assert not torch.equal(torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(seed + number)), added)


@pytest.mark.parametrize(("levels", "psnr"), [(0, None), (1, 65.3)])
def test_rounding_is_no_other_image(levels, psnr):
    images = np.random.default_rng(0).integers(0, 200, (3, 16, 16, 3), dtype=np.uint8)
    again = images.copy()
    again[1, :1, :, :1].flat[:15] += np.uint8(levels)
    found = repeat.check(images, again, [4, 5, 6], "m")
    assert found is None if psnr is None else abs(found - psnr) < 0.1


def test_another_noise_is_refused():
    images = np.random.default_rng(0).integers(0, 200, (3, 16, 16, 3), dtype=np.uint8)
    again = images.copy()
    again[1] += np.uint8(9)
    with pytest.raises(DataError, match="m, sampling s: image 1 drawn twice from seed 5 .*PSNR 29.0 dB, 9 of 255"):
        repeat.check(images, again, [4, 5, 6], "m, sampling s")


def checkpoint(folder, location, name="sd3", **fields):
    found = {"status": "ok", "model": "m", "method": "base", "files": {}, "layers": {}, "settings": {}}
    manifest.write_json(
        folder / "manifest.json",
        {**found, "location": str(location), "model_settings": {"family": name, **SETTINGS[name]}, **fields},
    )
    return folder / "manifest.json"


def draw(path, output, part=(), **sampling):
    entry = {
        "prompts": str(ROOT / "resources/prompts/shapes-test.txt"), "images": 5, "steps": 2, "guidance": 2.0,
        "height": 16, "width": 16, "seed": 7, "batch_size": 2, "negative_prompt": "", **sampling,
    }  # fmt: skip
    generate.main(
        ["--checkpoint", str(path), "--sampling-name", "s", "--sampling", json.dumps(entry), "--output", str(output),
         *(["--part", str(part.start), str(part.stop)] if part else [])]
    )  # fmt: skip
    return read_json(output)


def test_an_image_set_says_that_its_first_batch_was_drawn_twice(tmp_path, folders):
    """Also where the scheduler is given no generator; of parts only the first draws twice, and the images are alike."""
    path = checkpoint(tmp_path / "checkpoint", folders["sd3"])
    whole = draw(path, tmp_path / "whole/manifest.json")
    assert whole["repeat_psnr"] is None
    last = draw(path, tmp_path / f"parts/{image_parts.part_name(2)}", range(2, 5))
    assert "repeat_psnr" not in last
    assert [image["sha256"] for image in last["images"]] == [image["sha256"] for image in whole["images"][2:]]


def test_a_pipeline_that_no_seed_reaches_is_refused(tmp_path, folders, monkeypatch):
    from diffusers import FlowMatchEulerDiscreteScheduler

    step, noise = FlowMatchEulerDiscreteScheduler.step, torch.Generator().manual_seed(0)  # which goes on and on

    def noisy(self, output, *args, **kwargs):
        return step(self, output + torch.randn(output.shape, generator=noise), *args, **kwargs)

    monkeypatch.setattr(FlowMatchEulerDiscreteScheduler, "step", noisy)
    path = checkpoint(tmp_path / "checkpoint", folders["sd3"])
    with pytest.raises(DataError, match=r"^m, sampling s: image \d drawn twice from seed \d .*scheduler_config.json"):
        draw(path, tmp_path / "images/manifest.json", images=2)
    assert not list((tmp_path / "images").rglob("*.*"))


@pytest.fixture(scope="module")
def censored(tmp_path_factory):
    """The folder of a Stable Diffusion whose safety checker objects to every image."""
    return tiny_pipelines.stable_diffusion(tmp_path_factory.mktemp("censored"), censored=True)


def test_a_pipelines_censor_blackens_nothing(tmp_path, censored, capsys, caplog):
    import diffusers

    whole = diffusers.StableDiffusionPipeline.from_pretrained(censored, use_safetensors=True)
    assert not whole(PROMPTS[0], num_inference_steps=1, height=16, width=16, output_type="np").images.any()
    capsys.readouterr(), caplog.clear()
    shutil.rmtree(censored / "feature_extractor")
    path = checkpoint(tmp_path, censored, "diffusers")
    found = draw(path, tmp_path / "images/manifest.json", images=2)
    assert found["status"] == "ok" and found["safety_checker"] == "not loaded"
    said = capsys.readouterr().err + caplog.text
    assert "safety" not in said and "NSFW" not in said


def test_a_pipeline_without_a_censor_says_nothing_of_one(folders):
    for name in ("sd3", "diffusers"):
        assert load_family(name).load(SETTINGS[name], folders[name]).censor is None
