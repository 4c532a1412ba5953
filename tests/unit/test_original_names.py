"""Names of the original checkpoints: diffusers' own conversion takes them back to the state dict that they are from."""

from pathlib import Path

import pytest
import torch

from quantwatt.artifacts import manifest
from quantwatt.models.original_names import architecture, originals

ROOT = Path(__file__).parents[2]
SD3 = {"num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 16, "caption_projection_dim": 32,
       "joint_attention_dim": 24, "pooled_projection_dim": 20, "pos_embed_max_size": 8, "sample_size": 8,
       "in_channels": 4, "qk_norm": "rms_norm", "dual_attention_layers": [0, 1]}  # fmt: skip
# diffusers' conversion knows FLUX in its own width only, 24 heads of 128.
FLUX = {"num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 24, "pooled_projection_dim": 20,
        "guidance_embeds": True}  # fmt: skip
UNET = manifest.read_json(ROOT / "resources/models/tiny-sdxl/unet/config.json")
CASES = {
    "sd35": ("SD3Transformer2DModel", SD3),
    "sd3": ("SD3Transformer2DModel", {**SD3, "qk_norm": None, "dual_attention_layers": []}),
    "flux-dev": ("FluxTransformer2DModel", FLUX),
    "flux-schnell": ("FluxTransformer2DModel", {**FLUX, "guidance_embeds": False}),
    "sdxl": ("UNet2DConditionModel", UNET),
    "sdxl-deeper": ("UNet2DConditionModel", {**UNET, "layers_per_block": 2}),
}
# By which ComfyUI-GGUF's convert.py and stable-diffusion.cpp's get_sd_version know an architecture.
KNOWN = {
    "sd3": ["joint_blocks.0.x_block.attn.qkv.weight"],
    "flux": ["double_blocks.0.img_attn.proj.weight", "double_blocks.0.img_attn.norm.key_norm.scale"],
    "sdxl": ["model.diffusion_model.input_blocks.2.0.op.weight", "model.diffusion_model.label_emb.0.0.weight"],
}


def state_of(kind, config):
    """A denoiser's state dict with all its rows, but few columns: diffusers joins and splits rows only."""
    import diffusers

    with torch.device("meta"):
        model = getattr(diffusers, kind).from_config(config)
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(len(tensor), *(min(size, 3) for size in tensor.shape[1:]), generator=generator)
        for name, tensor in model.state_dict().items()
    }


@pytest.mark.parametrize("case", CASES)
def test_diffusers_converts_them_back(case):
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    kind, config = CASES[case]
    state, config = state_of(kind, config), {**config, "_class_name": kind}
    checkpoint = {}
    for name, original in originals(state, config).items():
        tensor = torch.cat([state[part] for part in original.parts])
        checkpoint[name] = torch.cat(tensor.chunk(2)[::-1]) if original.swapped else tensor
    if "layers_per_block" not in config or config["layers_per_block"] == 1:
        assert set(KNOWN[architecture(config)]) <= checkpoint.keys()
    convert = SINGLE_FILE_LOADABLE_CLASSES[kind]["checkpoint_mapping_fn"]
    found = convert(checkpoint=checkpoint, config=config)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor), name


def test_others_are_refused():
    with pytest.raises(ValueError, match="names of a DiTTransformer2DModel are not known"):
        originals(["proj.weight"], {"_class_name": "DiTTransformer2DModel"})
    with pytest.raises(ValueError, match="names of a UNet2DConditionModel are not known"):
        originals(["conv_in.weight"], {"_class_name": "UNet2DConditionModel", "addition_embed_type": None})
    names = ["transformer_blocks.0.attn.to_q.weight", "transformer_blocks.0.attn.lora.weight"]
    with pytest.raises(ValueError, match=r"has no tensor transformer_blocks\.0\.attn\.lora\.weight"):
        originals(names, {"_class_name": "SD3Transformer2DModel"})
