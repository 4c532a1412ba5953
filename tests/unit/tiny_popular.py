"""Pipelines of random weights of the classes that people use, beside those of tiny_pipelines.py; see there."""

import numpy as np
import tiny_parts
import torch
from PIL import Image
from tiny_parts import WIDTH

from quantwatt.artifacts.instructions import Instruction
from quantwatt.jobs import torchvision_ops  # noqa: F401  (before diffusers)


def stable_diffusion_2(folder):
    """Stable Diffusion 2.1: the UNet predicts velocities, linear projections around its attention; OpenCLIP's text."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    torch.manual_seed(0)
    clip, tokenizer = tiny_parts.clip()
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False, prediction_type="v_prediction")
    pipeline = StableDiffusionPipeline(
        vae=tiny_parts.vae(), text_encoder=clip, tokenizer=tokenizer, unet=_unet(use_linear_projection=True),
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return tiny_parts.saved(pipeline, folder)


def latent_consistency(folder):
    """LCM: the UNet is told the guidance, and draws in a few steps."""
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    torch.manual_seed(0)
    clip, tokenizer = tiny_parts.clip()
    pipeline = LatentConsistencyModelPipeline(
        vae=tiny_parts.vae(), text_encoder=clip, tokenizer=tokenizer, unet=_unet(time_cond_proj_dim=8),
        scheduler=LCMScheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return tiny_parts.saved(pipeline, folder)


def flux_schnell(folder):
    """FLUX.1 schnell: no input for guidance, and times that are not shifted."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, axes_dims_rope=(4, 4, 8), guidance_embeds=False,
    )  # fmt: skip
    clip, clip_tokenizer = tiny_parts.clip()
    t5, t5_tokenizer = tiny_parts.t5()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False)
    pipeline = FluxPipeline(scheduler, tiny_parts.vae(), clip, clip_tokenizer, t5, t5_tokenizer, transformer)
    return tiny_parts.saved(pipeline, folder)


def chroma(folder):
    """Chroma: FLUX's blocks, modulated by one small network; T5's text, masked."""
    from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

    torch.manual_seed(0)
    transformer = ChromaTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, axes_dims_rope=(4, 4, 8), approximator_num_channels=16,
        approximator_hidden_dim=WIDTH, approximator_layers=1,
    )  # fmt: skip
    t5, tokenizer = tiny_parts.t5()
    scheduler = FlowMatchEulerDiscreteScheduler()
    return tiny_parts.saved(ChromaPipeline(scheduler, tiny_parts.vae(), t5, tokenizer, transformer), folder)


def lumina2(folder):
    """Lumina 2: refiners of noise and text before joint blocks; Gemma's text, masked."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel

    torch.manual_seed(0)
    transformer = Lumina2Transformer2DModel(
        sample_size=4, in_channels=4, hidden_size=WIDTH, num_layers=2, num_refiner_layers=1, num_attention_heads=2,
        num_kv_heads=1, multiple_of=16, axes_dim_rope=(4, 6, 6), axes_lens=(256, 16, 16), cap_feat_dim=WIDTH,
    )  # fmt: skip
    gemma, tokenizer = tiny_parts.gemma(positions=256)
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipeline = Lumina2Pipeline(transformer, scheduler, tiny_parts.vae(levels=4), gemma, tokenizer)
    return tiny_parts.saved(pipeline, folder)


def hunyuan_dit(folder):
    """HunyuanDiT: cross-attention to BERT's and T5's texts, and skip connections between its blocks."""
    from diffusers import DDIMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline

    torch.manual_seed(0)
    transformer = HunyuanDiT2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, patch_size=2, sample_size=4, hidden_size=WIDTH,
        num_layers=2, cross_attention_dim=WIDTH, cross_attention_dim_t5=WIDTH, pooled_projection_dim=16,
    )  # fmt: skip
    bert, bert_tokenizer = tiny_parts.bert()
    t5, t5_tokenizer = tiny_parts.t5()
    pipeline = HunyuanDiTPipeline(
        tiny_parts.vae(levels=4),
        bert,
        bert_tokenizer,
        transformer,
        DDIMScheduler(),
        None,
        None,
        False,
        t5,
        t5_tokenizer,
    )
    return tiny_parts.saved(pipeline, folder)


def aura_flow(folder):
    """AuraFlow: blocks of two streams, then of one, with register tokens; text by UMT5."""
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    transformer = AuraFlowTransformer2DModel(
        sample_size=8, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, caption_projection_dim=WIDTH, pos_embed_max_size=64,
    )  # fmt: skip
    tokenizer = tiny_parts.t5_tokenizer()
    text = UMT5EncoderModel(UMT5Config(**tiny_parts.t5_sizes(tokenizer))).eval()
    scheduler = FlowMatchEulerDiscreteScheduler()
    return tiny_parts.saved(AuraFlowPipeline(tokenizer, text, tiny_parts.vae(), transformer, scheduler), folder)


def cogview4(folder):
    """CogView4: texts of GLM, padded on the left without a mask, and the size of the image as an input."""
    from diffusers import CogView4Pipeline, CogView4Transformer2DModel, FlowMatchEulerDiscreteScheduler
    from tokenizers.processors import TemplateProcessing
    from transformers import GlmConfig, GlmModel

    torch.manual_seed(0)
    transformer = CogView4Transformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2, text_embed_dim=WIDTH,
        time_embed_dim=16, condition_dim=4, sample_size=8, rope_axes_dim=(16, 16),
    )  # fmt: skip
    tokenizer = tiny_parts.qwen_tokenizer(padding_side="left")
    begin = "<|endoftext|>"  # no text is empty
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(f"{begin} $A", special_tokens=[(begin, 0)])
    text = GlmModel(GlmConfig(**tiny_parts.qwen_sizes(tokenizer), num_hidden_layers=2, pad_token_id=0)).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True)
    return tiny_parts.saved(CogView4Pipeline(tokenizer, text, tiny_parts.vae(), transformer, scheduler), folder)


def kandinsky3(folder):
    """Kandinsky 3: a UNet of its own class, T5's text, masked."""
    from diffusers import DDPMScheduler, Kandinsky3Pipeline, Kandinsky3UNet

    torch.manual_seed(0)
    unet = Kandinsky3UNet(
        time_embedding_dim=16, groups=4, attention_head_dim=8, layers_per_block=2, block_out_channels=(16,) * 4,
        cross_attention_dim=16, encoder_hid_dim=WIDTH,
    )  # fmt: skip
    t5, tokenizer = tiny_parts.t5()
    return tiny_parts.saved(Kandinsky3Pipeline(tokenizer, t5, unet, DDPMScheduler(), _movq()), folder)


def sdxl_img2img(folder):
    """Stable Diffusion XL, image to image."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLImg2ImgPipeline
    from transformers import CLIPTextModelWithProjection

    torch.manual_seed(0)
    clip, tokenizer = tiny_parts.clip()
    unet = _unet(
        cross_attention_dim=2 * WIDTH, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTH + 6 * 8,
    )  # fmt: skip
    projecting = CLIPTextModelWithProjection(clip.config).eval()
    pipeline = StableDiffusionXLImg2ImgPipeline(
        tiny_parts.vae(), clip, projecting, tokenizer, tokenizer, unet, EulerDiscreteScheduler(), add_watermarker=False
    )
    return tiny_parts.saved(pipeline, folder)


def instruct_pix2pix(folder):
    """InstructPix2Pix: the UNet sees the picture's latents; guidance has a branch for text and one for the picture."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionInstructPix2PixPipeline

    torch.manual_seed(0)
    clip, tokenizer = tiny_parts.clip()
    pipeline = StableDiffusionInstructPix2PixPipeline(
        vae=tiny_parts.vae(), text_encoder=clip, tokenizer=tokenizer, unet=_unet(in_channels=8),
        scheduler=EulerDiscreteScheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return tiny_parts.saved(pipeline, folder)


def flux_kontext(folder):
    """FLUX.1 Kontext: the picture's latents follow the image's."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxTransformer2DModel

    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    clip, clip_tokenizer = tiny_parts.clip()
    t5, t5_tokenizer = tiny_parts.t5()
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipeline = FluxKontextPipeline(scheduler, tiny_parts.vae(), clip, clip_tokenizer, t5, t5_tokenizer, transformer)
    return tiny_parts.saved(pipeline, folder)


def qwen_image_edit(folder):
    """Qwen-Image-Edit: the picture is read by the text encoder, and its latents follow the image's."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImageEditPipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    vae = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    tokenizer = tiny_parts.qwen_tokenizer()
    processor = Qwen2VLProcessor(Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor())
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipeline = QwenImageEditPipeline(scheduler, vae, tiny_parts.qwen_vl(tokenizer), tokenizer, processor, transformer)
    return tiny_parts.saved(pipeline, folder)


def _unet(**options):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(16,), layers_per_block=1, norm_num_groups=4, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("UpBlock2D",),
        **{"cross_attention_dim": WIDTH, **options},
    )  # fmt: skip


def _movq():
    from diffusers import VQModel

    return VQModel(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
        up_block_types=("AttnUpDecoderBlock2D",) * 2, num_vq_embeddings=8, vq_embed_dim=4, norm_type="spatial",
    )  # fmt: skip


def instructions(texts, folder):
    """The texts, each with an input picture of random pixels that is put into the folder."""
    pixels = np.random.default_rng(0).integers(0, 255, (len(texts), 24, 40, 3), dtype=np.uint8)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{i}.png")
    return [Instruction(text, folder / f"{i}.png") for i, text in enumerate(texts)]


ARGUMENTS = {
    "chroma": {"max_sequence_length": 12},
    "flux-schnell": {"max_sequence_length": 12},
    "aura-flow": {"max_sequence_length": 12},
    "sdxl-img2img": {"strength": 0.5},
    "flux-kontext": {"max_sequence_length": 12},
}
POPULAR = {
    "stable-diffusion-2": stable_diffusion_2,
    "lcm": latent_consistency,
    "flux-schnell": flux_schnell,
    "chroma": chroma,
    "lumina2": lumina2,
    "hunyuan-dit": hunyuan_dit,
    "aura-flow": aura_flow,
    "cogview4": cogview4,
    "kandinsky3": kandinsky3,
}
EDITS = {
    "sdxl-img2img": sdxl_img2img,
    "instruct-pix2pix": instruct_pix2pix,
    "flux-kontext": flux_kontext,
    "qwen-image-edit": qwen_image_edit,
}
