"""MagCache (arXiv 2506.09045): how the blocks' residual grows from step to step is known of a model beforehand.

A step is skipped while the error that these ratios add up to stays below `threshold`; it adds the last residual again.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from quantwatt.artifacts.errors import DataError
from quantwatt.inference import transformer_blocks

if TYPE_CHECKING:
    import torch

    from quantwatt.inference.drawing import Place

UNIT, APART = "blocks", True


def refusal(denoiser: "torch.nn.Module", settings: Mapping[str, Any]) -> str | None:
    return transformer_blocks.refusal(denoiser)


def apply(denoiser: "torch.nn.Module", settings: Mapping[str, Any], place: "Place") -> None:
    """Raises DataError where nothing says how many steps the drawing has."""
    from diffusers.hooks import MagCacheConfig, apply_mag_cache

    steps = place.asked.steps
    if steps is None:
        raise DataError("cache mag: its ratios are spread over the steps; say how many there are.")
    config = MagCacheConfig(
        threshold=settings["threshold"],
        max_skip_steps=settings["most_in_a_row"],
        retention_ratio=settings["first_share"],
        num_inference_steps=steps,
        mag_ratios=settings["ratios"],
    )
    apply_mag_cache(denoiser, config)


def ratios(denoiser: "torch.nn.Module", draw: Any, steps: int) -> Sequence[float]:
    """Measure a model's `ratios`: the mean over tokens of the residual's norm over that of the step before.

    Args:
        denoiser: without a cache, of the pipeline that `draw()` calls once, for any batch.
        steps: of that drawing.
    Returns:
        [steps], the first of which is 1; the mean over branches of guidance that are computed in turns.
    """
    import numpy as np
    from diffusers.hooks import HookRegistry, MagCacheConfig, apply_mag_cache
    from diffusers.hooks.mag_cache import _MAG_CACHE_BLOCK_HOOK, _MAG_CACHE_LEADER_BLOCK_HOOK

    # With one step more than there are, diffusers does not print the ratios and forget them.
    apply_mag_cache(denoiser, MagCacheConfig(calibrate=True, num_inference_steps=steps + 1))
    hooks = HookRegistry.check_if_exists_or_initialize(denoiser)
    hooks.invalidate_child_registries_cache()
    tail = transformer_blocks.stack(denoiser)[-1]._diffusers_hook.get_hook(_MAG_CACHE_BLOCK_HOOK)  # ty: ignore
    draw()
    found = [state.calibration_ratios for state in tail.state_manager._state_cache.values()]
    for name in (_MAG_CACHE_BLOCK_HOOK, _MAG_CACHE_LEADER_BLOCK_HOOK):
        hooks.remove_hook(name, recurse=True)
    return np.mean(found, axis=0).tolist()
