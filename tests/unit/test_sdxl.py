"""Stable Diffusion XL as a family, on a small random pipeline: run in phases, recorded and taken apart."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from quantwatt.artifacts.errors import DataError
from quantwatt.models import architecture
from quantwatt.models.families import load_family
from quantwatt.models.sampling import Drawing
from training import tokenizer

FAMILY = load_family("sdxl")

PROMPTS = [
    "a large red circle on a white background",
    "a small blue ring above a large green cross on a gray background",
]
SEEDS = [3, 4]
TRANSFORMERS = 2 * 1 + 2 * 2 + 2 + 3 * 2 + 3 * 1  # of the levels down, the middle and the levels up
SAMPLING = Drawing(steps=1, guidance=0.0, height=16, width=16)
SAMPLINGS = [SAMPLING, replace(SAMPLING, steps=2), replace(SAMPLING, guidance=2.0, negative_prompt="a red ring")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline with random weights, and the normalised latents that newer autoencoders have."""
    from diffusers import (
        AutoencoderKL,
        EulerAncestralDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    words = tokenizer.new(0)
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.CONTEXT,
        projection_dim=16,
        eos_token_id=words.eos_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16, 24),
        layers_per_block=2,
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(1, 2, 2),
        cross_attention_dim=32,
        use_linear_projection=True,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.5, 1.5, 1.0, 2.0],
        force_upcast=True,
    )
    noise_schedule = EulerAncestralDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing"
    )
    parts = {"vae": vae, "unet": unet, "tokenizer": words, "tokenizer_2": words, "scheduler": noise_schedule}
    encoders = {"text_encoder": CLIPTextModel(text), "text_encoder_2": CLIPTextModelWithProjection(text)}
    saved = tmp_path_factory.mktemp("sdxl")
    StableDiffusionXLPipeline(**parts, **encoders).save_pretrained(saved)
    return saved


@pytest.fixture(scope="module")
def pipeline(folder):
    return FAMILY.load({"dtype": "float32"}, folder)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def called(unet, inputs):
    """The UNet's output on recorded inputs."""
    added = {name.partition(".")[2]: value for name, value in inputs.items() if "." in name}
    plain = {name: value for name, value in inputs.items() if "." not in name}
    return unet(**plain, added_cond_kwargs=added, return_dict=False)[0]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_parts_in_turn_are_the_whole(pipeline, sampling):
    whole = FAMILY.prepare(pipeline, PROMPTS, SEEDS, sampling)()
    parts = FAMILY.phases(pipeline, PROMPTS, SEEDS, sampling)
    assert list(parts) == ["text", "denoise", "decode"]
    assert torch.equal(parts["decode"](), whole)
    images = FAMILY.generate(pipeline, PROMPTS, SEEDS, sampling)
    assert np.array_equal(whole.permute(0, 2, 3, 1).float().numpy(), images)
    texts = parts["text"]()
    assert (texts[1] is not None) == (sampling.guidance > 1)


@pytest.mark.parametrize("normalised", [True, False])
def test_float16_is_decoded_as_the_pipeline_decodes_it(folder, normalised):
    pipeline = FAMILY.load({"dtype": "float16"}, folder)
    if not normalised:
        pipeline.vae.register_to_config(latents_mean=None, latents_std=None)
    whole = FAMILY.prepare(pipeline, PROMPTS, SEEDS, SAMPLING)()
    decoded = FAMILY.phases(pipeline, PROMPTS, SEEDS, SAMPLING)["decode"]()
    assert torch.equal(decoded, whole) and decoded.dtype == torch.float32  # float16 would show by its type
    assert pipeline.vae.dtype == torch.float16


def test_an_image_is_a_function_of_its_own_seed(pipeline):
    sampling = replace(SAMPLING, steps=2)  # the sampler adds noise between them
    both = FAMILY.generate(pipeline, PROMPTS, SEEDS, sampling)
    for i, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        assert np.abs(FAMILY.generate(pipeline, [prompt], [seed], sampling)[0] - both[i]).max() < 1e-4
    assert np.abs(FAMILY.generate(pipeline, PROMPTS, [3, 5], sampling) - both)[1].max() > 1e-2


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_recorded_inputs_give_the_outputs_of_the_trajectory(pipeline, guidance):
    outputs = []
    handle = pipeline.unet.register_forward_hook(lambda module, args, output: outputs.append(output[0]))
    calibration = replace(SAMPLING, steps=3, guidance=guidance)
    recorded = FAMILY.record(pipeline, PROMPTS, SEEDS, calibration, {0, 2})
    handle.remove()
    assert list(recorded) == [0, 2] and len(outputs) == 3
    for step, inputs in recorded.items():
        n = len(PROMPTS) * (2 if guidance > 1 else 1)
        assert {len(tensor) for tensor in inputs.values()} == {n}  # every input, the timestep too, is per sample
        assert torch.allclose(called(pipeline.unet, inputs), outputs[step], atol=1e-5)
        one = {name: tensor[1:2] for name, tensor in inputs.items()}
        assert torch.allclose(called(pipeline.unet, one), outputs[step][1:2], atol=1e-4)
    assert recorded[0]["timestep"].unique().tolist() == [999]


@pytest.mark.parametrize("kind", ["HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler"])
def test_a_scheduler_that_evaluates_twice_a_step_is_recorded_over_the_whole_trajectory(pipeline, kind):
    import diffusers

    usual = pipeline.scheduler
    pipeline.scheduler = getattr(diffusers, kind).from_config(usual.config)
    try:
        calibration = replace(SAMPLING, steps=5)
        recorded = FAMILY.record(pipeline, PROMPTS, SEEDS, calibration, {0, 2, 4})
        planned = pipeline.scheduler.timesteps.tolist()
        assert len(planned) == 9
        assert recorded.timesteps == {0: planned[0], 2: planned[4 if "KDPM2" in kind else 3], 4: planned[8]}
        found = {step: inputs["timestep"].unique().tolist() for step, inputs in recorded.items()}
        assert found == {step: [pytest.approx(timestep)] for step, timestep in recorded.timesteps.items()}
    finally:
        pipeline.scheduler = usual


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_a_negative_prompt_without_guidance_is_refused(pipeline, guidance):
    sampling = replace(SAMPLING, guidance=guidance, negative_prompt="a red ring")
    with pytest.raises(DataError, match="negative_prompt: changes nothing .* StableDiffusionXLPipeline"):
        FAMILY.generate(pipeline, PROMPTS, SEEDS, sampling)


def test_another_denoiser_takes_the_place_of_the_stored_one(folder, pipeline):
    denoiser = FAMILY.load_denoiser({"dtype": "bfloat16"}, folder)
    assert denoiser.dtype == torch.bfloat16 and not denoiser.training
    assert FAMILY.load({"dtype": "bfloat16"}, folder, denoiser).unet is denoiser
    architecture_alone = FAMILY.meta_denoiser(folder).state_dict()
    assert all(tensor.is_meta for tensor in architecture_alone.values())
    shapes = {name: tensor.shape for name, tensor in architecture_alone.items()}
    assert shapes == {name: tensor.shape for name, tensor in pipeline.unet.state_dict().items()}


class Concatenations(TorchFunctionMode):
    """The channels of all that is concatenated along them, in order."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.cat and args[0][0].ndim == 4:
            self.found.append(tuple(part.shape[1] for part in args[0]))
        return function(*args, **(kwargs or {}))


def test_skips_are_what_the_denoiser_concatenates(pipeline):
    inputs = FAMILY.record(pipeline, PROMPTS, SEEDS, SAMPLING, {0})[0]
    with Concatenations() as seen:
        called(pipeline.unet, inputs)
    skips = FAMILY.skips(pipeline.unet)
    assert [parts for name, parts in skips.items() if name.endswith("conv1")] == seen.found
    for name, parts in skips.items():
        assert pipeline.unet.get_submodule(name).in_channels == sum(parts)
        assert parts == skips[name.replace("conv_shortcut", "conv1")]
    assert len(seen.found) == 9 and len(set(seen.found)) > 4  # three of each level, not all alike


def test_layers_of_the_text_read_a_first_token_that_no_prompt_changes(pipeline):
    inputs, read = FAMILY.record(pipeline, PROMPTS, SEEDS, SAMPLING, {0})[0], {}

    def keep(name):
        return lambda module, args: read.setdefault(name, args[0])

    layers = FAMILY.quantizable(pipeline.unet)
    handles = [pipeline.unet.get_submodule(name).register_forward_pre_hook(keep(name)) for name in layers]
    called(pipeline.unet, inputs)
    for handle in handles:
        handle.remove()
    text = inputs["encoder_hidden_states"]
    fed = [name for name in layers if read[name].shape == text.shape and torch.equal(read[name], text)]
    assert FAMILY.first_token(pipeline.unet) == fed and len(fed) == 2 * TRANSFORMERS
    assert torch.equal(text[0, 0], text[1, 0]) and not torch.equal(text[0, 3], text[1, 3])


def test_groups_and_blocks_name_layers_of_the_denoiser(pipeline):
    layers = FAMILY.quantizable(pipeline.unet)
    content = set(FAMILY.content(pipeline.unet))
    assert content < set(layers) and set(FAMILY.first_token(pipeline.unet)) < content
    # a transformer block has ten layers: four of self-attention are of the other group
    assert len(content) == 6 * TRANSFORMERS and not any("attn1" in name or "conv" in name for name in content)
    assert FAMILY.segments(pipeline.unet) == {} and FAMILY.blocks(pipeline.unet) == architecture.blocks(pipeline.unet)
