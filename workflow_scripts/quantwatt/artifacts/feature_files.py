"""Write and read the features of an image set: safetensors files and the JSON file that vouches for them.

Features of a million images take ten gigabytes, so they are written and read without a copy in memory, and those of a
reference have their moments in a small file of their own.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import atomic_path, describe_files, read_json, verify_files, write_json
from quantwatt.artifacts.moments import Moments, moments

CHUNK = 65_536  # features that are checked at once
TYPES = {"F32": "<f4", "F64": "<f8", "I64": "<i8"}  # safetensors' names of numpy's types


def write_features(path: str | Path, tensors: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    """Write EXTRACTOR.safetensors, of a reference also EXTRACTOR-moments.safetensors and, last, EXTRACTOR.json.

    Args:
        path: the JSON file; the tensors go beside it.
        tensors: {"image": float32 [n, d]} and, for extractors that read text too, "text" [n, d],
            for classifiers "classes" int64 [n], seen in the images, and "asked" [n], where prompts are class numbers.
            Empty for a cell without images: then only the JSON file is written.
        fields: further entries of the JSON file, `status` and `reason` among them, and `reference`, its name, where the
            images are one.
    Raises:
        DataError: a feature is not finite, or the disk is full.
    """
    path = Path(path)
    path.unlink(missing_ok=True)
    for file in (_features_file(path), _moments_file(path)):
        file.unlink(missing_ok=True)
    for name, values in tensors.items():
        if not all(np.isfinite(values[first : first + CHUNK]).all() for first in range(0, len(values), CHUNK)):
            raise DataError(f"{path}: {name} features have NaN or infinite values; check the extractor's weights.")
    stored = {_features_file(path): tensors} if tensors else {}
    if tensors and fields.get("reference"):
        mean, covariance, _ = moments(tensors["image"])
        stored[_moments_file(path)] = {"mean": mean, "covariance": covariance}
    for file, content in stored.items():
        with atomic_path(file) as temporary:
            _write(temporary, content)
    n, dims = tensors["image"].shape if tensors else (0, None)
    files = describe_files(path.parent, [file.name for file in stored])
    write_json(path, {**fields, "n_images": n, "dims": dims, "files": files})


def read_features(path: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read the features that `write_features` wrote.

    Returns:
        (fields, tensors): tensors {"image": [n, d], ...}, mapped from disk; empty where the status is not "ok".
    Raises:
        DataError: a file is missing, truncated or corrupted.
    """
    return _read(path, _features_file(path))


def read_moments(path: str | Path) -> tuple[dict[str, Any], Moments]:
    """Read a reference's moments and none of its features.

    Returns:
        (fields, Moments).
    Raises:
        DataError: a file is missing, truncated or corrupted, or the images are no reference.
    """
    fields, tensors = _read(path, _moments_file(path))
    if not tensors:
        raise DataError(f"{path}: it vouches for no moments, as those of reference images do; delete it and run again.")
    return fields, Moments(tensors["mean"], tensors["covariance"], fields["n_images"])


def _features_file(path):
    return Path(path).with_suffix(".safetensors")


def _moments_file(path):
    return Path(path).with_name(f"{Path(path).stem}-moments.safetensors")


def _read(path, file):
    """(fields, tensors of one of the files that they vouch for)."""
    fields = read_json(path)
    own = {name: expected for name, expected in fields["files"].items() if name == file.name}
    verify_files(path, own)
    return fields, _mapped(file) if own else {}


def _write(path, tensors):
    """A safetensors file: its header's length, the header, and the tensors, which safetensors itself copies first."""
    header, end = {}, 0
    for name, values in tensors.items():
        start, end = end, end + values.nbytes
        (kind,) = (kind for kind, numpy in TYPES.items() if values.dtype == numpy)
        header[name] = {"dtype": kind, "shape": values.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # what follows starts at a multiple of 8 bytes
    with Path(path).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in tensors.values():
            file.write(np.ascontiguousarray(values).data)


def _mapped(path):
    """{name: tensor} of a safetensors file: what is not looked at takes no memory."""
    with Path(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    found = {}
    for name, own in header.items():
        begins = 8 + length + own["data_offsets"][0]
        found[name] = np.asarray(np.memmap(path, TYPES[own["dtype"]], "r", begins, tuple(own["shape"])))
    return found
