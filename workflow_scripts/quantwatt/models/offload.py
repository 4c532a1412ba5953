"""Place a pipeline on a device; text encoders may be there only while they encode prompts."""

import functools
from collections.abc import Mapping
from typing import Any

from quantwatt.artifacts.errors import DataError


def place(pipeline: Any, settings: Mapping[str, Any], device: str) -> Any:
    """Move a pipeline to a device in place, as the model's `offload` says.

    On a CPU `offload` changes nothing: it would not save memory.

    Raises:
        DataError: `offload` is set, and the pipeline has no text encoders.
    """
    if settings.get("offload") is None or device == "cpu":
        return pipeline.to(device)
    return without_text_encoders(pipeline, device)


def without_text_encoders(pipeline: Any, device: str) -> Any:
    """Move all parts except the text encoders to a device, in place.

    Each text encoder moves to the device when it is called and back to the CPU when the next one is called; the last
    moves back at the end of the pipeline's `encode_prompt`.
    """
    from accelerate import cpu_offload_with_hook

    parts = {name: part for name, part in sorted(pipeline.components.items()) if hasattr(part, "parameters")}
    encoders = [name for name in parts if name.startswith("text_encoder")]
    if not encoders or not hasattr(pipeline, "encode_prompt"):
        raise DataError(f"offload: {type(pipeline).__name__} has no text encoders to move.")
    hooks = []
    for name, part in parts.items():
        if name in encoders:
            _, hook = cpu_offload_with_hook(part, device, hooks[-1] if hooks else None)
            hooks.append(hook)
        else:
            part.to(device)
    encode = pipeline.encode_prompt

    @functools.wraps(encode)
    def encode_prompt(*args, **kwargs):
        try:
            return encode(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.offload()

    pipeline.encode_prompt = encode_prompt
    return pipeline
