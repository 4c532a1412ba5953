"""The consistency family, on a tiny random model, and the trajectories that the embedded model learns."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from quantwatt.artifacts.errors import DataError
from quantwatt.data import digits
from quantwatt.models.families import load_family
from quantwatt.models.sampling import Drawing
from training import (
    loop,  # before diffusers
    tiny_consistency,  # before diffusers
)

# isort: split
from diffusers import ConsistencyModelPipeline, KDPM2AncestralDiscreteScheduler, UNet2DModel

FAMILY = load_family("consistency")

SETTINGS = {"dtype": "float32", "timesteps": [[22, 0]]}
SIZE = digits.IMAGE_SIZE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model with everything that the embedded one has, at a quarter of its width."""
    torch.manual_seed(0)
    network = UNet2DModel(**{**tiny_consistency.new(0).config, "block_out_channels": (8, 16), "attention_head_dim": 8})
    with torch.no_grad():
        network.conv_out.weight.mul_(10)  # a random network otherwise draws the noise's own grey
    path = tmp_path_factory.mktemp("pipeline")
    ConsistencyModelPipeline(unet=network, scheduler=tiny_consistency.scheduler()).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pipe(folder):
    return FAMILY.load(SETTINGS, folder)


@pytest.mark.parametrize(("steps", "own"), [(1, {"num_inference_steps": 1}), (4, {"num_inference_steps": 4}),
                                            (2, {"num_inference_steps": None, "timesteps": [22, 0]})])  # fmt: skip
def test_images_are_the_pipelines_own(pipe, steps, own):
    drawn = FAMILY.generate(pipe, ["3"], [5], Drawing(steps=steps, guidance=1.0, height=SIZE, width=SIZE))
    generator = torch.Generator().manual_seed(5)
    expected = pipe(class_labels=3, generator=generator, output_type="np", **own).images
    assert drawn.shape == (1, SIZE, SIZE, 3) and np.ptp(drawn) > 0.1
    np.testing.assert_allclose(drawn, np.repeat(expected, 3, -1), atol=1e-6)


def test_a_model_in_bfloat16_draws(folder):
    drawn = FAMILY.generate(FAMILY.load({**SETTINGS, "dtype": "bfloat16"}, folder), ["3"], [5], Drawing(steps=1))
    assert drawn.dtype == np.float32 and np.ptp(drawn) > 0.1


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_an_image_is_a_function_of_its_own_seed_and_class(pipe, steps):
    both = FAMILY.generate(pipe, ["3", "7"], [5, 6], Drawing(steps=steps))
    alone = FAMILY.generate(pipe, ["7"], [6], Drawing(steps=steps))
    np.testing.assert_allclose(both[1:], alone, atol=1e-5)
    for prompt, seed in (("7", 7), ("8", 6)):
        assert np.abs(FAMILY.generate(pipe, [prompt], [seed], Drawing(steps=steps)) - alone).max() > 1e-3


def test_all_of_a_run_is_denoising(pipe):
    sampling = Drawing(steps=2)
    whole = FAMILY.prepare(pipe, ["3"], [5], sampling)()
    parts = FAMILY.phases(pipe, ["3"], [5], sampling)
    assert list(parts) == ["denoise"] and torch.equal(parts["denoise"](), whole)
    np.testing.assert_allclose(
        FAMILY.generate(pipe, ["3"], [5], sampling)[..., :1], whole.permute(0, 2, 3, 1), atol=1e-6
    )


@torch.no_grad()
def test_recorded_inputs_give_the_trajectorys_outputs(pipe):
    outputs = []
    handle = pipe.unet.register_forward_hook(lambda module, args, output: outputs.append(output[0]))
    with handle:
        kept = FAMILY.record(pipe, ["3", "7"], [5, 6], Drawing(steps=4), steps={0, 2})
    assert set(kept) == {0, 2}
    for step, inputs in kept.items():
        assert set(inputs) == {"sample", "timestep", "class_labels"} and inputs["timestep"].shape == (2,)
        torch.testing.assert_close(pipe.unet(**inputs).sample, outputs[step])
    assert kept[0]["timestep"][0] == pytest.approx(250 * np.log(20), rel=1e-5)


@torch.no_grad()
def test_a_scheduler_that_evaluates_twice_a_step_is_recorded_to_its_end(folder):
    pipeline = FAMILY.load({**SETTINGS, "timesteps": []}, folder)
    pipeline.scheduler = KDPM2AncestralDiscreteScheduler()
    kept = FAMILY.record(pipeline, ["3"], [5], Drawing(steps=4), steps={0, 1, 3})
    planned = pipeline.scheduler.timesteps.tolist()
    assert len(planned) == 7 and kept.timesteps == {0: planned[0], 1: planned[2], 3: planned[6]}
    assert {step: inputs["timestep"].item() for step, inputs in kept.items()} == pytest.approx(kept.timesteps)


@pytest.mark.parametrize(
    ("prompt", "sampling", "words"),
    [
        ("3", {"guidance": 2.0}, "guidance: .*set 1, not 2.0"),
        ("3", {"height": 64}, "height: .*16x16 pixels only; set 16, not 64"),
        ("3", {"steps": 41}, "40 noise levels"),
        ("10", {}, "prompt '10': .*0 to 9"),
        ("a cat", {}, "prompt 'a cat': .*0 to 9"),
    ],
)
def test_what_the_model_cannot_draw_is_refused(pipe, prompt, sampling, words):
    with pytest.raises(DataError, match=words):
        FAMILY.generate(pipe, [prompt], [0], Drawing(**{"steps": 1, **sampling}))


@pytest.mark.parametrize("schedule", [[0, 22], [40, 0], [22, 1], [22, 22, 0]])
def test_a_schedule_falls_to_the_highest_level(folder, schedule):
    with pytest.raises(DataError, match="timesteps: .*does not fall from below 40"):
        FAMILY.load({**SETTINGS, "timesteps": [schedule]}, folder)


@torch.no_grad()
def test_skips_are_what_the_network_concatenates(folder, monkeypatch):
    denoiser = FAMILY.load_denoiser(SETTINGS, folder)
    found, joined, cat = FAMILY.skips(denoiser), [], torch.cat

    def seen(tensors, dim=0):
        if dim == 1 and tensors[0].ndim == 4:
            joined.append(tuple(tensor.shape[1] for tensor in tensors))
        return cat(tensors, dim=dim)

    monkeypatch.setattr(torch, "cat", seen)
    denoiser(torch.randn(1, 1, SIZE, SIZE), torch.tensor([1.0]), class_labels=torch.tensor([3]))
    assert len(joined) == 4 and [parts for name, parts in found.items() if name.endswith("conv1")] == joined
    assert {name: sum(parts) for name, parts in found.items()} == {
        name: denoiser.get_submodule(name).in_channels for name in found
    }
    assert {name for name in found if name.endswith("conv_shortcut")} and len(set(joined)) > 1


def test_every_layer_is_quantizable_and_in_one_block(folder):
    denoiser = FAMILY.meta_denoiser(folder)
    layers = FAMILY.quantizable(denoiser)
    assert {"conv_in", "conv_out", "time_embedding.linear_1", "mid_block.attentions.0.to_q"} < set(layers)
    blocks = FAMILY.blocks(denoiser)
    assert all(sum(name == b or name.startswith(f"{b}.") for b in blocks) == 1 for name in layers)
    assert next(denoiser.parameters()).is_meta and FAMILY.segments(denoiser) == {}


@pytest.fixture(scope="module")
def flow():
    """Trajectories to 40 digits."""
    images, classes = digits.dataset(held=False)
    return tiny_consistency.ProbabilityFlow(images[:40], classes[:40], tiny_consistency.scheduler().sigmas.float())


def test_the_denoiser_is_the_mean_of_a_classs_pictures(flow):
    images, classes = digits.dataset(held=False)
    pictures = loop.to_tensor(images[:40])[:, 0].flatten(1).double()
    x = torch.randn(10, 2, SIZE**2, generator=torch.Generator().manual_seed(0))
    found = flow.denoised(x, torch.tensor(3.0))
    for label in (0, 9):
        own = pictures[torch.from_numpy(classes[:40] == label)]
        weights = (-(torch.cdist(x[label].double(), own) ** 2) / (2 * 3.0**2)).softmax(-1)
        torch.testing.assert_close(found[label].double(), weights @ own, atol=1e-4, rtol=0)


def test_trajectories_end_in_pictures_of_their_class(flow):
    noise = torch.randn(10, 3, SIZE**2, generator=torch.Generator().manual_seed(0))
    points = flow.solve(noise)
    assert points.shape == (41, 10, 3, SIZE**2) and torch.equal(points[0], 20 * noise)
    nearest = torch.cdist(points[-1], flow.pictures).min(-1).values
    assert nearest.max() < 0.05 < 1 < functional.pairwise_distance(points[-1, :, 0], points[-1, :, 1]).max()


def test_a_step_of_every_pictures_own_noise_is_that_of_all_at_once(flow):
    x = 5 * torch.randn(10, 3, SIZE**2, generator=torch.Generator().manual_seed(0))
    high, low = (
        torch.tensor([5.0, 2.0, 0.5]).expand(10, 3)[..., None],
        torch.tensor([4.0, 1.9, 0.3]).expand(10, 3)[..., None],
    )
    together = flow.step(x, high, low)
    for i in range(3):
        alone = flow.step(x[:, i : i + 1], high[0, i], low[0, i])
        torch.testing.assert_close(together[:, i : i + 1], alone, atol=1e-4, rtol=1e-4)


def test_drawn_pictures_are_of_their_class(flow):
    images, classes = digits.dataset(held=False)
    pictures = loop.to_tensor(images[:40])[:, 0].flatten(1)
    drawn = flow.draw(30, torch.Generator().manual_seed(0))
    for label in range(10):
        own = pictures[torch.from_numpy(classes[:40] == label)]
        distances = torch.cdist(drawn[label], own)
        assert distances.min(1).values.max() < 0.05 and len(distances.argmin(1).unique()) == len(own)


@torch.no_grad()
def test_training_sees_the_function_that_the_pipeline_draws(pipe):
    """One step of the pipeline is the consistency function at the highest noise, cut off at black and white."""
    noise = torch.randn(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    levels = tiny_consistency.scheduler()
    sigma = levels.sigmas[:1].float()
    found = tiny_consistency.consistency(pipe.unet, levels, sigma * noise, sigma, torch.tensor([3]))
    drawn = FAMILY.generate(pipe, ["3"], [5], Drawing(steps=1))
    np.testing.assert_allclose((found.clamp(-1, 1)[0, 0] + 1) / 2, drawn[0, ..., 0], atol=1e-5)
