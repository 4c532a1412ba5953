"""Write and read the features of an image set: a safetensors file and the JSON file that vouches for it."""

from pathlib import Path

import numpy as np

from quantwatt.manifest import DataError, atomic_path, describe_files, read_json, verify_files, write_json


def write_features(path, tensors, fields):
    """Write EXTRACTOR.safetensors and, last, EXTRACTOR.json.

    Args:
        path: the JSON file; the tensors go beside it.
        tensors: {"image": float32 [n, d]} and, for extractors that read text too, "text" [n, d],
            for classifiers "classes" int64 [n], seen in the images, and "asked" [n], where prompts are class numbers.
            Empty for a cell without images: then only the JSON file is written.
        fields: further entries of the JSON file, `status` and `reason` among them.
    Raises:
        DataError: a feature is not finite, or the disk is full.
    """
    from safetensors.numpy import save

    path = Path(path)
    weights = path.with_suffix(".safetensors")
    path.unlink(missing_ok=True)
    weights.unlink(missing_ok=True)
    for name, values in tensors.items():
        if not np.isfinite(values).all():
            raise DataError(f"{path}: {name} features have NaN or infinite values; check the extractor's weights.")
    if tensors:
        with atomic_path(weights) as temporary:
            temporary.write_bytes(save({name: np.ascontiguousarray(v) for name, v in tensors.items()}))
    n, dims = tensors["image"].shape if tensors else (0, None)
    files = describe_files(path.parent, [weights.name]) if tensors else {}
    write_json(path, {**fields, "n_images": n, "dims": dims, "files": files})


def read_features(path):
    """Read what `write_features` wrote.

    Returns:
        (fields, tensors): tensors {"image": [n, d], ...} float32; empty where the status is not "ok".
    Raises:
        DataError: a file is missing, truncated or corrupted.
    """
    from safetensors.numpy import load_file

    fields = read_json(path)
    verify_files(path, fields["files"])
    tensors = {}
    for name in fields["files"]:
        tensors.update(load_file(Path(path).parent / name))
    return fields, tensors
