"""Check that a model's files hold exactly the tensors that its classes need.

A library initializes missing tensors at random, ignores unknown ones, and only logs it. The check uses the libraries'
own loading code, so that their renaming, tied weights and legacy buffers are respected. Parts are loaded one after
another on the meta device, without memory.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import check_tensors, read_json
from quantwatt.models import model_folder
from quantwatt.models.families.pipelines import part_class

SHOWN = 3  # tensors that a message names
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # safetensors' names and torch's
INDICES = {"I64", "I32", "BOOL"}  # of buffers that count or mask
HINTS = {  # {pattern of tensor names: how the file was saved, and what to do}
    r"\.base_layer\.|(^|\.)lora_[AB]\.|\.modules_to_save\.": "PEFT's names: merge the adapter (merge_and_unload) first",
    r"(^|\.)_orig_mod\.": "torch.compile's prefix: save the module that was compiled",
    r"(^|\.)(_fsdp_wrapped_module|_checkpoint_wrapped_module)\.": "FSDP's prefix: gather the full state dict first",
    r"^module\.": "DataParallel's prefix: save its .module",
    r"^(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\.|_blocks\.\d+\.\d+\.in_layers\.":
        "names of a single-file checkpoint: convert it by from_single_file",
    r"\.(weight_[gv]|parametrizations\.weight\.original\d)$": "weight norm's halves: remove it before saving",
    r"\.(SCB|absmax|quant_map|quant_state\..*|qweight|qzeros|scales|weight_scale|_data|_scale)$":
        "weights that are quantized already: give those that they were made of",
}  # fmt: skip


def check(
    folder: str | Path, settings: Mapping[str, Any], parts: Mapping[str, model_folder.Part]
) -> dict[str, dict[str, Any]]:
    """Refuse a model whose files do not hold the tensors that its classes need.

    Args:
        folder: the model's.
        settings: the model's completed entry.
        parts: as `quantwatt.models.model_folder.parts` returns.
    Returns:
        {name: {"class", "weights": [file], "variant", "stored": [dtype]}} of the parts with weights.
    Raises:
        DataError: a class is not installed; a part or tensor is missing; a tensor is unexpected, has another shape, or
            a dtype that would be cast silently.
    """
    weights = {name: part.weights for name, part in parts.items() if part.weights}
    stored = {name: _stored_types(parts[name]) for name in weights}  # all files are sound
    classes = {name: part_class(part) for name, part in parts.items()}
    if model_folder.index_of(settings["family"]) == model_folder.PIPELINE:
        _check_pipeline(folder, settings, parts)
    for name, types in stored.items():
        _check_loading(classes[name], parts[name], types, settings["dtype"])
    return {
        name: {
            "class": classes[name].__name__,
            "weights": list(weights[name].files),
            "variant": weights[name].variant,
            "stored": sorted({FLOATS[code] for code in types.values() if code in FLOATS}),
        }
        for name, types in stored.items()
    }


def _check_pipeline(folder, settings, parts):
    """Refuse a pipeline that lacks a part that its class needs."""
    import diffusers

    index = read_json(Path(folder) / model_folder.PIPELINE)
    kind = getattr(diffusers, index["_class_name"], None)
    if kind is None:
        raise DataError(
            f"{folder}/{model_folder.PIPELINE}: _class_name: diffusers {diffusers.__version__} has no "
            f"{index['_class_name']}; the model was saved by {index.get('_diffusers_version', 'another version')}."
        )
    needed = set(kind._get_signature_keys(kind)[0]) - set(kind._optional_components)
    if missing := sorted(needed.difference(parts, model_folder.left_out(settings))):
        raise DataError(
            f"{folder}/{model_folder.PIPELINE}: names no {missing[0]}, which {kind.__name__} needs; fetch the model "
            "again."
        )


def _stored_types(part):
    """{tensor: safetensors' name of its dtype} of all files; an index must agree with the files."""
    stored, files = {}, [name for name in part.weights.files if name.endswith(".safetensors")]
    listed = {}
    if len(files) < len(part.weights.files):
        listed = read_json(part.folder / part.weights.files[0])["weight_map"]
    for file in files:
        check_tensors(part.folder / file, "fetch the model again.")
        with safe_open(part.folder / file, framework="numpy") as tensors:
            names = tensors.keys()  # `tensors` is a file handle, not a mapping
            types = {name: tensors.get_slice(name).get_dtype() for name in names}
        if listed:
            wrong = sorted({name for name, at in listed.items() if at == file} ^ types.keys())
            if wrong:
                raise DataError(
                    f"{part.folder / part.weights.files[0]}: does not say what {file} holds ({_some(wrong)}); "
                    "fetch the model again."
                )
        stored |= types
    return stored


def _check_loading(kind, part, stored, dtype):
    """Load a part on the meta device, and refuse missing, unexpected and mismatched tensors."""
    model, loading = _loaded(kind, part, dtype)
    named, class_name = _files(part), kind.__name__
    missing, unexpected = sorted(loading["missing_keys"]), sorted(loading["unexpected_keys"])
    if missing:
        others = f"; it has {_some(unexpected)}, which nothing takes" if unexpected else ""
        raise DataError(
            f"{named}: lacks what {class_name} needs: {_some(missing)}{others}{_hint([*unexpected, *missing])}."
        )
    if unexpected:
        raise DataError(f"{named}: holds what {class_name} does not take: {_some(unexpected)}{_hint(unexpected)}.")
    if wrong := sorted(loading["mismatched_keys"], key=lambda mismatch: mismatch[0]):
        name, shape, needed = wrong[0]
        raise DataError(
            f"{named}: {len(wrong)} of its tensors have other shapes than config.json says: {name} is {_shape(shape)}, "
            f"and {class_name} needs {_shape(needed)}."
        )
    state = model.state_dict()
    for name, code in sorted(stored.items()):
        counts = not state[name].is_floating_point() if name in state else code in INDICES
        if code not in FLOATS and not counts:
            raise DataError(
                f"{named}: {sum(other == code for other in stored.values())} tensors are stored as {code} ({name} is "
                f"one), so that the baseline would be quantized before anything is measured; give the model in "
                f"{', '.join(sorted(FLOATS.values()))}."
            )


def _loaded(kind, part, dtype):
    """(a part's model on the meta device, its library's loading info)."""
    import diffusers
    from transformers.utils import logging

    logging.disable_progress_bar()  # one bar per layer loaded
    before = diffusers.utils.logging.get_verbosity(), logging.get_verbosity()
    diffusers.utils.logging.set_verbosity_error()  # problems that they would log are raised as DataError here
    logging.set_verbosity_error()
    try:
        return kind.from_pretrained(
            part.folder,
            dtype=getattr(torch, dtype),
            variant=part.weights.variant,
            local_files_only=True,
            use_safetensors=True,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"{part.folder}: {kind.__name__} cannot be built from its config.json and weights: {lines[0]}"
        ) from error
    finally:
        diffusers.utils.logging.set_verbosity(before[0])
        logging.set_verbosity(before[1])


def _files(part):
    """The file of a part's weights, or the index of its shards."""
    return part.folder / part.weights.files[0]


def _some(names):
    """The first names, and the number of further ones."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _shape(size):
    return "x".join(map(str, size)) or "a number"


def _hint(names):
    """How the file was saved, judged by its tensors' names: the end of a sentence, or nothing."""
    hints = (hint for pattern, hint in HINTS.items() if any(re.search(pattern, name) for name in names))
    return next((f" ({hint})" for hint in hints), "")
