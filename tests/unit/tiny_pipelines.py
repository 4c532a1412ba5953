"""Image pipelines of random weights, for tests: folders as `save_pretrained` writes them.

Each builder takes a folder and returns it. The pipelines' images are 16 or 32 pixels wide, as SIZES says.
"""

import tiny_parts
import torch
from tiny_parts import WIDTH

from quantwatt.jobs import torchvision_ops  # noqa: F401  (before diffusers)


def flux(folder):
    """FLUX: blocks of two streams, then of one; text by CLIP and T5."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )  # fmt: skip
    clip, clip_tokenizer = tiny_parts.clip()
    t5, t5_tokenizer = tiny_parts.t5()
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=tiny_parts.vae(), text_encoder=clip, tokenizer=clip_tokenizer,
        text_encoder_2=t5, tokenizer_2=t5_tokenizer, transformer=transformer,
    )  # fmt: skip
    return tiny_parts.saved(pipeline, folder)


def pixart(folder):
    """PixArt-Sigma: cross-attention to T5's text, one modulation for all blocks."""
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=16, num_attention_heads=2, in_channels=4,
        out_channels=8, cross_attention_dim=WIDTH, caption_channels=WIDTH, use_additional_conditions=False,
    )  # fmt: skip
    t5, tokenizer = tiny_parts.t5()
    scheduler = DPMSolverMultistepScheduler()
    return tiny_parts.saved(PixArtSigmaPipeline(tokenizer, t5, tiny_parts.vae(), transformer, scheduler), folder)


def sana(folder):
    """SANA: linear attention, feed-forward of pointwise and depthwise convolutions; text by Gemma."""
    from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel

    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=16, cross_attention_dim=WIDTH, caption_channels=WIDTH,
        sample_size=8,
    )  # fmt: skip
    types = ("ResBlock", "ResBlock", "EfficientViTBlock")
    vae = AutoencoderDC(
        latent_channels=4, attention_head_dim=4, encoder_block_types=types, decoder_block_types=types,
        encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8), encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1), encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
    )  # fmt: skip
    gemma, tokenizer = tiny_parts.gemma()
    scheduler = FlowMatchEulerDiscreteScheduler()
    return tiny_parts.saved(SanaPipeline(tokenizer, gemma, vae, transformer, scheduler), folder)


def dit(folder):
    """DiT: images of classes, without text."""
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, sample_size=8
    )
    return tiny_parts.saved(DiTPipeline(transformer, tiny_parts.vae(), DDIMScheduler()), folder)


def stable_diffusion(folder, censored=False):
    """Stable Diffusion: a UNet with skip connections; text by CLIP. With a censor: one that blackens every image."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, attention_head_dim=8,
        cross_attention_dim=WIDTH, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    clip, tokenizer = tiny_parts.clip()
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    checker, extractor = tiny_parts.censor() if censored else (None, None)
    pipeline = StableDiffusionPipeline(
        vae=tiny_parts.vae(), text_encoder=clip, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=checker, feature_extractor=extractor, requires_safety_checker=censored,
    )  # fmt: skip
    return tiny_parts.saved(pipeline, folder)


BUILDERS = {"flux": flux, "pixart": pixart, "sana": sana, "dit": dit, "stable-diffusion": stable_diffusion}
SIZES = {"sana": 32}  # pixels; else 16
# Further arguments of the calls: short texts, and sizes as they are asked for.
ARGUMENTS = {
    "z-image": {"max_sequence_length": 32},
    "flux2-klein": {"max_sequence_length": 32, "text_encoder_out_layers": [1, 2, 3]},
    "flux": {"max_sequence_length": 12},
    "pixart": {"max_sequence_length": 12, "use_resolution_binning": False, "clean_caption": False},
    "sana": {"max_sequence_length": 12, "use_resolution_binning": False, "complex_human_instruction": None},
}


def z_image(folder):
    """Z-Image: one list of samples and one of texts, which have lengths of their own; the time is called `t`."""
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        in_channels=4, dim=WIDTH, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=WIDTH,
        axes_dims=[4, 6, 6], axes_lens=[256, 32, 32],
    )  # fmt: skip
    with torch.no_grad():  # what trained weights would be
        transformer.x_pad_token.normal_()
        transformer.cap_pad_token.normal_()
    tokenizer = tiny_parts.qwen_tokenizer()
    text = Qwen3Model(Qwen3Config(**tiny_parts.qwen_sizes(tokenizer), num_hidden_layers=2)).eval()
    scheduler = FlowMatchEulerDiscreteScheduler()
    return tiny_parts.saved(ZImagePipeline(scheduler, tiny_parts.vae(), text, tokenizer, transformer), folder)


def qwen_image(folder):
    """Qwen-Image: guidance by a second branch, texts of a batch as long as the longest, with a mask."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )

    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    vae = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    tokenizer = tiny_parts.qwen_tokenizer()
    scheduler = FlowMatchEulerDiscreteScheduler()
    return tiny_parts.saved(
        QwenImagePipeline(scheduler, vae, tiny_parts.qwen_vl(tokenizer), tokenizer, transformer), folder
    )


def flux2_klein(folder):
    """FLUX.2-klein: texts are layers of a language model, positions are one row per sample."""
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=3 * WIDTH, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )  # fmt: skip
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, layers_per_block=1,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
    )  # fmt: skip
    tokenizer = tiny_parts.qwen_tokenizer()
    text = Qwen3ForCausalLM(Qwen3Config(**tiny_parts.qwen_sizes(tokenizer), num_hidden_layers=3)).eval()
    scheduler = FlowMatchEulerDiscreteScheduler()
    return tiny_parts.saved(Flux2KleinPipeline(scheduler, vae, text, tokenizer, transformer), folder)


def kandinsky5(folder):
    """Kandinsky 5: the output is called `image`, and texts of several lengths have no mask."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        Kandinsky5T2IPipeline,
        Kandinsky5Transformer3DModel,
    )
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    torch.manual_seed(0)
    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=4, in_text_dim=WIDTH, in_text_dim2=WIDTH, time_dim=16, out_visual_dim=4, model_dim=WIDTH,
        ff_dim=WIDTH, num_text_blocks=1, num_visual_blocks=2, axes_dims=(4, 6, 6),
    )  # fmt: skip
    with torch.no_grad():  # trained ones are not zero
        for name, parameter in transformer.named_parameters():
            if "modulation" in name:
                parameter.normal_(std=0.5)
    clip, clip_tokenizer = tiny_parts.clip(positions=77)
    tokenizer = tiny_parts.qwen_tokenizer()
    processor = Qwen2VLProcessor(Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor())
    pipeline = Kandinsky5T2IPipeline(
        transformer,
        tiny_parts.vae(levels=4),
        tiny_parts.qwen_vl(tokenizer),
        processor,
        clip,
        clip_tokenizer,
        FlowMatchEulerDiscreteScheduler(),
    )
    return tiny_parts.saved(pipeline, folder)


RECENT = {"z-image": z_image, "qwen-image": qwen_image, "flux2-klein": flux2_klein, "kandinsky5": kandinsky5}
