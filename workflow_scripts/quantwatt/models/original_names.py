"""Names of tensors in the original checkpoints of SD3, FLUX and SDXL, from diffusers' names.

diffusers reads the originals (from_single_file) by functions that go the other way, from which these names follow. An
original tensor is a diffusers tensor, or several of them one below the other: queries, keys and values are one layer.
Where diffusers has the scale before the shift of a modulation, the originals have it after.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

QKV = ("q", "k", "v")
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
SD3 = {
    "pos_embed": "",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
SD3_BLOCK = {
    **{f"attn.to_{part}": "x_block.attn.qkv" for part in QKV},
    **{f"attn.add_{part}_proj": "context_block.attn.qkv" for part in QKV},
    **{f"attn2.to_{part}": "x_block.attn2.qkv" for part in QKV},
    **{f"attn.norm_{part}": f"x_block.attn.ln_{part}" for part in "qk"},
    **{f"attn2.norm_{part}": f"x_block.attn2.ln_{part}" for part in "qk"},
    **{f"attn.norm_added_{part}": f"context_block.attn.ln_{part}" for part in "qk"},
    "attn.to_out.0": "x_block.attn.proj",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
FLUX = {
    **{
        f"time_text_embed.{own}.linear_{number}": f"{original}.{layer}"
        for own, original in (
            ("timestep_embedder", "time_in"),
            ("text_embedder", "vector_in"),
            ("guidance_embedder", "guidance_in"),
        )
        for number, layer in ((1, "in_layer"), (2, "out_layer"))
    },
    "context_embedder": "txt_in",
    "x_embedder": "img_in",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
FLUX_BLOCK = {
    **{f"attn.to_{part}": "img_attn.qkv" for part in QKV},
    **{f"attn.add_{part}_proj": "txt_attn.qkv" for part in QKV},
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
FLUX_SINGLE = {
    **{f"attn.to_{part}": "linear1" for part in QKV},
    "proj_mlp": "linear1",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
    "norm.linear": "modulation.lin",
    "proj_out": "linear2",
}
UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
ORDER = [*(f"to_{part}" for part in QKV), *(f"add_{part}_proj" for part in QKV), "proj_mlp"]  # of joined layers


@dataclass(frozen=True)
class Original:
    """An original tensor.

    parts: diffusers' names of the tensors that it holds one below the other.
    swapped: whether its two halves of rows are in the other order.
    """

    parts: tuple[str, ...]
    swapped: bool = False


def architecture(config: Mapping[str, Any]) -> str | None:
    """Return the architecture of a denoiser's config.json as GGUF files name it (sd3, flux, sdxl), or None."""
    kind = config.get("_class_name")
    if kind == "UNet2DConditionModel":
        return "sdxl" if config.get("addition_embed_type") == "text_time" else None
    return {"SD3Transformer2DModel": "sd3", "FluxTransformer2DModel": "flux"}.get(str(kind))


def originals(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, Original]:
    """Return {original name: Original} of all tensors of a denoiser.

    Args:
        names: of its state dict in diffusers; config: the content of its config.json.
    Raises:
        ValueError: the architecture or a tensor is not known.
    """
    known = architecture(config)
    if known is None:
        raise ValueError(f"the original names of a {config.get('_class_name')} are not known")
    names, makers = list(names), {"sd3": _sd3, "flux": _flux, "sdxl": _unet}
    layer_of: Callable[[str], tuple[str, bool] | None] = makers[known](names, config)
    joined: dict[tuple[str, bool], list[str]] = {}
    for name in names:
        layer, _, part = name.rpartition(".")
        if (found := layer_of(layer)) is None:
            raise ValueError(f"a {config['_class_name']} has no tensor {name}")
        original, swapped = found
        if known == "flux" and original.endswith("_norm"):
            part = "scale"
        joined.setdefault((f"{original}.{part}".lstrip("."), swapped), []).append(name)
    return {
        original: Original(tuple(sorted(parts, key=_place)), swapped) for (original, swapped), parts in joined.items()
    }


def _place(name):
    layer = name.rpartition(".")[0].rpartition(".")[2]
    return ORDER.index(layer) if layer in ORDER else -1


def _sd3(names, config):
    last = max(int(name.split(".")[1]) for name in names if name.startswith("transformer_blocks."))

    def layer_of(layer):
        if match := re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", layer):
            number, own = int(match[1]), match[2]
            original = SD3_BLOCK.get(own)
            # The last block only reads the texts: its modulation is that of a final layer.
            return original and (f"joint_blocks.{number}.{original}", own == "norm1_context.linear" and number == last)
        return (SD3[layer], layer == "norm_out.linear") if layer in SD3 else None

    return layer_of


def _flux(names, config):
    blocks = {
        "transformer_blocks": ("double_blocks", FLUX_BLOCK),
        "single_transformer_blocks": ("single_blocks", FLUX_SINGLE),
    }

    def layer_of(layer):
        if match := re.fullmatch(r"(\w+)\.(\d+)\.(.+)", layer):
            folder, inside = blocks.get(match[1], ("", {}))
            if match[3] in inside:
                return f"{folder}.{match[2]}.{inside[match[3]]}", False
        return (FLUX[layer], layer == "norm_out.linear") if layer in FLUX else None

    return layer_of


def _unet(names, config):
    """As the U-Net of Stability AI's generative-models names its blocks: all layers of one side are counted through."""
    each = config["layers_per_block"] + 1
    attended = [kind != "UpBlock2D" for kind in config["up_block_types"]]

    def place(side, block, kind, layer, own):
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * each}.0.op"
        if kind == "upsamplers":
            return f"output_blocks.{(block + 1) * each - 1}.{1 + attended[block]}.conv"
        head = f"input_blocks.{block * each + layer + 1}" if side == "down" else f"output_blocks.{block * each + layer}"
        return f"{head}.1.{own}" if kind == "attentions" else f"{head}.0.{RESNET[own]}"

    def layer_of(layer):
        if layer in UNET:
            return f"model.diffusion_model.{UNET[layer]}", False
        if match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", layer):
            return f"model.diffusion_model.{place(match[1], int(match[2]), match[3], int(match[4]), match[5])}", False
        if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", layer):
            inside = RESNET[match[3]] if match[1] == "resnets" else match[3]
            number = 2 * int(match[2]) + (match[1] == "attentions")
            return f"model.diffusion_model.middle_block.{number}.{inside}", False
        return None

    return layer_of
