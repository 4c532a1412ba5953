"""Read and write manifests, the small JSON files that link the stages, and check the large files that they list.

A stage writes its large files first and its manifest last. Each file is written under a temporary name and renamed when
it is complete: an interrupted or failed write never leaves a file that a later run would use.
"""

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantwatt.artifacts.errors import DataError

if TYPE_CHECKING:
    import torch

PROJECT = Path(__file__).resolve().parents[3]  # relative paths in manifests are relative to this folder


def sha256(path: str | Path) -> str:
    """Hex sha256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """The canonical string of a value: sorted keys, no spaces, so that equal settings compare equal."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Generator[Path, None, None]:
    """Yield a temporary path next to `path`; rename it to `path` on success, remove it on any error.

    Temporary files that killed programs left for the same path are removed, too. If `path` is a link, the link is
    replaced and its target is left unchanged.

    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Escaped, so that the temporary files of w3.5 are not taken for those of w3.
        left = re.compile(rf"\.{re.escape(path.stem)}\.\d+\.part{re.escape(path.suffix)}")
        for other in path.parent.iterdir():
            if left.fullmatch(other.name):
                other.unlink(missing_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as JSON, completely or not at all. NaN and infinity are refused (ValueError)."""
    text = json.dumps(value, indent=1, sort_keys=False, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def write_tensors(path: str | Path, tensors: "Mapping[str, torch.Tensor]") -> None:
    """Write `{name: torch tensor}` as safetensors, completely or not at all.

    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        except SafetensorError as error:  # safetensors raises it for a failed write
            raise OSError(str(error)) from error


def read_json(path: str | Path) -> Any:
    """Parse a JSON file.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise DataError(f"{path}: the file does not exist.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a JSON file ({error}); delete it and run again.") from error


def describe_files(folder: str | Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """`{name: {"sha256", "bytes"}}` of files in `folder`, for a manifest."""
    folder = Path(folder)
    return {name: {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size} for name in names}


def verify_files(
    manifest_path: str | Path, files: Mapping[str, Mapping[str, Any]], folder: str | Path | None = None
) -> None:
    """Check the size and sha256 of every file that a manifest lists, and the headers of safetensors files.

    Args:
        manifest_path: the manifest.
        files: `{name: {"sha256": str, "bytes": int}}`.
        folder: the names are relative to it; default: the manifest's folder.
    Raises:
        DataError: a file is missing, truncated or changed, or lies outside the folder; says what to delete.
    """
    folder = Path(folder or Path(manifest_path).parent)
    for name, expected in files.items():
        path = folder / name
        remedy = f"delete {manifest_path} and run again to make it anew."
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"{manifest_path}: lists '{name}', which is not in its folder; {remedy}")
        if not path.is_file():
            raise DataError(f"{path}: the file is missing although its manifest lists it; {remedy}")
        if path.stat().st_size != expected["bytes"]:
            raise DataError(
                f"{path}: {path.stat().st_size} bytes instead of {expected['bytes']} (truncated?); {remedy}"
            )
        if sha256(path) != expected["sha256"]:
            raise DataError(f"{path}: its sha256 differs from the manifest (corrupted?); {remedy}")
        if path.suffix == ".safetensors":
            check_tensors(path, remedy)


def check_tensors(path: str | Path, remedy: str) -> None:
    """Refuse a safetensors file whose header does not match its contents; no tensor is read.

    Raises:
        DataError: the length, offsets, shapes or dtypes are wrong; the message ends in `remedy`.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not a safetensors file ({error}); {remedy}") from error


def without_credentials(text: str) -> str:
    """A text for display, without users, passwords or tokens in its URLs."""
    text = re.sub(r"://[^/@\s]*@", "://***@", text)
    return re.sub(r"(://[^\s?'\"]*\?)[^\s'\"]+", r"\1***", text)


def finite(value: Any) -> float | None:
    """`value` as a float, or None where it is NaN or infinite (JSON has neither)."""
    value = float(value)
    return value if math.isfinite(value) else None
