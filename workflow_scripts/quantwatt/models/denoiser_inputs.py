"""Convert a denoiser's call into named tensors with one row per sample, as calibration stores them, and back.

A dotted name is a path into nested arguments: "added_cond_kwargs.text_embeds" is entry text_embeds of the mapping
added_cond_kwargs, "image_rotary_emb.0" the first element of a tuple, "visual_rope_pos.[0]" the first element of a list,
and "x.*" the sample's entry in a list with one entry per sample. Arguments that a call shares between all its samples
are stored once per sample, with their type in the name: "img_ids:shared" is a tensor, "height:int",
"return_residual:bool" and "resolution:none" are values. Where samples have different numbers of rows, as texts have,
they are padded with zeros, and "NAME:rows" holds the numbers.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from quantwatt.artifacts.errors import DataError

VALUES = {"none": lambda value: None, "bool": bool, "int": int, "float": float}
ROWS = ":rows"


def shared(call: Mapping[str, Any], other: Mapping[str, Any]) -> set[str]:
    """Names of the tensors and lists that all samples of a call share.

    Their length is the same for another number of samples.

    Args:
        call, other: arguments of the denoiser, by keyword, for different numbers of samples.
    """
    lengths, others = dict(_lengths("", call)), dict(_lengths("", other))
    return {name for name in lengths.keys() & others.keys() if lengths[name] == others[name]}


def is_timestep(name: str) -> bool:
    """Whether an argument of a denoiser is the timestep."""
    return name.startswith("timestep") or name == "t"


def _lengths(name, value):
    """(dotted name, length) of every tensor, list and tuple in a value."""
    if isinstance(value, torch.Tensor):
        yield name, value.shape[:1]
    elif isinstance(value, (list, tuple)):
        yield name, len(value)
    for key, part in _parts(value):
        yield from _lengths(f"{name}.{key}" if name else key, part)


def _parts(value):
    """(key, part) of a mapping, a tuple or a list."""
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, (list, tuple)):
        key = "{}" if isinstance(value, tuple) else "[{}]"
        yield from ((key.format(i), part) for i, part in enumerate(value))


def flat(arguments: Mapping[str, Any], count: int, shared: Collection[str]) -> dict[str, torch.Tensor]:
    """Convert the arguments of one call into one row per sample.

    A tensor that is not shared has one row per sample, a list that is not shared may have one entry per sample. A
    tensor with a single number, or a timestep of any type, holds for every sample.

    Args:
        arguments: of the denoiser, by keyword.
        count: number of samples of the call.
        shared: names, as returned by the function `shared`.
    Returns:
        {name: [samples, ...]}.
    Raises:
        DataError: an argument is neither tensor nor number, or a tensor does not have one row per sample.
    """
    samples = [{} for _ in range(count)]
    for name, value in arguments.items():
        for stored, rows in _stored(name, value, count, shared):
            for sample, row in zip(samples, rows, strict=True):
                sample[stored] = row
    return stack(samples)


def _stored(name, value, count, shared):
    """(stored name, one tensor per sample) of every tensor and number in a value."""
    if is_timestep(name) and isinstance(value, (int, float)):
        value = _number(value)
    if isinstance(value, torch.Tensor):
        yield _stored_tensor(name, value.detach().clone(), count, shared)
    elif isinstance(value, (list, tuple)) and len(value) == count and name not in shared:
        entries = [dict(_entry(f"{name}.*", entry)) for entry in value]
        if any(entry.keys() != entries[0].keys() for entry in entries):
            raise DataError(f"denoiser input {name}: samples of one call have different parts there.")
        yield from ((stored, [entry[stored] for entry in entries]) for stored in entries[0])
    elif isinstance(value, (Mapping, list, tuple)):
        for key, part in _parts(value):
            yield from _stored(f"{name}.{key}", part, count, shared)
    else:
        stored, number = _stored_value(name, value)
        yield stored, [number] * count


def _stored_tensor(name, tensor, count, shared):
    if tensor.ndim == 0 or (tensor.shape == (1,) and "." not in name):
        return name, [tensor.reshape(())] * count
    if name in shared:
        return f"{name}:shared", [tensor] * count
    if len(tensor) == count:
        return name, list(tensor)
    raise DataError(f"denoiser input {name}: {len(tensor)} rows of {count} samples cannot be stored by samples.")


def _entry(name, value):
    """(stored name, tensor) of every tensor and number in one sample's entry of a list."""
    if isinstance(value, torch.Tensor):
        yield name, value.detach().clone()
    elif isinstance(value, (Mapping, list, tuple)):
        for key, part in _parts(value):
            yield from _entry(f"{name}.{key}", part)
    else:
        yield _stored_value(name, value)


def _stored_value(name, value):
    kind = "none" if value is None else type(value).__name__
    if kind not in VALUES:
        raise DataError(f"denoiser input {name}: a {kind} cannot be stored.")
    return f"{name}:{kind}", _number(value or 0)


def _number(value):
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)


def of_sample(inputs: Mapping[str, torch.Tensor], index: int) -> dict[str, torch.Tensor]:
    """{name: tensor} of one sample, without its padding."""
    names = [name for name in inputs if not name.endswith(ROWS)]
    return {name: _row(inputs, name, index) for name in names}


def _row(inputs, name, index):
    row, rows = inputs[name][index], inputs.get(name + ROWS)
    return row if rows is None else row[: rows[index]]


def stack(samples: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stack samples, as `of_sample` returns them, to {name: [samples, ...]}.

    A call may have no mask, such as a batch of equally long texts: the mask of its samples is filled with ones.

    Raises:
        DataError: samples differ in more than the number of rows, or in the names of their tensors.
    """
    stacked = {}
    for name in dict.fromkeys(name for sample in samples for name in sample):
        tensors = _with_masks(name, samples)
        if len({tuple(tensor.shape) for tensor in tensors}) > 1:
            stacked[name + ROWS] = torch.tensor([_rows_of(name, tensor, tensors[0]) for tensor in tensors])
            tensors = _padded(tensors)
        stacked[name] = torch.stack(tensors)
    return stacked


def _with_masks(name, samples):
    example = next(sample[name] for sample in samples if name in sample)
    masked = name.removesuffix("_mask")
    missing = [sample for sample in samples if name not in sample]
    if missing and (masked == name or any(masked not in sample for sample in missing)):
        raise DataError(f"denoiser input {name}: is there for some samples and not for others.")
    return [sample[name] if name in sample else example.new_ones(len(sample[masked])) for sample in samples]


def _rows_of(name, tensor, first):
    if tensor.ndim == 0 or tensor.shape[1:] != first.shape[1:]:
        raise DataError(
            f"denoiser input {name}: samples of different shapes, {tuple(first.shape)} and {tuple(tensor.shape)}."
        )
    return len(tensor)


def _padded(tensors):
    rows = max(len(tensor) for tensor in tensors)
    return [torch.cat([tensor, tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])]) for tensor in tensors]


def nested(inputs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The inverse of `flat`: keyword arguments of a call on some samples.

    Raises:
        DataError: the samples differ in an argument that all samples of a call share.
    """
    arguments, entries = {}, {}
    for name in inputs:
        if name.endswith(ROWS):
            continue
        path, _, kind = name.partition(":")
        above, each, inside = path.partition(".*")
        if not each:
            _put(arguments, path, _of_all(name, inputs, kind) if kind else _in_one(name, inputs))
            continue
        samples = entries.setdefault(above, [{} for _ in inputs[name]])
        for i, sample in enumerate(samples):
            row = _row(inputs, name, i)
            _put(sample, "*" + inside, VALUES[kind](row.item()) if kind else row)
    for name, samples in entries.items():
        _put(arguments, name, [_sequences(sample["*"]) for sample in samples])
    return {name: _sequences(value) for name, value in arguments.items()}


def _put(tree, path, value):
    *above, last = path.split(".")
    for part in above:
        tree = tree.setdefault(part, {})
    tree[last] = value


def _of_all(name, inputs, kind):
    tensor = _in_one(name, inputs)
    if not torch.equal(tensor, tensor[:1].expand_as(tensor)):
        raise _differs(name)
    return tensor[0] if kind == "shared" else VALUES[kind](tensor[0].item())


def _in_one(name, inputs):
    """One tensor of all samples, as long as the longest sample; the padding of shorter samples must be masked."""
    tensor, rows = inputs[name], inputs.get(name + ROWS)
    if rows is None:
        return tensor
    if (rows != rows[0]).any() and not masks_padding(name, inputs):
        raise _differs(name)
    return tensor[:, : rows.max()]


def masks_padding(name: str, inputs: Mapping[str, torch.Tensor]) -> bool:
    """Whether a mask of zeros and ones excludes this input's padding; the input may be that mask."""
    mask = inputs.get(name if name.endswith("_mask") else f"{name}_mask")
    return mask is not None and not mask.is_floating_point()  # a float mask may be additive: 0 then means "attend"


def _differs(name):
    return DataError(f"denoiser input {name}: differs between samples of one call; calibrate with batch_size: 1.")


def _sequences(value):
    """Convert mappings whose keys number their parts from 0 to tuples or lists."""
    if not isinstance(value, dict):
        return value
    parts = {name: _sequences(part) for name, part in value.items()}
    for kind, key in ((tuple, "{}"), (list, "[{}]")):
        places = [key.format(index) for index in range(len(parts))]
        if set(parts) == set(places):
            return kind(parts[place] for place in places)  # files sort by name
    return parts
