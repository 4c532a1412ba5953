"""Recent pipelines: denoisers with lists, texts of several lengths or other argument names, and pipelines to refuse."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny_pipelines
import torch
from diffusers.hooks.hooks import StateManager

from quantwatt.artifacts.errors import DataError, Unsupported
from quantwatt.inference import drawing
from quantwatt.models.denoiser_inputs import nested
from quantwatt.models.families import load_family
from quantwatt.models.sampling import Calibration, Drawing
from quantwatt.quantize import calibration

FAMILY = load_family("diffusers")
BATCHED = ["z-image", "qwen-image", "flux2-klein"]
TEXTS = ["a red circle", "a small blue square", "x"]
SEEDS = [5, 6, 7]
SAMPLING = Drawing(steps=2, guidance=4.0, height=16, width=16)
BROADCAST = {"name": "pyramid-attention", "every": 2, "cross_every": 2, "timesteps": [0, 1001]}
CALIBRATION = Calibration(**SAMPLING.to_settings(), prompts="", timesteps=2, timesteps_per_prompt=1, seed=7)


def settings(name):
    return {"family": "diffusers", "dtype": "float32", "arguments": tiny_pipelines.ARGUMENTS.get(name, {})}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: build(tmp_path_factory.mktemp(name)) for name, build in tiny_pipelines.RECENT.items()}


@pytest.fixture(scope="module")
def pipelines(folders):
    return {name: FAMILY.load(settings(name), folder) for name, folder in folders.items()}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", BATCHED)
def test_an_image_is_a_function_of_its_prompt_seed_and_guidance(pipelines, name):
    drawn = FAMILY.generate(pipelines[name], TEXTS, SEEDS, SAMPLING)
    assert drawn.shape == (3, 16, 16, 3) and np.ptp(drawn) > 0.1
    alone = FAMILY.generate(pipelines[name], TEXTS[1:2], [6], SAMPLING)
    np.testing.assert_allclose(drawn[1:2], alone, atol=1e-4)
    for prompt, seed, guidance in (("y", 6, 4.0), (TEXTS[1], 7, 4.0), (TEXTS[1], 6, 1.0), (TEXTS[1], 6, 8.0)):
        other = FAMILY.generate(pipelines[name], [prompt], [seed], replace(SAMPLING, guidance=guidance))
        assert np.abs(other - alone).max() > 1e-4, (prompt, seed, guidance)


@pytest.mark.parametrize("name", BATCHED)
@pytest.mark.parametrize("batch", [1, 2])
def test_texts_of_several_lengths_are_calibrated_with_and_give_the_outputs_again(pipelines, name, batch):
    pipeline, seen = pipelines[name], []
    entry = replace(CALIBRATION, batch_size=batch, timesteps_per_prompt=2)
    with pipeline.transformer.register_forward_hook(lambda module, args, out: seen.append([*out[0]])):
        samples, rows = calibration.record(FAMILY, pipeline, TEXTS[:2], entry)
    assert [row["timestep"] for row in rows[::2]] == [*pipeline.scheduler.timesteps.tolist()] * 2
    assert {len(tensor) for tensor in samples.values()} == {len(rows)} == {8}  # both branches of both steps
    flat = [output for outputs in seen for output in outputs]
    for first in range(0, 8, batch):
        found = pipeline.transformer(**nested({n: tensor[first : first + batch] for n, tensor in samples.items()}))[0]
        for output in found:  # one of the pipeline's
            assert min((output - other).abs().max() for other in flat if other.shape == output.shape) < 1e-4


def test_an_output_of_another_name_is_drawn_and_texts_without_a_mask_go_one_by_one(pipelines):
    pipeline = pipelines["kandinsky5"]
    with pytest.raises(DataError, match=r"Kandinsky5T2IPipeline draws 1024x1024, .* pixels only, not 512x512"):
        FAMILY.generate(pipeline, TEXTS[:1], [5], replace(SAMPLING, height=512, width=512))
    pipeline.resolutions = [(16, 16)]  # as it would draw them if it had been trained with them
    assert FAMILY.generate(pipeline, TEXTS[:1], [5], SAMPLING).shape == (1, 16, 16, 3)
    samples, rows = calibration.record(FAMILY, pipeline, TEXTS, replace(CALIBRATION, batch_size=1))
    assert len(rows) == 6
    one = nested({name: tensor[:1] for name, tensor in samples.items()})
    assert isinstance(one["visual_rope_pos"], list) and one["scale_factor"] == [1.0, 1.0, 1.0]
    assert pipeline.transformer(**one)[0].shape == one["hidden_states"].shape
    with pytest.raises(DataError, match=r"encoder_hidden_states: differs between samples .*batch_size: 1"):
        calibration.record(FAMILY, pipeline, TEXTS, replace(CALIBRATION, batch_size=2))


def test_branches_in_turns_have_states_of_their_own_or_no_cache(pipelines, monkeypatch):
    """Qwen-Image computes both branches of guidance one after the other, Kandinsky does not say which is which."""
    seen, asked, state = [], replace(SAMPLING, steps=3), StateManager.get_state
    monkeypatch.setattr(StateManager, "get_state", lambda own: seen.append(own.context.name) or state(own))
    for name, told in (("qwen-image", True), ("kandinsky5", False)):
        pipeline, cache = pipelines[name], {"name": "mag", "ratios": [1.0], "threshold": 9, "most_in_a_row": 1}
        pipeline.resolutions = [(16, 16)]
        cached = drawing.Cache(pipeline, pipeline.transformer, cache | {"first_share": 0})
        plain = FAMILY.generate(pipeline, TEXTS[:1], [5], asked)
        with cached.drawing(asked):
            drawn = FAMILY.generate(pipeline, TEXTS[:1], [5], asked)
        assert set(seen) == ({"cond", "uncond"} if told else {"branch 1", "branch 2"})
        assert len({*map(seen.count, seen)}) == 1 and not seen.clear()  # each as often
        assert cached.calls["skipped"] * 3 == cached.calls["asked"] and 0 < np.abs(drawn - plain).max() < 0.5
        shared = drawing.Cache(pipeline, pipeline.transformer, BROADCAST)
        with pytest.raises(Unsupported, match="computes the branches of guidance in turns"), shared.drawing(asked):
            FAMILY.generate(pipeline, TEXTS[:1], [5], asked)
        drawing.remove_hooks(pipeline.transformer)
        np.testing.assert_array_equal(FAMILY.generate(pipeline, TEXTS[:1], [5], asked), plain)


def test_distilled_guidance_that_changes_nothing_is_refused(pipelines):
    pipeline = pipelines["flux2-klein"]
    pipeline.register_to_config(is_distilled=True)
    try:
        with pytest.raises(DataError, match=r"guidance: 4.0 changes nothing .* Flux2KleinPipeline; set 1"):
            FAMILY.generate(pipeline, TEXTS[:1], [5], SAMPLING)
        assert FAMILY.generate(pipeline, TEXTS[:1], [5], replace(SAMPLING, guidance=1.0)).any()
    finally:
        pipeline.register_to_config(is_distilled=False)


def test_what_guidance_is_called_is_said_by_a_sampling(folders):
    entry = settings("qwen-image") | {"arguments": {"true_cfg_scale": 3.0}}
    with pytest.raises(DataError, match="QwenImagePipeline does not take 'true_cfg_scale'"):
        FAMILY.load(entry, folders["qwen-image"])


VIDEOS = "draws videos; quantwatt compares images"
REFUSED = {
    "WanPipeline": VIDEOS,
    "WanImageToVideoPipeline": VIDEOS,
    "LTXPipeline": VIDEOS,
    "Kandinsky5T2VPipeline": VIDEOS,
    "TextToVideoZeroPipeline": VIDEOS,
    "CogVideoXFunControlPipeline": VIDEOS,
    "StableAudioPipeline": "gives audios",
    "AudioLDMPipeline": "draws sound",
    "LLaDA2Pipeline": "gives sequences, texts",
    "KandinskyV22PriorPipeline": "gives image_embeds",
    "StableDiffusionXLInpaintPipeline": "needs 'image'",
    "FluxFillPipeline": "needs 'image'",
    "QwenImageEditInpaintPipeline": "needs 'mask_image'",
    "StableDiffusionControlNetImg2ImgPipeline": "needs 'control_image'",
    "StableDiffusionUpscalePipeline": "needs 'image'",
    "FluxControlPipeline": "needs 'control_image'",
    "StableDiffusionControlNetPipeline": "needs 'image'",
    "KandinskyV22Pipeline": "needs 'image_embeds'",
    "KandinskyV22CombinedPipeline": "joins several pipelines",
    "NoSuchPipeline": r"names NoSuchPipeline, which is no pipeline of diffusers \d",
    "UNet2DModel": "names UNet2DModel, which is no pipeline",
}
DRAWS = """
    FluxPipeline Flux2Pipeline FluxKontextPipeline OmniGenPipeline StableDiffusionXLPipeline
    StableDiffusionImg2ImgPipeline StableDiffusionInstructPix2PixPipeline QwenImageEditPipeline
    DreamLitePipeline StableDiffusion3PAGPipeline DDPMPipeline HunyuanDiTPipeline
""".split()


def test_a_class_that_draws_no_images_from_prompts_is_refused_from_its_index_alone(tmp_path):
    index = tmp_path / "model_index.json"
    for name, words in REFUSED.items():
        index.write_text(json.dumps({"_class_name": name}))
        for stage in (FAMILY.check, FAMILY.meta_denoiser, lambda folder: FAMILY.load(settings("z-image"), folder)):
            with pytest.raises(DataError, match=words) as refused:
                stage(tmp_path)
            assert name in str(refused.value)
    for name in DRAWS:
        index.write_text(json.dumps({"_class_name": name}))
        FAMILY.check(tmp_path)
    index.write_text(json.dumps({"_class_name": ["pipeline", "MyPipeline"]}))
    with pytest.raises(DataError, match="code of its own .MyPipeline., which is never run"):
        FAMILY.check(tmp_path)


def test_two_denoisers_that_take_turns_are_refused(tmp_path):
    parts = {name: ["diffusers", "FluxTransformer2DModel"] for name in ("transformer", "transformer_2")}
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline", **parts}))
    with pytest.raises(DataError, match=r"two denoisers take turns \(transformer, transformer_2\)"):
        FAMILY.meta_denoiser(tmp_path)
