"""Declare the torchvision operators that a CUDA build of torchvision lacks next to a CPU build of torch.

torchvision registers fake kernels for `nms` and `qnms` when it is imported and fails if their schemas do not
exist, which is the case when its compiled operators cannot load. open_clip, clean-fid, diffusers and
transformers import torchvision without using either operator, so the schemas are enough. Import this module
before any of them. Where the operators load, nothing is declared.
"""

import contextlib
from pathlib import Path

import torch

from quantwatt.jobs import library_messages  # noqa: F401  (before all of these)

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_libraries: list[torch.library.Library] = []  # a library's definitions live as long as the object


def _compiled_operators() -> Path | None:
    """The file of torchvision's compiled operators, without importing torchvision."""
    from importlib.util import find_spec

    spec = find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return None
    paths = sorted(Path(spec.submodule_search_locations[0]).glob("_C.*"))
    return paths[0] if paths else None


def declare_missing() -> list[str]:
    """Declare the schemas that torchvision's compiled library does not define; returns their names."""
    compiled = _compiled_operators()
    if compiled is not None:
        with contextlib.suppress(OSError):  # built for another torch: the case that this module handles
            torch.ops.load_library(str(compiled))
    missing = [name for name in _SCHEMAS if not hasattr(torch.ops.torchvision, name)]
    if missing:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in missing:
            library.define(_SCHEMAS[name])
        _libraries.append(library)
    return missing


DECLARED = declare_missing()
