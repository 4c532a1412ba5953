"""First-block cache (ParaAttention, https://github.com/chengzeyi/ParaAttention): the first block tells of all others.

Every step computes the first block. Where its residual differs from that of the last complete step by no more than
`threshold` (mean absolute difference over mean magnitude), the others' residual of that step is added again.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quantwatt.inference import transformer_blocks

if TYPE_CHECKING:
    import torch

    from quantwatt.inference.drawing import Place

UNIT, APART = "blocks", True


def refusal(denoiser: "torch.nn.Module", settings: Mapping[str, Any]) -> str | None:
    if reason := transformer_blocks.refusal(denoiser):
        return reason
    known = [transformer_blocks.described(block) for block in transformer_blocks.stack(denoiser)]
    if any(one.hidden_states_argument_name != "hidden_states" for one in known):
        return "has blocks whose hidden states have another name than diffusers' first-block cache looks for"
    if len({one.return_encoder_hidden_states_index is None for one in known}) > 1:
        return "has blocks of two streams and of one, whose residuals diffusers' first-block cache cannot add"
    return None


def apply(denoiser: "torch.nn.Module", settings: Mapping[str, Any], place: "Place") -> None:
    from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

    transformer_blocks.keep_text(transformer_blocks.stack(denoiser)[-1])
    apply_first_block_cache(denoiser, FirstBlockCacheConfig(threshold=settings["threshold"]))
