"""Released denoisers, by the configurations of their repositories on the hub, and what they are quantized to.

random_denoiser.py makes them, of random weights. No module here imports torch before it computes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LATENT = 128  # height and width of the latent image of 1024² pixels
TINY_LATENT = 16
SD3_TEXT, FLUX_TEXT, SDXL_TEXT, QWEN_TEXT = 333, 512, 77, 256  # tokens; SD3: 77 of the CLIP encoders, 256 of T5


@dataclass(frozen=True)
class Denoiser:
    """A released denoiser.

    kind: its class in diffusers; config: where it differs from the class's defaults; tiny: changes for a rehearsal.
    inputs: function (images, latent's edge, module, random) -> arguments of one call.
    steps: denoising steps of an image, of the pipeline's defaults or of published energies.
    branches: rows of a call per image, two where guidance is computed in one batch; calls: calls per step.
    parameters: 10^9, as released.
    """

    family: str
    kind: str
    config: dict[str, Any]
    tiny: dict[str, Any]
    inputs: Callable[..., dict[str, Any]]
    steps: int
    parameters: float
    branches: int = 1
    calls: int = 1
    published: str | None = field(default=None)  # its name in resources/report/page/anchors.json


def sd3_inputs(images, edge, module, random):
    config, rows = module.config, 2 * images
    return {
        "hidden_states": random(rows, config.in_channels, edge, edge),
        "encoder_hidden_states": random(rows, SD3_TEXT, config.joint_attention_dim),
        "pooled_projections": random(rows, config.pooled_projection_dim),
        "timestep": random(rows).float().mul(0).add(500.0),
    }


def flux_inputs(images, edge, module, random):
    import torch

    config, side = module.config, edge // 2
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    like = random(1)
    return {
        "hidden_states": random(images, side**2, config.in_channels),
        "encoder_hidden_states": random(images, FLUX_TEXT, config.joint_attention_dim),
        "pooled_projections": random(images, config.pooled_projection_dim),
        "timestep": random(images).mul(0).add(0.5),
        "img_ids": torch.cat([torch.zeros(side**2, 1), places], dim=1).to(like),
        "txt_ids": like.new_zeros(FLUX_TEXT, 3),
        "guidance": random(images).float().mul(0).add(3.5),
    }


def sdxl_inputs(images, edge, module, random):
    config, rows = module.config, 2 * images
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    sizes = random(1).new_tensor([8.0 * edge, 8.0 * edge, 0, 0, 8.0 * edge, 8.0 * edge]).repeat(rows, 1)
    return {
        "sample": random(rows, config.in_channels, edge, edge),
        "timestep": random(rows).float().mul(0).add(500.0),
        "encoder_hidden_states": random(rows, SDXL_TEXT, config.cross_attention_dim),
        "added_cond_kwargs": {"text_embeds": random(rows, pooled), "time_ids": sizes},
    }


def z_image_inputs(images, edge, module, random):
    config = module.config
    return {
        "x": [random(config.in_channels, 1, edge, edge) for _ in range(images)],
        "t": random(images).float().mul(0).add(0.5),
        "cap_feats": [random(QWEN_TEXT, config.cap_feat_dim) for _ in range(images)],
    }


def qwen_image_inputs(images, edge, module, random):
    config, side = module.config, edge // 2
    return {
        "hidden_states": random(images, side**2, config.in_channels),
        "encoder_hidden_states": random(images, QWEN_TEXT, config.joint_attention_dim),
        "timestep": random(images).mul(0).add(0.5),
        "img_shapes": [[(1, side, side)]] * images,
    }


SD3 = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "attention_head_dim": 64,
    "joint_attention_dim": 4096, "pooled_projection_dim": 2048, "qk_norm": "rms_norm",
}  # fmt: skip
SD3_TINY = {"num_layers": 2, "num_attention_heads": 2, "caption_projection_dim": 128, "pos_embed_max_size": 96,
            "joint_attention_dim": 64, "pooled_projection_dim": 64, "sample_size": TINY_LATENT}  # fmt: skip
DENOISERS = {
    "sd35-large": Denoiser(
        "sd3", "SD3Transformer2DModel",
        {**SD3, "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192},
        SD3_TINY, sd3_inputs, 28, 8.06, branches=2, published="Stable Diffusion 3.5 Large",
    ),
    "sd35-medium": Denoiser(
        "sd3", "SD3Transformer2DModel",
        {**SD3, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384,
         "dual_attention_layers": tuple(range(13))},
        {**SD3_TINY, "dual_attention_layers": (0,)}, sd3_inputs, 28, 2.24, branches=2,
        published="Stable Diffusion 3.5 Medium",
    ),
    "flux1-dev": Denoiser(
        "diffusers", "FluxTransformer2DModel", {"guidance_embeds": True},
        {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2, "attention_head_dim": 64,
         "joint_attention_dim": 64, "pooled_projection_dim": 64, "axes_dims_rope": (16, 24, 24)},
        flux_inputs, 50, 11.90, published="FLUX.1-dev",
    ),
    "sdxl": Denoiser(
        "sdxl", "UNet2DConditionModel",
        {"sample_size": 128, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
         "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
         "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10),
         "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048, "use_linear_projection": True,
         "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
         "projection_class_embeddings_input_dim": 2816},
        {"sample_size": TINY_LATENT, "block_out_channels": (64, 64, 128), "transformer_layers_per_block": (1, 1, 1),
         "attention_head_dim": (2, 2, 2), "cross_attention_dim": 64, "addition_time_embed_dim": 16,
         "projection_class_embeddings_input_dim": 160, "layers_per_block": 1},
        sdxl_inputs, 25, 2.57, branches=2, published="Stable Diffusion XL",
    ),
    "z-image": Denoiser(
        "diffusers", "ZImageTransformer2DModel", {},
        {"dim": 128, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 64,
         "axes_dims": (16, 24, 24)},
        z_image_inputs, 8, 6.15,
    ),
    "qwen-image": Denoiser(
        "diffusers", "QwenImageTransformer2DModel", {},
        {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 64, "joint_attention_dim": 64,
         "axes_dims_rope": (16, 24, 24)},
        qwen_image_inputs, 50, 20.43, calls=2,
    ),
}  # fmt: skip

TOKEN = {"bits": 8, "granularity": "token", "dynamic": True, "symmetric": True}
INTEGER = {"format": "integer", "granularity": "channel", "group_size": None, "symmetric": True, "narrow": True}
TORCHAO = {"format": "torchao", "group_size": 128}
BASELINE, AGAIN = "bf16", "bf16 again"
CONFIGURATIONS = {  # name: (weights, activations), the most telling first
    BASELINE: (None, None),
    "int8 dynamic": ({**INTEGER, "bits": 8}, TOKEN),
    "float8 rows (torchao)": ({**TORCHAO, "configuration": "float8-dynamic"}, None),
    "W4A8": ({**INTEGER, "bits": 4}, TOKEN),
    "W4A16 group 128": ({**INTEGER, "bits": 4, "granularity": "group", "group_size": 128}, None),
    "nf4": ({"format": "nf4", "bits": 4, "group_size": 64}, None),
    "int8 dynamic (torchao)": ({**TORCHAO, "configuration": "int8-dynamic"}, None),
    "LLM.int8(), threshold 6": ({"format": "bitsandbytes-int8", "threshold": 6.0}, None),
    "LLM.int8(), threshold 0": ({"format": "bitsandbytes-int8", "threshold": 0.0}, None),
    AGAIN: (None, None),  # the control: the same in another process
}
