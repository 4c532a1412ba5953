"""A denoiser's call as named tensors with one row per sample, as calibration stores them, and back.

A dotted name is a place inside: "added_cond_kwargs.text_embeds" is entry text_embeds of the mapping added_cond_kwargs,
"image_rotary_emb.0" the first of a tuple. What a call gives to all its samples at once is stored for each of them, and
its name says what it is: "img_ids:shared" a tensor, "height:int", "return_residual:bool" or "resolution:none" a value.
"""

from collections.abc import Mapping

import torch

from quantwatt.manifest import DataError

VALUES = {"none": lambda value: None, "bool": bool, "int": int, "float": float}


def shared(call, other):
    """Names of the tensors that a call gives to all its samples at once: another number of samples leaves their length.

    Args:
        call, other: arguments of the denoiser, by keyword, for different numbers of samples.
    Raises:
        DataError: one call has arguments that the other has not.
    """
    one, two = _parts(call), _parts(other)
    if apart := one.keys() ^ two.keys():
        raise DataError(f"denoiser input {min(apart)}: is there for one number of samples and not for another.")
    lengths = {name: [part.shape[:1] for part in (one[name], two[name])] for name in one if _is_tensor(one[name])}
    return {name for name, (length, another) in lengths.items() if length == another}


def flat(arguments, count, shared):
    """The arguments of one call, sample by sample.

    A tensor that is not shared has one row per sample; a single number of a tensor, or a timestep of any type, is that
    of every sample.

    Args:
        arguments: of the denoiser, by keyword.
        count: samples of the call.
        shared: names, as of the function `shared`.
    Returns:
        {name: [samples, ...]}.
    Raises:
        DataError: an argument is neither tensor nor number, or a tensor has other rows than one per sample.
    """
    found = {}
    for name, value in _parts(arguments).items():
        if name.startswith("timestep") and isinstance(value, (int, float)):
            value = _number(value)
        if not _is_tensor(value):
            kind = "none" if value is None else type(value).__name__
            if kind not in VALUES:
                raise DataError(f"denoiser input {name}: a {kind} cannot be stored.")
            found[f"{name}:{kind}"] = _number(value or 0).expand(count)
        elif value.shape in ((), (1,)):
            found[name] = value.detach().clone().reshape(()).expand(count)
        elif name in shared:
            found[f"{name}:shared"] = value.detach().clone().expand(count, *value.shape)
        elif len(value) == count:
            found[name] = value.detach().clone()
        else:
            raise DataError(f"denoiser input {name}: {len(value)} rows of {count} samples cannot be stored by samples.")
    return found


def _parts(arguments):
    """{dotted name: value} of all that stands in mappings, tuples and lists."""
    found = {}
    for name, value in arguments.items():
        value = dict(enumerate(value)) if isinstance(value, (tuple, list)) else value
        if isinstance(value, Mapping):
            found |= _parts({f"{name}.{key}": part for key, part in value.items()})
        else:
            found[name] = value
    return found


def _is_tensor(value):
    return isinstance(value, torch.Tensor)


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
