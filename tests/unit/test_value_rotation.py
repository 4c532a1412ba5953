"""Rotations folded into projections to values: the denoiser computes the same, and outputs need no rotation."""

import copy

import pytest
import torch

from quantwatt.config.method_entries import complete_method
from quantwatt.jobs import torchvision_ops  # noqa: F401  (before diffusers)
from quantwatt.models.families import load_family
from quantwatt.quantize import sequential, value_rotation

GENERATOR = torch.Generator().manual_seed(0)
TEXT, POOLED, LATENTS = (torch.randn(*shape, generator=GENERATOR) for shape in ((2, 5, 32), (2, 32), (2, 4, 8, 8)))
AT = torch.tensor([500.0, 500.0])


def sd3():
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        sample_size=8, in_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=32, out_channels=4,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    return model, {
        "hidden_states": LATENTS,
        "encoder_hidden_states": TEXT,
        "pooled_projections": POOLED,
        "timestep": AT,
    }


def flux():
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    inputs = {"hidden_states": LATENTS.reshape(2, 16, 16), "encoder_hidden_states": TEXT, "pooled_projections": POOLED}
    return model, {**inputs, "timestep": AT / 1000, "img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(5, 3)}


def pixart():
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=16, num_attention_heads=2, in_channels=4,
        out_channels=8, cross_attention_dim=32, caption_channels=32, use_additional_conditions=False,
    )  # fmt: skip
    added = {"resolution": None, "aspect_ratio": None}
    return model, {"hidden_states": LATENTS, "encoder_hidden_states": TEXT, "timestep": AT, "added_cond_kwargs": added}


def sana():
    from diffusers import SanaTransformer2DModel

    model = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=16, cross_attention_dim=32, caption_channels=32,
        sample_size=8,
    )  # fmt: skip
    return model, {"hidden_states": LATENTS, "encoder_hidden_states": TEXT, "timestep": AT}


def unet():
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=32, attention_head_dim=2,
        norm_num_groups=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    return model, {"sample": LATENTS, "encoder_hidden_states": TEXT, "timestep": AT}


ROTATED = {"sd3": 4, "flux": 4, "pixart": 4, "sana": 4, "unet": 8}  # output projections with rotated inputs


@torch.no_grad()
@pytest.mark.parametrize("name", ROTATED)
@pytest.mark.parametrize("signs", [True, False])
def test_a_denoiser_with_rotated_values_computes_the_same(name, signs):
    torch.manual_seed(0)
    model, inputs = {"sd3": sd3, "flux": flux, "pixart": pixart, "sana": sana, "unet": unet}[name]()
    model.eval()
    for parameter in model.parameters():  # also those that begin at 0, as gates do
        parameter.add_(0.05 * torch.randn_like(parameter))
    before, weights = model(**inputs).sample, copy.deepcopy(model.state_dict())
    layers = {n for n, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    rotated = value_rotation.fold(model, layers, 256, signs, 0)
    assert len(rotated) == ROTATED[name] and set(rotated.values()) == {16}
    assert torch.allclose(model(**inputs).sample, before, rtol=1e-4, atol=1e-4 * before.abs().max().item())
    changed = {n for n, tensor in model.state_dict().items() if not torch.equal(tensor, weights[n])}
    assert {f"{n}.weight" for n in rotated} < changed
    assert all(any(part in n for part in ("to_v", "add_v_proj", "to_out.0", "to_add_out")) for n in changed)


@torch.no_grad()
def test_a_layer_that_is_not_asked_for_is_not_rotated():
    model, _ = pixart()
    before = copy.deepcopy(model.state_dict())
    assert value_rotation.fold(model, {"proj_out", "transformer_blocks.0.ff.net.2"}, 256, True, 0) == {}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    one = "transformer_blocks.0.attn1.to_out.0"
    assert value_rotation.fold(model, {one}, 8, True, 0) == {one: 8}


def test_folded_rotations_are_no_part_of_the_checkpoint():
    """Outputs of attentions are not rotated at run time, other layers are; errors are those of rotated weights."""
    family, denoiser = load_family("sd3"), sd3()[0].eval()
    weights = {"format": "integer", "bits": 4, "granularity": "channel"}
    names = family.quantizable(denoiser)
    found = {}
    for fold in (True, False):
        given = {"weights": weights, "transforms": [{"name": "hadamard", "fold": fold}]}
        method = complete_method(given, "test", "methods.m")
        allocation = {name: {"weights": method["weights"], "activations": None} for name in names}
        found[fold] = sequential.quantize(copy.deepcopy(denoiser), family, allocation, method)
    outputs = [name for name in names if name.endswith(("to_out.0", "to_add_out"))]
    states, reports = found[True]
    assert len(outputs) == 4 and all("rotation" not in states[name] for name in outputs)
    assert all("rotation" in states[name] for name in names if name not in outputs)
    assert all("rotation" in found[False][0][name] for name in outputs)
    assert all(reports[name]["hadamard_folded"] and reports[name]["hadamard_block"] == 16 for name in outputs)
    assert all(0 < reports[name]["relative_error"] < 0.3 for name in names)
