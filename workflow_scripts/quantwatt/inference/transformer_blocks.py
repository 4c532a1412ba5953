"""The transformer blocks and attention layers of a denoiser, as diffusers' hooks find them."""

import inspect
from typing import Any

import torch

KEEP_TEXT = "keep_text"  # name of a hook


def stack(denoiser: torch.nn.Module) -> list[torch.nn.Module]:
    """The transformer blocks in the denoiser's own lists, in order; none of a UNet, whose lists lie deeper."""
    from diffusers.hooks._common import _ALL_TRANSFORMER_BLOCK_IDENTIFIERS

    lists = [part for name, part in denoiser.named_children() if name in _ALL_TRANSFORMER_BLOCK_IDENTIFIERS]
    return [block for part in lists if isinstance(part, torch.nn.ModuleList) for block in part]


def described(block: torch.nn.Module) -> Any:
    """What diffusers knows of a block's arguments and outputs (TransformerBlockMetadata); None of another class."""
    from diffusers.hooks._helpers import TransformerBlockRegistry

    try:
        known = TransformerBlockRegistry.get(type(block))
    except ValueError:
        return None
    takes = inspect.signature(type(block).forward).parameters
    return known if known.hidden_states_argument_name in takes else None


def refusal(denoiser: torch.nn.Module) -> str | None:
    """Why diffusers' caches cannot skip the blocks of a denoiser, or None."""
    blocks = stack(denoiser)
    if len(blocks) < 2:
        return "has no stack of transformer blocks, of which some could be skipped"
    unknown = next((type(block).__name__ for block in blocks if described(block) is None), None)
    return unknown and f"has blocks of a class that diffusers' caches do not know, {unknown}"


def attention(denoiser: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """{name: layer} of the attention layers that diffusers' caches know."""
    from diffusers.hooks._common import _ATTENTION_CLASSES

    return {name: module for name, module in denoiser.named_modules() if isinstance(module, _ATTENTION_CLASSES)}


def attention_refusal(denoiser: torch.nn.Module) -> str | None:
    """Why diffusers' caches cannot skip the attention of a denoiser, or None."""
    return None if attention(denoiser) else "has no attention layers that diffusers' caches know"


def keep_text(block: torch.nn.Module) -> None:
    """Let a block that drops its text (None in its place, as SD3's last) hand it on unchanged: caches subtract it."""
    from diffusers.hooks import HookRegistry, ModelHook

    if not getattr(block, "context_pre_only", False):
        return
    known = described(block)

    class KeepText(ModelHook):
        def new_forward(self, module, *args, **kwargs):
            outputs = list(self.fn_ref.original_forward(*args, **kwargs))  # ty: ignore[not-callable]
            text = known._get_parameter_from_args_kwargs(known.encoder_hidden_states_argument_name, args, kwargs)
            outputs[known.return_encoder_hidden_states_index] = text
            return tuple(outputs)

    HookRegistry.check_if_exists_or_initialize(block).register_hook(KeepText(), KEEP_TEXT)
