"""Caches of the denoiser skip what they should, forget it with each drawing, and are refused where they cannot work."""

import contextlib
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from plans import plan_of, setting

import gather_images
import generate
from quantwatt.artifacts.errors import DataError, Unsupported
from quantwatt.config import experiment
from quantwatt.config.schemas import ConfigurationError
from quantwatt.inference import drawing
from quantwatt.inference.caches import mag
from quantwatt.inference.checkpoint import QuantizedPipeline
from quantwatt.models.families import load_family
from quantwatt.models.sampling import Drawing
from quantwatt.registry import load, names
from tools import mag_ratios

MODEL = experiment.load_experiment("embedded")["models"]["tiny-sd3"]
PROMPTS, SEEDS = ["a large red circle on a white background", "a small blue square on a black background"], [0, 1]
STEPS, BLOCKS = 5, 6
SAMPLING = Drawing(steps=STEPS, guidance=3.0, height=64, width=64)
NEVER = {  # settings that skip nothing
    "first-block": {"threshold": 0},
    "mag": {"ratios": [1.0], "most_in_a_row": 0},
    "taylorseer": {"first": STEPS},
    "pyramid-attention": {"every": 1},
    "faster": {"unconditional_every": 1, "every": 1},
}
OFTEN = {  # settings, and how many of all calls they skip
    "first-block": ({"threshold": 100}, (STEPS - 1) * (BLOCKS - 1)),  # every step but the first, all but the first
    "mag": ({"ratios": [1.0], "threshold": 1, "first_share": 0.4, "most_in_a_row": 2}, 2 * BLOCKS),  # steps 2 and 3
    "taylorseer": ({"first": 1, "interval": 3}, 3 * BLOCKS),  # steps 1, 3 and 4
    "pyramid-attention": ({"every": 2, "timesteps": [0, 1001]}, 2 * BLOCKS),  # steps 1 and 3
    "faster": ({"unconditional_every": 5, "every": 2, "timesteps": [-1, 1001]}, 2 * BLOCKS),
}


def settings_of(name, settings):
    method = experiment.complete_method({"cache": {"name": name, **settings}}, "test", name)
    return method["cache"]


@pytest.fixture(scope="module")
def loaded():
    family = load_family("sd3")
    return family.load(MODEL, MODEL["path"]), family


@pytest.fixture
def drawn(loaded):
    """A function that gives the pipeline with a cache, or without."""
    pipeline, family = loaded

    def drawn(cache=None, steps=None):
        own = cache and drawing.Cache(pipeline, family.denoiser(pipeline), cache)
        return QuantizedPipeline(pipeline, family, "real", None, None, cache=own, steps=steps)

    yield drawn
    drawing.remove_hooks(family.denoiser(pipeline))


@pytest.fixture(scope="module")
def plain(loaded):
    return QuantizedPipeline(*loaded, "real", None, None).generate(PROMPTS, SEEDS, SAMPLING)


def test_every_cache_is_tried():
    assert NEVER.keys() == OFTEN.keys() == set(names("caches"))


@pytest.mark.parametrize("name", NEVER)
def test_one_that_never_skips_gives_the_same_images(name, drawn, plain):
    cached = drawn(settings_of(name, NEVER[name]))
    np.testing.assert_array_equal(cached.generate(PROMPTS, SEEDS, SAMPLING), plain)
    assert cached.calls == {"unit": load("caches", name).UNIT, "asked": STEPS * BLOCKS, "skipped": 0}


@pytest.mark.parametrize("name", OFTEN)
def test_one_that_skips_is_near_and_begins_each_drawing_anew(name, drawn, plain):
    settings, skipped = OFTEN[name]
    cached = drawn(settings_of(name, settings))
    first = cached.generate(PROMPTS, SEEDS, SAMPLING)
    assert cached.calls["skipped"] == skipped and cached.calls["asked"] == STEPS * BLOCKS
    assert 0.01 < np.abs(first.astype(float) - plain).mean() < 25  # of 255
    cached.generate(PROMPTS[::-1], [7, 8], SAMPLING)
    np.testing.assert_array_equal(cached.generate(PROMPTS, SEEDS, SAMPLING), first)
    assert cached.calls["asked"] == 3 * STEPS * BLOCKS


def test_the_blocks_that_are_skipped_do_not_run(drawn, loaded):
    ran, blocks = [], loaded[0].transformer.transformer_blocks
    with contextlib.ExitStack() as hooks:
        for number, block in enumerate(blocks):
            hooks.enter_context(block.ff.register_forward_hook(lambda *_, number=number: ran.append(number)))
        drawn(settings_of("first-block", {"threshold": 100})).generate(PROMPTS, SEEDS, SAMPLING)
    assert ran == [*range(BLOCKS), *[0] * (STEPS - 1)]


def test_whole_steps_are_extrapolated(drawn, plain):
    cached = drawn(settings_of("taylorseer", {"first": 2, "interval": 2, "whole": True}))
    images = cached.generate(PROMPTS, SEEDS, SAMPLING)
    assert cached.calls["skipped"] == 2 * (BLOCKS + 1)  # of steps 2 and 4, and the last layer
    assert np.abs(images.astype(float) - plain).mean() < 25
    same = drawn(settings_of("taylorseer", {"first": STEPS, "whole": True})).generate(PROMPTS, SEEDS, SAMPLING)
    np.testing.assert_array_equal(same, plain)


def test_what_is_measured_is_what_is_drawn(drawn):
    cached = drawn(settings_of("first-block", {"threshold": 100}), steps=4)
    images = cached.generate(PROMPTS, SEEDS, SAMPLING)
    share = cached.calls["skipped"] / cached.calls["asked"]
    assert 0 < share < 1 and cached.calls["asked"] == 4 * BLOCKS
    pixels = cached.prepare(PROMPTS, SEEDS, SAMPLING)()
    for found in (pixels, cached.phases(PROMPTS, SEEDS, SAMPLING)["decode"]()):
        np.testing.assert_array_equal((found.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8), images)
    assert cached.calls["skipped"] / cached.calls["asked"] == share


def test_a_methods_steps_take_the_place_of_the_samplings(drawn, loaded, plain):
    fewer = drawn(steps=3)
    calls = []
    with loaded[0].transformer.register_forward_hook(lambda *_: calls.append(1)):
        images = fewer.generate(PROMPTS, SEEDS, SAMPLING)
        assert len(calls) == 3
        fewer.prepare(PROMPTS, SEEDS, SAMPLING)()
        assert len(calls) == 6
        fewer.generate(PROMPTS, SEEDS, SAMPLING, steps=1)  # a notebook's own word
        assert len(calls) == 7
    assert fewer.calls is None and 0 < np.abs(images.astype(float) - plain).mean() < 25
    np.testing.assert_array_equal(images, drawn().generate(PROMPTS, SEEDS, replace(SAMPLING, steps=3)))


def test_other_numbers_of_steps_in_a_row(drawn):
    cached = drawn(settings_of("mag", {"ratios": [1.0, 1.2, 1.0, 1.0, 1.0], "threshold": 0.1, "first_share": 0}))
    five = cached.generate(PROMPTS, SEEDS, SAMPLING)
    cached.generate(PROMPTS, SEEDS, SAMPLING, steps=3)
    np.testing.assert_array_equal(cached.generate(PROMPTS, SEEDS, SAMPLING), five)
    with pytest.raises(DataError, match="say how many there are"), cached.cache.drawing(Drawing()):
        pass


def test_ratios_of_a_model_are_measured(drawn, plain, loaded, monkeypatch, capsys, tmp_path):
    pipeline, norms = drawn(), []
    blocks = loaded[0].transformer.transformer_blocks
    with (
        blocks[0].register_forward_pre_hook(lambda _, __, kw: norms.append(kw["hidden_states"]), with_kwargs=True),
        blocks[-1].register_forward_hook(lambda _, __, out: norms.append(out[1] - norms.pop())),
    ):
        found = mag.ratios(loaded[0].transformer, lambda: pipeline.generate(PROMPTS, SEEDS, SAMPLING), SAMPLING.steps)
    norms = [residual.norm(dim=-1) for residual in norms]
    expected = [(b / a).mean().item() for a, b in itertools.pairwise(norms)]
    assert found == pytest.approx([1, *expected], rel=1e-5)
    np.testing.assert_array_equal(
        pipeline.generate(PROMPTS, SEEDS, SAMPLING), pipeline.generate(PROMPTS, SEEDS, SAMPLING)
    )
    monkeypatch.setattr("quantwatt.inference.checkpoint.load_pipeline", lambda *_, **__: pipeline)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    words = ["--checkpoint", "x", "--prompts", tmp_path / "prompts.txt", "--images", 2, "--steps", STEPS]
    mag_ratios.main([*map(str, words), "--guidance", "3", "--height", "64", "--width", "64"])
    said = capsys.readouterr().out.strip()
    assert said == f"ratios: [{', '.join(f'{ratio:.4g}' for ratio in found)}]"


# What an image set records


def test_what_was_skipped_is_counted_without_the_batch_that_is_drawn_twice(drawn):
    cached, fields = drawn(settings_of("first-block", {"threshold": 100})), {}
    batches = ((cached.generate([text], [0], SAMPLING), [text], [0]) for text in PROMPTS)
    counted = generate.counted(batches, cached, fields)
    again = generate.repeated(counted, cached, SAMPLING, "here", fields)
    assert len(list(again)) == 2 and fields["repeat_psnr"] is None
    assert fields["calls"] == {"unit": "blocks", "asked": 2 * STEPS * BLOCKS, "skipped": 2 * OFTEN["first-block"][1]}


def test_the_parts_of_a_set_add_up():
    part = {"images": [], "seconds": 1, "n_images": 0, "provenance": {}}
    calls = {"unit": "blocks", "asked": 10, "skipped": 3}
    joined = gather_images._joined({"a": part | {"calls": calls}, "b": part | {"calls": calls}})
    assert joined["calls"] == {"unit": "blocks", "asked": 20, "skipped": 6}
    assert "calls" not in gather_images._joined({"a": part})


# What cannot work


def denoisers():
    """{name: a small denoiser on the meta device}."""
    from diffusers import (
        Flux2Transformer2DModel,
        SanaTransformer2DModel,
        UNet2DConditionModel,
        ZImageTransformer2DModel,
    )

    heads = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1}
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel(
                block_out_channels=(32,), layers_per_block=1, down_block_types=("CrossAttnDownBlock2D",),
                up_block_types=("CrossAttnUpBlock2D",), cross_attention_dim=8,
            ),
            "sana": SanaTransformer2DModel(
                **heads, num_cross_attention_heads=2, cross_attention_head_dim=16, cross_attention_dim=32,
                sample_size=8,
            ),
            "flux2": Flux2Transformer2DModel(
                in_channels=16, num_single_layers=1, joint_attention_dim=32, axes_dims_rope=(4, 4, 4, 4), **heads
            ),
            "z-image": ZImageTransformer2DModel(
                dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, axes_dims=[4, 6, 6]
            ),
        }  # fmt: skip


REFUSED = [
    ("unet", "first-block", "has no stack of transformer blocks, of which some could be skipped"),
    ("unet", "mag", "has no stack of transformer blocks"),
    ("unet", "faster", "is none of those whose branches diffusers' FasterCache can take apart"),
    ("sana", "mag", "has no stack of transformer blocks"),  # of one block
    ("flux2", "first-block", "has blocks of two streams and of one, whose residuals"),
    ("z-image", "first-block", "diffusers' caches do not know, ZImageTransformerBlock"),
    ("z-image", "taylorseer", "has no last layer `proj_out`"),
]
WORKS = [("unet", "pyramid-attention"), ("unet", "taylorseer"), ("sana", "faster"), ("flux2", "mag"),
         ("z-image", "pyramid-attention")]  # fmt: skip


@pytest.fixture(scope="module")
def built():
    return denoisers()


@pytest.mark.parametrize(("denoiser", "name", "words"), REFUSED)
def test_a_denoiser_that_a_cache_does_not_know_is_unsupported(denoiser, name, words, built, loaded):
    settings = settings_of(name, NEVER[name]) | ({"whole": True} if name == "taylorseer" else {})
    with pytest.raises(Unsupported) as error:
        drawing.Cache(loaded[0], built[denoiser], settings)
    assert str(error.value).startswith(f"cache {name}: {type(built[denoiser]).__name__} ") and words in str(error.value)


@pytest.mark.parametrize(("denoiser", "name"), WORKS)
def test_one_that_it_knows_is_not_refused(denoiser, name, built, loaded):
    assert drawing.Cache(loaded[0], built[denoiser], settings_of(name, NEVER[name])).plugin.UNIT


def test_without_guidance_there_is_no_branch_to_estimate(drawn):
    with pytest.raises(Unsupported, match="cache faster: without guidance"):
        drawn(settings_of("faster", {})).generate(PROMPTS, SEEDS, replace(SAMPLING, guidance=1.0))


FIRST_BLOCK = {"cache": {"name": "first-block"}}
WRONG = [  # (experiment, method, entry, further changes, the sentence's end)
    ("embedded", {"cache": {"name": "first-blok"}}, {}, "methods.new.cache.name: 'first-blok' is not known (known: "),
    ("embedded", {"cache": {"name": "first-block", "threshhold": 1}}, {}, "did you mean 'threshold'"),
    ("embedded", {"cache": {"name": "mag"}}, {}, "methods.new.cache: the key 'ratios' is missing."),
    (
        "embedded",
        FIRST_BLOCK | {"compile": True},
        {},
        "methods.new.compile: a cache decides at every step what to skip",
    ),
    ("embedded", {"steps": 0}, {}, "methods.new.steps: "),
    ("embedded", {"steps": 5}, {"baseline": "new"}, "methods.new.steps: the baseline draws as its sampling says"),
    ("embedded", {"cache": {"name": "faster"}}, {"samplings/steps-20/guidance": 1}, "sampling 'steps-20' has none"),
    (
        "embedded-mixdq",
        FIRST_BLOCK,
        {},
        "methods.new.cache.name: 'first-block' skips blocks of a transformer, and model",
    ),
    ("embedded-digits", FIRST_BLOCK, {}, "has a UNet; leave the cache out"),
    ("embedded-text", FIRST_BLOCK, {}, "methods.new.cache: text models take no denoising steps; drop the key."),
    ("embedded-text", {"steps": 5}, {}, "methods.new.steps: text models take no denoising steps; drop the key."),
]


@pytest.mark.parametrize(("name", "entry", "further", "words"), WRONG)
def test_what_can_be_known_is_refused_in_a_sentence_before_any_job(name, entry, further, words):
    def change(entries):
        setting("methods/new", entry)(entries)
        for path, value in further.items():
            setting(path, value)(entries)

    with pytest.raises(ConfigurationError) as error:
        plan_of(name, change)
    assert words in str(error.value) and str(error.value).startswith(f"{name}.yaml: ") and "\n" not in str(error.value)


def test_a_key_without_a_value_is_no_key():
    method = experiment.complete_method({"cache": None, "steps": None}, "test", "method")
    assert method == experiment.complete_method({}, "test", "method")
    assert plan_of("embedded-digits", setting("methods/new", {"cache": {"name": "taylorseer"}})).experiment
