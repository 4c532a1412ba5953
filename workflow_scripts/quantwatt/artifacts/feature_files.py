"""Write and read the features of an image set: arrays in numpy's format, and their manifest, a JSON file.

Features of a million images take ten gigabytes, so they are written and read without a copy in memory. The moments of a
reference's features are stored in separate small files.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import atomic_path, describe_files, read_json, verify_files, write_json
from quantwatt.artifacts.moments import Moments, moments

CHUNK = 65_536  # number of features that are checked at once
MOMENTS = ("mean", "covariance")
TYPES = ("<f4", "<f8", "<i8")


def write_features(path: str | Path, arrays: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    """Write EXTRACTOR-NAME.npy for each array, for a reference also its moments, and EXTRACTOR.json last.

    Args:
        path: the JSON file; the arrays are written next to it.
        arrays: {"image": float32 [n, d]} and, for extractors that read text too, "text" [n, d] and "quality" [2, d],
            for classifiers "classes" int64 [n], predicted from the images, and "asked" [n], where prompts are class
            numbers; or numbers of every image [n] by other names of small letters. Empty for a cell without images:
            then only the JSON file is written.
        fields: further entries of the JSON file, including `status` and `reason`; and `reference`, the reference's
            name, if these are features of reference images.
    Raises:
        DataError: a feature is not finite, or the disk is full.
    """
    path = Path(path)
    path.unlink(missing_ok=True)
    for earlier in path.parent.glob(f"{path.stem}-*.npy"):
        if _array(path, earlier.name):
            earlier.unlink()
    for name, values in arrays.items():
        if not all(np.isfinite(values[first : first + CHUNK]).all() for first in range(0, len(values), CHUNK)):
            raise DataError(f"{path}: {name} features have NaN or infinite values; check the extractor's weights.")
    stored = dict(arrays)
    if arrays and fields.get("reference"):
        mean, covariance, _ = moments(arrays["image"])
        stored |= {"mean": mean, "covariance": covariance}
    for name, values in stored.items():
        with atomic_path(_file(path, name)) as temporary, temporary.open("wb") as file:
            np.save(file, values, allow_pickle=False)
    n, dims = len(next(iter(arrays.values()), ())), arrays["image"].shape[1] if "image" in arrays else None
    files = describe_files(path.parent, [_file(path, name).name for name in stored])
    write_json(path, {**fields, "n_images": n, "dims": dims, "files": files})


def read_features(path: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read the features that `write_features` wrote.

    Returns:
        (fields, arrays): arrays {"image": [n, d], ...} without moments, memory-mapped; empty where the status is not
        "ok".
    Raises:
        DataError: a file is missing, truncated or corrupted, or is not an array.
    """
    listed = filter(None, (_array(path, name) for name in read_json(path)["files"]))
    fields, arrays = _read(path, [name for name in listed if name not in MOMENTS])
    if fields["status"] == "ok" and not arrays:
        raise DataError(f"{path}: it lists no features of images; delete it and run again.")
    return fields, arrays


def read_moments(path: str | Path) -> tuple[dict[str, Any], Moments]:
    """Read a reference's moments without its features.

    Returns:
        (fields, Moments).
    Raises:
        DataError: a file is missing, truncated or corrupted, or is not an array, or the images are not a reference.
    """
    fields, arrays = _read(path, MOMENTS)
    if not arrays:
        raise DataError(f"{path}: it lists no moments, as features of reference images do; delete it and run again.")
    return fields, Moments(arrays["mean"], arrays["covariance"], fields["n_images"])


def _array(path, name):
    """The NAME of a file EXTRACTOR-NAME.npy; None of other files, also of an extractor whose name begins alike."""
    found = re.fullmatch(rf"{re.escape(Path(path).stem)}-([a-z]+)\.npy", name)
    return found and found[1]


def _file(path, name):
    return Path(path).with_name(f"{Path(path).stem}-{name}.npy")


def _read(path, names):
    """(fields, {name: array}) with those arrays of `names` that the JSON file lists."""
    fields = read_json(path)
    files = {name: _file(path, name) for name in names if _file(path, name).name in fields["files"]}
    verify_files(path, {file.name: fields["files"][file.name] for file in files.values()})
    return fields, {name: _mapped(file, path) for name, file in files.items()}


def _mapped(file, path):
    """Memory-map an array, so that only the parts that are read take memory. Nothing is unpickled."""
    try:
        values = np.lib.format.open_memmap(file, mode="r")
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise DataError(f"{file}: not an array ({reason}); delete {path} and run again to make it anew.") from error
    if values.dtype.str not in TYPES or values.offset + values.nbytes != file.stat().st_size:
        raise DataError(f"{file}: not an array of features; delete {path} and run again to make it anew.")
    return np.asarray(values)
