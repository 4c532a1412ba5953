"""The generic family: pipelines without code of their own generate images, are recorded and are taken apart."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny_pipelines
import torch
import yaml
from safetensors.torch import load_file, save_file

import model
from quantwatt.allocate.allocation import allocate
from quantwatt.artifacts import checkpoint_files, manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.images import to_uint8
from quantwatt.config import experiment
from quantwatt.inference import checkpoint, kernel_choice
from quantwatt.models import architecture, splits
from quantwatt.models.denoiser_inputs import flat, nested, shared, stack
from quantwatt.models.families import load_family, recording
from quantwatt.models.sampling import Calibration, Drawing
from quantwatt.quantize import calibration, sequential

FAMILY = load_family("diffusers")
NAMES = list(tiny_pipelines.BUILDERS)
TEXTS = ["a large red circle on the left", "a small blue square", "a green triangle of black"]


def settings(name):
    return {"family": "diffusers", "dtype": "float32", "arguments": tiny_pipelines.ARGUMENTS.get(name, {})}


def sampling(name, **entries):
    size = tiny_pipelines.SIZES.get(name, 16)
    return Drawing(**{"steps": 2, "guidance": 2.0, "height": size, "width": size, **entries})


def calibrated(name, batch_size):
    more = {"prompts": "", "batch_size": batch_size, "timesteps": 2, "timesteps_per_prompt": 1, "seed": 7}
    return Calibration.from_settings(sampling(name).to_settings() | more)


def subjects(name):
    return ["3", "7", "11"] if name == "dit" else TEXTS


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: tiny_pipelines.BUILDERS[name](tmp_path_factory.mktemp(name)) for name in NAMES}


@pytest.fixture(scope="module")
def pipelines(folders):
    return {name: FAMILY.load(settings(name), folders[name]) for name in NAMES}


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def pipeline(name, pipelines):
    return pipelines[name]


@pytest.fixture
def denoiser(pipeline):
    return pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def test_every_layer_is_in_exactly_one_block(denoiser):
    layers, blocks = FAMILY.quantizable(denoiser), FAMILY.blocks(denoiser)
    computing = [m for m in denoiser.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
    assert len(layers) == len(computing) and all(denoiser.get_submodule(n) in computing for n in layers)
    holding = {n: [block for block in blocks if n == block or n.startswith(f"{block}.")] for n in layers}
    assert {len(found) for found in holding.values()} == {1}
    assert len(blocks) == len({found[0] for found in holding.values()})  # none is empty, none stands twice


BLOCKS = {
    "flux": [
        "transformer_blocks.0",
        "transformer_blocks.1",
        "single_transformer_blocks.0",
        "single_transformer_blocks.1",
    ],
    "pixart": ["transformer_blocks.0", "transformer_blocks.1"],
    "sana": ["transformer_blocks.0", "transformer_blocks.1"],
    "dit": ["transformer_blocks.0", "transformer_blocks.1"],
    "stable-diffusion": [
        "down_blocks.0.resnets.0",
        "down_blocks.1.resnets.0",
        "down_blocks.1.attentions.0.transformer_blocks.0",
        "mid_block.resnets.0",
        "mid_block.resnets.1",
        "mid_block.attentions.0.transformer_blocks.0",
        *(f"up_blocks.{level}.resnets.{i}" for level in (0, 1) for i in (0, 1)),
        *(f"up_blocks.0.attentions.{i}.transformer_blocks.0" for i in (0, 1)),
    ],
}


def test_blocks_of_several_layers_are_the_architectures_own(name, denoiser):
    several = [block for block in FAMILY.blocks(denoiser) if block not in FAMILY.quantizable(denoiser)]
    assert sorted(several) == sorted(BLOCKS[name])


def test_chunks_of_modulation_layers_are_found(pipelines):
    flux = FAMILY.segments(pipelines["flux"].transformer)
    assert flux["transformer_blocks.1.norm1_context.linear"] == 6 and flux["norm_out.linear"] == 2
    assert flux["single_transformer_blocks.0.norm.linear"] == 3
    assert FAMILY.segments(pipelines["pixart"].transformer) == {"adaln_single.linear": 6}
    for pipeline in pipelines.values():
        denoiser = getattr(pipeline, "transformer", None) or pipeline.unet
        for layer, count in FAMILY.segments(denoiser).items():
            assert denoiser.get_submodule(layer).out_features % count == 0


def test_the_architecture_alone_takes_no_memory_for_weights_and_lacks_nothing_else(name, folders, denoiser):
    empty = FAMILY.meta_denoiser(folders[name])
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert {n: p.shape for n, p in empty.named_parameters()} == {n: p.shape for n, p in denoiser.named_parameters()}
    buffers = dict(denoiser.named_buffers())
    assert all(torch.equal(found, buffers[n]) for n, found in empty.named_buffers())
    missing, unexpected = empty.load_state_dict(denoiser.state_dict(), assign=True)
    assert not missing and not unexpected
    alone = FAMILY.load_denoiser(settings(name), folders[name])
    assert all(torch.equal(p, q) for p, q in zip(alone.parameters(), empty.parameters(), strict=True))


def test_an_image_is_a_function_of_its_prompt_and_seed_alone(name, pipeline):
    asked = subjects(name)
    images = FAMILY.generate(pipeline, asked, [5, 6, 7], sampling(name))
    size = tiny_pipelines.SIZES.get(name, 16)
    assert images.shape == (3, size, size, 3) and images.dtype == np.float32
    assert 0 <= images.min() < images.max() <= 1
    alone = FAMILY.generate(pipeline, asked[1:2], [6], sampling(name))
    assert np.allclose(alone[0], images[1], atol=1e-4)
    assert np.abs(images[0] - images[1]).max() > 0.01
    assert np.abs(FAMILY.generate(pipeline, asked[1:2], [7], sampling(name)) - alone).max() > 0.01
    (whole,) = FAMILY.phases(pipeline, asked, [5, 6, 7], sampling(name)).values()
    assert np.allclose(whole().permute(0, 2, 3, 1).numpy(), images, atol=1e-4)


def test_recorded_inputs_give_the_denoisers_outputs_again(name, pipeline, denoiser):
    seen, asked = [], subjects(name)
    with denoiser.register_forward_hook(lambda module, args, output: seen.append(output[0].clone())):
        kept = FAMILY.record(pipeline, asked, [5, 6, 7], sampling(name, steps=4), {1, 3})
    assert len(seen) == 4 and kept.keys() == {1, 3}
    for step, inputs in kept.items():
        assert {len(tensor) for tensor in inputs.values()} == {len(seen[step])}
        assert torch.equal(denoiser(**nested(inputs))[0], seen[step])
    branches = {"flux": 1}.get(name, 2)  # FLUX is told how much guidance, and has one branch
    assert len(seen[0]) == 3 * branches


def test_samples_of_different_steps_and_prompts_make_one_call(name, pipeline, denoiser):
    seen = []
    with denoiser.register_forward_hook(lambda module, args, output: seen.append(output[0].clone())):
        kept = FAMILY.record(pipeline, subjects(name), [5, 6, 7], sampling(name), {0, 1})
    mixed = {n: torch.stack([kept[1][n][2], kept[0][n][0]]) for n in kept[0]}
    found = denoiser(**nested(mixed))[0]
    assert torch.allclose(found, torch.stack([seen[1][2], seen[0][0]]), atol=1e-5)


def test_a_tensor_of_the_whole_call_is_told_from_one_row_a_sample_whatever_their_lengths(pipelines):
    flux, seen = pipelines["flux"], []
    prompts, tokens = TEXTS * 4, tiny_pipelines.ARGUMENTS["flux"]["max_sequence_length"]
    assert len(prompts) == tokens
    with flux.transformer.register_forward_hook(lambda module, args, output: seen.append(output[0].clone())):
        kept = FAMILY.record(flux, prompts, range(tokens), sampling("flux", steps=1), {0})[0]
    assert kept["txt_ids:shared"].shape == (tokens, tokens, 3) and len(kept["guidance"]) == tokens
    found = flux.transformer(**nested({n: tensor[3:8] for n, tensor in kept.items()}))[0]
    assert torch.allclose(found, seen[0][3:8], atol=1e-5)


def test_both_branches_are_kept_where_guidance_calls_twice(folders):
    entry = settings("flux")
    entry["arguments"] = {**entry["arguments"], "true_cfg_scale": 3.0}
    pipeline, seen = FAMILY.load(entry, folders["flux"]), []
    with pipeline.transformer.register_forward_hook(lambda module, args, output: seen.append(output[0].clone())):
        kept = FAMILY.record(pipeline, TEXTS, [5, 6, 7], sampling("flux"), {1})
    assert len(seen) == 4 and len(kept[1]["hidden_states"]) == 6
    assert not torch.equal(seen[2], seen[3])
    found = pipeline.transformer(**nested(kept[1]))[0]
    assert torch.allclose(found, torch.cat(seen[2:]), atol=1e-5)


def test_steps_are_counted_where_the_scheduler_evaluates_twice_a_step(folders):
    from diffusers import HeunDiscreteScheduler

    pipeline = FAMILY.load(settings("stable-diffusion"), folders["stable-diffusion"])
    pipeline.scheduler = HeunDiscreteScheduler.from_config(pipeline.scheduler.config)
    kept = FAMILY.record(pipeline, TEXTS, [5, 6, 7], sampling("stable-diffusion", steps=4), {0, 2})
    planned = pipeline.scheduler.timesteps
    assert len(planned) == 7  # every step but the last twice
    assert kept[0]["timestep"].tolist() == [planned[0]] * 6
    assert kept[2]["timestep"].tolist() == [planned[3]] * 6 and planned[3] == planned.unique().flip(0)[2]
    assert pipeline.scheduler.step.__name__ == "step" and "step" not in vars(pipeline.scheduler)


@pytest.mark.parametrize("name", ["flux", "stable-diffusion"], indirect=True)
def test_calibration_stacks_what_was_recorded(name, pipeline, denoiser, tmp_path):
    entry = calibrated(name, batch_size=2)
    samples, rows = calibration.record(FAMILY, pipeline, subjects(name), entry)
    branches = {"flux": 1}.get(name, 2)
    assert len(rows) == 3 * branches and {len(tensor) for tensor in samples.values()} == {len(rows)}
    calibration.save(tmp_path, samples, rows, {})
    loaded, _ = calibration.load(tmp_path / "manifest.json")
    assert loaded.keys() == samples.keys() and all(torch.equal(loaded[n], samples[n]) for n in samples)
    assert denoiser(**nested(loaded))[0].shape[0] == len(rows)


def test_a_call_is_stored_by_samples_and_made_again(tmp_path):
    pair = (torch.arange(3), torch.ones(2, 3))  # of two types: a file has the larger one first
    call = {
        "hidden_states": torch.randn(3, 5),
        "timestep": torch.tensor(7),
        "added": {"embeds": torch.randn(3, 2), "nothing": None},
        "rotary": pair,
        "height": 4,
        "scale": 0.1,
        "flag": False,
    }
    more = call | {"hidden_states": torch.randn(4, 5), "added": {"embeds": torch.randn(4, 2), "nothing": None}}
    stored = flat(call, 3, shared(call, more))
    save_file({n: tensor.contiguous() for n, tensor in stored.items()}, tmp_path / "samples.safetensors")
    stored = load_file(tmp_path / "samples.safetensors")
    assert {len(tensor) for tensor in stored.values()} == {3}
    again = nested(stored)
    assert again["timestep"].tolist() == [7, 7, 7]
    assert torch.equal(again["added"]["embeds"], call["added"]["embeds"]) and again["added"]["nothing"] is None
    assert all(torch.equal(found, part) for found, part in zip(again["rotary"], pair, strict=True))
    assert (again["height"], again["scale"], again["flag"]) == (4, 0.1, False)
    assert [type(again[key]) for key in ("height", "scale", "flag")] == [int, float, bool]
    assert nested({n: tensor[1:2] for n, tensor in stored.items()})["rotary"][1].shape == (2, 3)


def test_what_one_call_cannot_give_to_all_samples_is_refused():
    other = flat({"hidden_states": torch.ones(2, 5), "height": 8}, 2, set())
    mixed = {n: torch.cat([tensor, other[n] * 2]) for n, tensor in other.items()}
    with pytest.raises(DataError, match="height:int: differs .*batch_size: 1"):
        nested(mixed)
    with pytest.raises(DataError, match="mode: a str cannot be stored"):
        flat({"mode": "fast"}, 2, set())
    heads = {"mask": torch.ones(6, 5)}, {"mask": torch.ones(8, 5)}
    with pytest.raises(DataError, match="mask: 6 rows of 3 samples"):
        flat(heads[0], 3, shared(*heads))


def test_a_list_of_one_entry_per_sample_is_told_from_a_list_of_the_call():
    texts = [torch.arange(rows * 2.0).reshape(rows, 2) for rows in (3, 1)]
    call = {"x": torch.randn(2, 5), "texts": texts, "sizes": [[(1, 4, 6)]] * 2, "rotary": [torch.ones(7), 0.5]}
    other = {"x": torch.randn(3, 5), "texts": [*texts, texts[0]], "sizes": [[(1, 4, 6)]] * 3, "rotary": call["rotary"]}
    stored = flat(call, 2, shared(call, other))
    assert {len(tensor) for tensor in stored.values()} == {2} and stored["texts.*:rows"].tolist() == [3, 1]
    again = nested(stored)
    assert all(torch.equal(found, text) for found, text in zip(again["texts"], texts, strict=True))
    assert again["sizes"] == call["sizes"] and again["rotary"][1] == 0.5
    assert torch.equal(again["rotary"][0], torch.ones(7))
    assert nested({n: tensor[1:] for n, tensor in stored.items()})["texts"][0].tolist() == [[0.0, 1.0]]


def test_padding_is_put_into_one_call_where_a_mask_leaves_it_out():
    short, long = torch.ones(2, 3), torch.ones(4, 3)
    masked = [{"text": short}, {"text": long, "text_mask": torch.tensor([1, 1, 1, 0])}]  # a call of one has no mask
    together = nested(stack(masked))
    assert together["text"].shape == (2, 4, 3) and together["text_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]
    alone = nested({name: tensor[:1] for name, tensor in stack(masked).items()})
    assert torch.equal(alone["text"], short[None]) and alone["text_mask"].tolist() == [[1, 1]]
    unmasked = stack([{"text": short}, {"text": long}])
    assert torch.equal(nested({name: tensor[:1] for name, tensor in unmasked.items()})["text"], short[None])
    with pytest.raises(DataError, match="text: differs between samples of one call; calibrate with batch_size: 1"):
        nested(unmasked)
    with pytest.raises(DataError, match="text_bias: is there for some samples and not for others"):
        stack([{"text": short}, {"text": long, "text_bias": long}])


def test_what_a_sampling_leaves_out_is_the_pipelines_own_default(pipelines):
    quantized = checkpoint.QuantizedPipeline(pipelines["pixart"], FAMILY, "real", None, None)
    images = quantized.generate(TEXTS[:1], [5], steps=2)
    plain = FAMILY.generate(pipelines["pixart"], TEXTS[:1], [5], sampling("pixart", guidance=4.5))
    assert np.array_equal(images, to_uint8(plain))


def test_samples_of_different_shapes_are_refused():
    class Growing:
        @staticmethod
        def record(pipeline, prompts, seeds, calibration, steps):
            return recording.Recorded({0: {"text": torch.zeros(1, 3, len(prompts[0]))}}, {0: 999.0})

    entry = Calibration(prompts="", steps=1, timesteps=1, timesteps_per_prompt=1)
    with pytest.raises(DataError, match=r"text: samples of different shapes, \(3, 1\) and \(3, 2\)"):
        calibration.record(Growing, None, ["a", "bc"], entry)


def test_a_models_entry_is_completed_and_its_mistakes_are_refused():
    raw = yaml.safe_load((experiment.EXPERIMENTS / "embedded.yaml").read_text())
    raw["models"] = {"flux": {"family": "diffusers", "hub": "some/flux", "revision": "0" * 40}}
    entry = experiment.check_experiment(raw, "x.yaml")["models"]["flux"]
    assert entry["arguments"] == {} and entry["dtype"] == "bfloat16"
    raw["models"]["flux"]["arguments"] = ["max_sequence_length"]
    with pytest.raises(experiment.ConfigurationError, match=r"x.yaml: models.flux.arguments: expected a mapping"):
        experiment.check_experiment(raw, "x.yaml")


@pytest.mark.parametrize(
    ("name", "prompts", "entries", "words"),
    [
        ("dit", ["a cat"], {}, "numbers of classes, and 'a cat' is none"),
        ("dit", ["3"], {"height": 32, "width": 32}, "height: DiTPipeline draws 16 pixels, and 32 are asked for"),
        ("dit", ["3"], {"negative_prompt": "ugly"}, "negative_prompt: DiTPipeline takes none"),
    ],
    indirect=["name"],
)
def test_what_a_pipeline_cannot_do_is_refused(name, pipeline, prompts, entries, words):
    with pytest.raises(DataError, match=words):
        FAMILY.generate(pipeline, prompts, [0], sampling(name, **entries))


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory):
    """A pipeline without prompts, of grey images."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    types = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = UNet2DModel(8, 1, 1, block_out_channels=(16,), norm_num_groups=4, layers_per_block=1, **types)
    folder = tmp_path_factory.mktemp("ddpm")
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["DDPMPipeline", "DDIMPipeline"])
def test_pipelines_that_make_arrays_themselves_draw_in_bfloat16(ddpm, kind, tmp_path):
    for part in ("unet", "scheduler"):
        (tmp_path / part).symlink_to(ddpm / part)
    index = manifest.read_json(ddpm / "model_index.json") | {"_class_name": kind}
    if kind == "DDIMPipeline":
        index["scheduler"] = ["diffusers", "DDIMScheduler"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    drawn = [
        FAMILY.generate(FAMILY.load(settings(kind) | {"dtype": dtype}, tmp_path), ["", ""], [0, 1], Drawing(steps=2))
        for dtype in ("float32", "bfloat16")
    ]
    assert drawn[1].dtype == np.float32 and drawn[1].shape == (2, 8, 8, 3)
    assert 0 < np.abs(drawn[1] - drawn[0]).mean() < 0.05


@pytest.mark.parametrize("name", ["flux"], indirect=True)
def test_guidance_that_a_model_is_not_told_is_refused(name, folders):
    """FLUX schnell: the pipeline takes `guidance_scale`, and its transformer has no input for it."""
    entry = settings(name)
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    config = FAMILY.meta_denoiser(folders[name]).config
    schnell = FluxTransformer2DModel.from_config({**config, "guidance_embeds": False}).eval()
    pipeline = FAMILY.load(entry, folders[name], schnell)
    for draw in (FAMILY.generate, lambda *inputs: FAMILY.record(*inputs, {0})):
        with pytest.raises(DataError, match=r"guidance: 5.0 changes nothing in the images of this FluxPipeline; set 1"):
            draw(pipeline, TEXTS[:1], [5], sampling(name, guidance=5.0))
    neutral = [FAMILY.generate(pipeline, TEXTS[:1], [5], sampling(name, guidance=value)) for value in (0, 1.0)]
    assert np.array_equal(*neutral)
    pipeline.arguments = {**pipeline.arguments, "true_cfg_scale": 3.0}  # a second branch, whatever guidance says
    unwanted = [
        FAMILY.generate(pipeline, TEXTS[:1], [5], sampling(name, guidance=1, negative_prompt=text))
        for text in ("", "a blue square")
    ]
    assert np.abs(unwanted[0] - unwanted[1]).max() > 1e-4
    assert "step" not in vars(pipeline.scheduler) and not schnell._forward_pre_hooks


@pytest.mark.parametrize(
    ("name", "entries", "words"),
    [
        (
            "stable-diffusion",
            {"guidance": 1.0, "negative_prompt": "red"},
            "negative_prompt: changes nothing .*guidance 1",
        ),
        ("flux", {"negative_prompt": "red"}, "negative_prompt: changes nothing in the images of this FluxPipeline"),
        (
            "stable-diffusion",
            {"height": 17},
            "height: StableDiffusionPipeline draws multiples of 2 pixels; set 16 or 18",
        ),
        ("flux", {"width": 18}, "width: FluxPipeline draws multiples of 4 pixels; set 16 or 20, not 18"),
        ("pixart", {"width": 18}, "width: PixArtSigmaPipeline draws multiples of 4 pixels; set 16 or 20, not 18"),
        ("stable-diffusion", {"steps": 1001}, "StableDiffusionPipeline does not draw this: .*1000"),
        ("stable-diffusion", {"steps": 1000}, "steps: DDIMScheduler would begin 1000 steps at 1000, above its 1000"),
    ],
    indirect=["name"],
)
def test_what_would_change_nothing_or_be_rounded_is_refused_before_the_second_step(
    name, pipeline, denoiser, entries, words
):
    calls = []
    with denoiser.register_forward_hook(lambda *call: calls.append(1)), pytest.raises(DataError, match=words):
        FAMILY.generate(pipeline, TEXTS[:1], [5], sampling(name, **entries))
    assert len(calls) <= 1


def with_class(folder, kind, new):
    """The folder's pipeline as one of another class."""
    for part in folder.iterdir():
        if part.is_dir():
            (new / part.name).symlink_to(part)
    index = manifest.read_json(folder / "model_index.json") | {"_class_name": kind}
    (new / "model_index.json").write_text(json.dumps(index))
    return new


def test_a_branch_of_perturbed_attention_is_neither_guidance_nor_a_negative_prompt(folders, tmp_path):
    folder = with_class(folders["stable-diffusion"], "StableDiffusionPAGPipeline", tmp_path)
    pipeline = FAMILY.load(settings("stable-diffusion"), folder)
    entry = sampling("stable-diffusion", steps=1, guidance=1.0)
    assert FAMILY.generate(pipeline, TEXTS[:1], [5], entry).any()
    with pytest.raises(DataError, match="negative_prompt: changes nothing in the images of this StableDiffusionPAG"):
        FAMILY.generate(pipeline, TEXTS[:1], [5], replace(entry, negative_prompt="red"))
    guided = replace(entry, guidance=3.0, negative_prompt="red")
    assert FAMILY.generate(pipeline, TEXTS[:1], [5], guided).any()


def test_a_latent_consistency_model_is_told_its_guidance_and_takes_no_negative_prompt(folders):
    from diffusers import LCMScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    config = FAMILY.meta_denoiser(folders["stable-diffusion"]).config
    unet = UNet2DConditionModel.from_config({**config, "time_cond_proj_dim": 8}).eval()
    pipeline = FAMILY.load(settings("stable-diffusion"), folders["stable-diffusion"], unet)
    pipeline.scheduler = LCMScheduler()
    entry = sampling("stable-diffusion", guidance=8.0)
    told = FAMILY.generate(pipeline, TEXTS[:1], [5], entry)
    assert np.abs(FAMILY.generate(pipeline, TEXTS[:1], [5], replace(entry, guidance=2.0)) - told).max() > 1e-5
    with pytest.raises(DataError, match="negative_prompt: changes nothing in the images"):
        FAMILY.generate(pipeline, TEXTS[:1], [5], replace(entry, negative_prompt="red"))
    with pytest.raises(DataError, match="StableDiffusionPipeline does not draw this: .*50 x 1.0 is smaller than .*60"):
        FAMILY.generate(pipeline, TEXTS[:1], [5], replace(entry, steps=60))


@pytest.mark.parametrize("name", ["stable-diffusion"], indirect=True)
def test_steps_that_a_call_takes_from_elsewhere_are_refused(name, folders):
    entry = {**settings(name), "arguments": {"timesteps": [900, 600, 300]}}
    pipeline = FAMILY.load(entry, folders[name])
    from diffusers import EulerDiscreteScheduler

    pipeline.scheduler = EulerDiscreteScheduler()
    with pytest.raises(
        DataError, match="steps: StableDiffusionPipeline with EulerDiscreteScheduler takes 3 steps, not 2"
    ):
        FAMILY.generate(pipeline, TEXTS[:1], [5], sampling(name))
    assert FAMILY.generate(pipeline, TEXTS[:1], [5], sampling(name, steps=3)).any()


@pytest.mark.parametrize("name", ["pixart", "sana"], indirect=True)
def test_sizes_and_prompts_are_taken_as_they_are_written(name, folders):
    """Under 512 pixels both would draw another size, and one would rewrite prompts if a library for it is installed."""
    entry = {**settings(name), "arguments": {"max_sequence_length": 12}}
    pipeline, seen = FAMILY.load(entry, folders[name]), []
    encode = pipeline.encode_prompt
    pipeline.encode_prompt = lambda *args, **kwargs: (
        seen.append(kwargs.get("clean_caption")),
        encode(*args, **kwargs),
    )[1]
    size = 2 * tiny_pipelines.SIZES.get(name, 16)
    images = FAMILY.generate(pipeline, TEXTS[:1], [5], sampling(name, height=size))
    assert images.shape[1:3] == (size, size // 2) and seen == [False]


def test_guidance_is_refused_where_a_pipeline_has_none(ddpm):
    pipeline = FAMILY.load(settings("ddpm"), ddpm)
    with pytest.raises(DataError, match="guidance: DDPMPipeline has none, and 2.0 is asked for"):
        FAMILY.generate(pipeline, [""], [0], Drawing(steps=2, guidance=2.0))
    grey = FAMILY.generate(pipeline, ["", ""], [0, 1], Drawing(steps=2, guidance=1.0))
    assert grey.shape == (2, 8, 8, 3) and (grey[..., 0] == grey[..., 2]).all()
    kept = FAMILY.record(pipeline, [""], [0], Drawing(steps=2, guidance=1.0), {1})
    assert set(kept[1]) == {"sample", "timestep"} and kept[1]["timestep"].shape == (1,)


def test_arguments_are_those_of_the_pipelines_call(folders):
    entry = {**settings("pixart"), "arguments": {"max_sequence_lenght": 12}}
    with pytest.raises(
        DataError, match="PixArtSigmaPipeline does not take 'max_sequence_lenght' .*max_sequence_length"
    ):
        FAMILY.load(entry, folders["pixart"])
    with pytest.raises(DataError, match="does not take 'guidance_scale'"):  # a sampling says that
        FAMILY.load({**entry, "arguments": {"guidance_scale": 2.0}}, folders["pixart"])


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"vae": ["diffusers", "AutoencoderKL"]}, "no part takes a timestep"),
        (
            {"prior": ["diffusers", "PriorTransformer"], "decoder": ["diffusers", "UNet2DConditionModel"]},
            r"several parts take a timestep \(prior, decoder\)",
        ),
    ],
)
def test_a_denoiser_that_cannot_be_told_is_asked_for(tmp_path, parts, words):
    (tmp_path / "model_index.json").write_text(
        json.dumps({"_class_name": "DDPMPipeline", "scheduler": ["diffusers", "DDIMScheduler"], **parts})
    )
    with pytest.raises(DataError, match=words):
        FAMILY.meta_denoiser(tmp_path)


class Nested(torch.nn.Module):
    """A block whose feed-forward is itself a list of experts with several layers each."""

    def __init__(self):
        super().__init__()
        expert = [torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)) for _ in range(2)]
        self.to_q, self.experts = torch.nn.Linear(4, 4), torch.nn.ModuleList(expert)


def test_the_smallest_repeated_part_is_the_block():
    denoiser = torch.nn.Module()
    denoiser.blocks = torch.nn.ModuleList([Nested(), Nested()])
    found = architecture.blocks(denoiser)
    assert found == [f"blocks.{i}.{part}" for i in (0, 1) for part in ("to_q", "experts.0", "experts.1")]


def method_of(solver, **entry):
    plain = {"solver": {"name": solver}, "weights": {"format": "integer", "bits": 4}}
    return experiment.complete_method(plain | entry, "test", solver)


@pytest.fixture(scope="module")
def samples(pipelines):
    """{name: denoiser inputs of 12 prompts, at one of two steps each, [samples, ...]}."""
    found = {}
    for name, pipeline in pipelines.items():
        entry = calibrated(name, batch_size=6)
        found[name], _ = calibration.record(FAMILY, pipeline, subjects(name) * 4, entry)
    return found


def quantized(name, folder, method, samples):
    """(denoiser, states, reports) with every layer quantized."""
    layers = model.describe(FAMILY, folder, "float32")["layers"]
    denoiser = FAMILY.load_denoiser(settings(name), folder)
    allocated = allocate(layers, method, "method")
    splits.split(denoiser, splits.of_layers(layers, allocated))
    return denoiser, *sequential.quantize(denoiser, FAMILY, allocated, method, samples[name], batch=8)


@pytest.mark.parametrize("solver", ["gptq", "qronos"])
def test_every_solver_quantizes_every_layer_and_a_checkpoint_gives_the_same_pictures(
    name, solver, folders, samples, tmp_path, monkeypatch
):
    method = method_of(solver, activations={"bits": 8})
    denoiser, states, reports = quantized(name, folders[name], method, samples)
    assert reports.keys() == set(FAMILY.quantizable(FAMILY.meta_denoiser(folders[name])))
    before, after = zip(
        *((report["error_before"], report["relative_error"]) for report in reports.values()), strict=True
    )
    assert np.mean(after) < (0.97 if solver == "gptq" else 1) * np.mean(before)
    for report in reports.values():
        report.pop("spans")
    details = {"status": "ok", "reason": None, "model_settings": settings(name), "location": str(folders[name])}
    checkpoint_files.save(tmp_path, denoiser, states, reports, details)
    monkeypatch.setattr(kernel_choice, "KERNELS", {"cpu": {}})  # as quantizing left it: simulated
    loaded = checkpoint.load_pipeline(tmp_path, simulate=True)
    expected = FAMILY.load(settings(name), folders[name], denoiser)
    images = FAMILY.generate(expected, subjects(name), [5, 6, 7], sampling(name))
    assert np.array_equal(loaded.generate(subjects(name), [5, 6, 7], sampling(name)), to_uint8(images))
    assert np.array_equal(FAMILY.generate(loaded.pipeline, subjects(name), [5, 6, 7], sampling(name)), images)


def test_what_no_file_stores_is_the_same_in_16_bit(folders, samples, tmp_path, monkeypatch):
    entry, folder = {**settings("dit"), "dtype": "bfloat16"}, folders["dit"]
    denoiser, method = FAMILY.load_denoiser(entry, folder), method_of("rtn")
    allocated = allocate(model.describe(FAMILY, folder, "bfloat16")["layers"], method, "method")
    states, reports = sequential.quantize(denoiser, FAMILY, allocated, method)
    for report in reports.values():
        report.pop("spans")
    details = {"status": "ok", "reason": None, "model_settings": entry, "location": str(folder)}
    checkpoint_files.save(tmp_path, denoiser, states, reports, details)
    monkeypatch.setattr(kernel_choice, "KERNELS", {"cpu": {}})  # as quantizing left it: simulated
    loaded = checkpoint.load_pipeline(tmp_path, simulate=True).pipeline.transformer
    assert loaded.pos_embed.pos_embed.any() and "pos_embed.pos_embed" not in denoiser.state_dict()
    inputs = nested({n: t.bfloat16() if t.dtype == torch.float32 else t for n, t in samples["dit"].items()})
    assert torch.equal(loaded(**inputs)[0], denoiser(**inputs)[0])


def test_blocks_with_depthwise_convolutions_are_learned_as_wholes(folders, samples):
    method = method_of("brecq", activations={"bits": 8, "granularity": "tensor", "dynamic": False})
    method["solver"] |= {"iterations": 20, "activation_iterations": 20, "learning_rate": 0.01}
    _, _, reports = quantized("sana", folders["sana"], method, samples)
    depthwise = reports["transformer_blocks.0.ff.conv_depth"]
    assert depthwise["groups"] == depthwise["out_features"] == 160 and depthwise["in_features"] == 9
    assert depthwise["error_of"] == "block outputs" and depthwise["relative_error"] < depthwise["error_before"]
