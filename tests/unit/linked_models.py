"""Copies of models for tests that change one file: all other files are links."""

import json
import os
import shutil
from pathlib import Path


def linked(source, folder):
    """A folder of links to all files of a model; returns it."""
    for parent, _, names in os.walk(source):
        there = folder / os.path.relpath(parent, source)
        there.mkdir(parents=True, exist_ok=True)
        for name in names:
            (there / name).symlink_to(Path(parent) / name)
    return folder


def own(path):
    """A file in place of a link to it; returns its path."""
    target = path.resolve()
    path.unlink()
    shutil.copyfile(target, path)
    return path


def edit_json(path, **changes):
    """Change entries of a linked JSON file; None removes one."""
    value = json.loads(path.read_text()) | changes
    path.unlink()
    path.write_text(json.dumps({name: entry for name, entry in value.items() if entry is not None}))


def edit_tensors(path, change):
    """Write a linked safetensors file anew with what `change` makes of its {name: tensor}."""
    from safetensors.torch import load_file, save_file

    tensors = change(load_file(path))
    path.unlink()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
