"""A denoiser's call as named tensors with one row per sample, as calibration stores them, and back.

A dotted name is a place inside: "added_cond_kwargs.text_embeds" is entry text_embeds of the mapping added_cond_kwargs,
"image_rotary_emb.0" the first of a tuple. What a call gives to all its samples at once is stored for each of them, and
its name says what it is: "img_ids:shared" a tensor, "height:int", "return_residual:bool" or "resolution:none" a value.
"""

from collections.abc import Mapping

import torch

from quantwatt.manifest import DataError

VALUES = {"none": lambda value: None, "bool": bool, "int": int, "float": float}


def flat(arguments, count):
    """The arguments of one call, sample by sample.

    A tensor whose first dimension has the samples is theirs; a single number of a tensor, or a timestep of any type, is
    that of every sample.

    Args:
        arguments: of the denoiser, by keyword.
        count: samples of the call.
    Returns:
        {name: [samples, ...]}.
    Raises:
        DataError: an argument that is neither tensor nor number.
    """
    found = {}
    for name, value in arguments.items():
        found |= _flat(name, value, count)
    return found


def _flat(name, value, count):
    if isinstance(value, Mapping):
        return flat({f"{name}.{key}": part for key, part in value.items()}, count)
    if isinstance(value, (tuple, list)):
        return flat({f"{name}.{index}": part for index, part in enumerate(value)}, count)
    if name.startswith("timestep") and isinstance(value, (int, float)):
        value = _number(value)
    if isinstance(value, torch.Tensor):
        value = value.detach().clone()
        if value.shape in ((), (1,)):
            return {name: value.reshape(()).expand(count)}
        if len(value) == count:
            return {name: value}
        return {f"{name}:shared": value.expand(count, *value.shape)}
    kind = "none" if value is None else type(value).__name__
    if kind not in VALUES:
        raise DataError(f"denoiser input {name}: a {kind} cannot be stored.")
    return {f"{name}:{kind}": _number(value or 0).expand(count)}


def _number(value):
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)


def nested(inputs):
    """The inverse of `flat`: keyword arguments of a call on some samples.

    Raises:
        DataError: the samples differ in what one call gives to all of them.
    """
    found = {}
    for name, tensor in inputs.items():
        path, _, kind = name.partition(":")
        *above, last = path.split(".")
        place = found
        for part in above:
            place = place.setdefault(part, {})
        place[last] = _of_all(name, tensor, kind) if kind else tensor
    return {name: _with_tuples(value) for name, value in found.items()}


def _of_all(name, tensor, kind):
    if not torch.equal(tensor, tensor[:1].expand_as(tensor)):
        raise DataError(f"denoiser input {name}: differs between samples of one call; calibrate with batch_size: 1.")
    return tensor[0] if kind == "shared" else VALUES[kind](tensor[0].item())


def _with_tuples(value):
    """Mappings numbered from 0 as tuples."""
    if not isinstance(value, dict):
        return value
    parts = {name: _with_tuples(part) for name, part in value.items()}
    places = [str(index) for index in range(len(parts))]
    return tuple(parts[place] for place in places) if set(parts) == set(places) else parts  # files sort by name
