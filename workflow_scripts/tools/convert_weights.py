"""Convert the weights of a pickle (.pt, .pth, .bin) to safetensors, once, so that no job of the workflow unpickles.

    convert_weights.py alexnet-owt-7be5be79.pth alexnet.safetensors
    convert_weights.py https://download.pytorch.org/models/vgg16-397923af.pth vgg16.safetensors

The file is read with `weights_only` in a process that has no network, where the system allows to take it away. A
download is checked against --sha256, or the first digits of it in the file's name, as PyTorch's have.
"""

import argparse
import ctypes
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder with quantwatt

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import atomic_path, sha256
from quantwatt.jobs import command

NEW_USER_AND_NETWORK = 0x10000000 | 0x40000000  # of unshare(2): a namespace without any network device
NAMED = re.compile(r"-([0-9a-f]{8,64})\.\w+$")  # the sha256's first digits, as torch.hub names files


def download(address: str, folder: Path) -> Path:
    """Download a file; its name stays."""
    path = folder / Path(address).name
    try:
        with urllib.request.urlopen(address) as answer, path.open("wb") as file:
            while part := answer.read(1 << 20):
                file.write(part)
    except OSError as error:  # includes URLError
        raise DataError(f"{address}: cannot be downloaded ({error}).") from error
    return path


def check(path: Path, expected: str | None) -> None:
    """Refuse a file of another sha256 than expected, or than its name begins."""
    digits = expected or ((found := NAMED.search(path.name)) and found[1])
    if digits and not (actual := sha256(path)).startswith(digits.lower()):
        raise DataError(f"{path}: its sha256 begins with {actual[:16]}, and {digits[:16]} is expected; fetch it again.")


def without_network() -> bool:
    """Take the network away from this process; False where the system does not allow it."""
    return ctypes.CDLL(None, use_errno=True).unshare(NEW_USER_AND_NETWORK) == 0


def tensors_of(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(name, tensor) of all tensors in nested mappings; of a checkpoint with a "state_dict" its names alone."""
    import torch

    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, part in (value.get("state_dict") or value).items():
            yield from tensors_of(part, f"{name}.{key}" if name else str(key))


def convert(source: Path, output: Path) -> None:
    """Read a pickle of tensors, nothing else, and write its tensors."""
    import torch
    from safetensors.torch import save_file

    try:
        loaded = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, and whatever a broken file leads to
        raise DataError(f"{source}: no pickle of tensors alone ({str(error).strip().splitlines()[0]}).") from error
    tensors = {name: tensor.clone().contiguous() for name, tensor in tensors_of(loaded)}  # safetensors shares no memory
    if not tensors:
        raise DataError(f"{source}: there are no tensors in it.")
    with atomic_path(output) as temporary:
        save_file(tensors, temporary)
    print(f"{output}: {len(tensors)} tensors, {sum(t.numel() for t in tensors.values()):,} numbers")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="file, or address of one")
    parser.add_argument("output", type=Path, help="safetensors file to write")
    parser.add_argument("--sha256", help="of the source, or its first digits")
    parser.add_argument("--isolated", action="store_true", help=argparse.SUPPRESS)  # the process that reads the pickle
    args = parser.parse_args(argv)
    if args.isolated:
        if not without_network():
            print("this system does not let a process give up its network; only tensors are read", file=sys.stderr)
        convert(Path(args.source), args.output)
        return
    with tempfile.TemporaryDirectory() as folder:
        is_address = args.source.startswith(("https://", "http://"))
        source = download(args.source, Path(folder)) if is_address else Path(args.source)
        if not source.is_file():
            raise DataError(f"{source}: there is no such file.")
        check(source, args.sha256)
        words = [sys.executable, __file__, "--isolated", str(source), str(args.output)]
        if code := subprocess.run(words).returncode:
            sys.exit(code)


if __name__ == "__main__":
    command.run(main)
