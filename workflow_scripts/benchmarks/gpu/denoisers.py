"""Denoisers of random weights at their released sizes, made on the device from their configuration alone.

Nothing is downloaded. Time, energy and memory of a denoiser follow from its shapes, not from what its weights have
learnt, so that random weights draw the same work. Configurations are those of the repositories on the hub.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from quantwatt.artifacts.errors import Unsupported
from quantwatt.formats import convolution
from quantwatt.formats.library import library_of
from quantwatt.formats.quantized_weight import load_format, quantize_to_nearest
from quantwatt.inference import kernel_choice
from quantwatt.models.families import load_family

LATENT = 128  # height and width of the latent image of 1024² pixels
TINY_LATENT = 16
SD3_TEXT, FLUX_TEXT, SDXL_TEXT, QWEN_TEXT = 333, 512, 77, 256  # tokens; SD3: 77 of the CLIP encoders, 256 of T5
DTYPE = torch.bfloat16


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


def skeleton(name: str, size: str, device: str) -> torch.nn.Module:
    """The denoiser without memory for its parameters; buffers, such as position tables, are computed on the device."""
    load_family(DENOISERS[name].family)  # before diffusers: it declares operators that a CPU's torchvision lacks
    import diffusers
    from accelerate import init_empty_weights

    denoiser = DENOISERS[name]
    config = denoiser.config | (denoiser.tiny if size == "tiny" else {})
    with torch.device(device), init_empty_weights(include_buffers=False):
        return getattr(diffusers, denoiser.kind)(**config).eval().requires_grad_(False)


def build(name: str, size: str, configuration: str, device: str) -> tuple[torch.nn.Module, str, list[str]]:
    """The denoiser with random weights on the device, its linear layers rounded to nearest.

    Layers are made and rounded one by one: no more than one of them is in memory in 16 bits. Layers of one shape have
    the same values, each in memory of its own, because rounding every layer would take minutes and change no figure.

    Returns:
        (the module, names of its kernels, names of its blocks of several layers).
    Raises:
        Unsupported: the device cannot compute the format.
    """
    model, (weights, activations) = skeleton(name, size, device), CONFIGURATIONS[configuration]
    blocks = [each for each in load_family(DENOISERS[name].family).blocks(model)
              if any(model.get_submodule(each).children())]  # fmt: skip
    for module in model.modules():  # before there are buffers of quantized layers, which have types of their own
        for buffer, values in module._buffers.items():
            module._buffers[buffer] = values.to(device, DTYPE if values.dtype == torch.float32 else None)
    generator = torch.Generator(device).manual_seed(0)
    kernels: set[str] = set()
    if weights is not None:
        made: dict[Any, Callable[[], torch.nn.Module]] = {}
        linears = [name for name, module in model.named_modules() if type(module) is torch.nn.Linear]
        for layer in linears:
            linear = model.get_submodule(layer)
            key = linear.in_features, linear.out_features, linear.bias is not None
            if key not in made:
                fill(linear, device, generator)
                made[key], kernel = quantized(linear, weights, activations, device)
                kernels.add(kernel)
            model.set_submodule(layer, made[key]())
    fill(model, device, generator)
    return model, ", ".join(sorted(kernels)) or "torch linear", blocks


def fill(model: torch.nn.Module, device: str, generator: torch.Generator) -> None:
    """Give every parameter that has no memory random values on the device."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or not parameter.is_meta:
                continue
            values = torch.empty(parameter.shape, dtype=DTYPE, device=device)
            if parameter.ndim >= 2:
                values.normal_(0, 1 / math.sqrt(parameter[0].numel()), generator=generator)
            elif name == "weight":
                values.fill_(1)  # of a normalization
            else:
                values.normal_(0, 0.02, generator=generator)
            module._parameters[name] = torch.nn.Parameter(values, requires_grad=False)


def quantized(
    linear: torch.nn.Linear, weights: dict[str, Any], activations: dict[str, Any] | None, device: str
) -> tuple[Callable[[], torch.nn.Module], str]:
    """(function that returns a new copy of the linear layer rounded to nearest, on the device; name of its kernel)."""
    shape, dtype = convolution.describe(linear), linear.weight.dtype
    if library := library_of(weights):
        if reason := library.unsupported(device) or library.simulated(device):
            raise Unsupported(reason)
        state = {part: tensor.to(device) for part, tensor in library.state(library.convert(linear, dtype)).items()}

        def restored():
            copied = {part: tensor.clone() for part, tensor in state.items()}
            return library.restore(copied, shape, linear.bias, dtype, device)

        return restored, library.LIBRARY
    kernel, reason = kernel_choice.kernel_for(
        {"weights": weights, "activations": activations, "parts": [], **shape}, device
    )
    if kernel is None:
        raise Unsupported(reason)
    weight_format = load_format(weights)
    rounded = quantize_to_nearest(linear.weight.float(), weight_format)
    layer = kernel.Layer.build(rounded, weight_format, activations, linear.bias, dtype).to(device)
    return lambda: copy.deepcopy(layer), kernel.NAME


def inputs_of(name: str, size: str, model: torch.nn.Module, images: int, device: str) -> dict[str, Any]:
    """Arguments of one call of the denoiser that serves a number of images of 1024² pixels (tiny: of 128²)."""
    generator = torch.Generator(device).manual_seed(1)

    def random(*shape):
        return torch.randn(*shape, dtype=DTYPE, device=device, generator=generator)

    edge = TINY_LATENT if size == "tiny" else LATENT
    return {**DENOISERS[name].inputs(images, edge, model, random), "return_dict": False}
