"""quantwatt: what quantizing a generative model costs in quality, and really saves in time, memory and energy."""

import importlib
import sys
from pathlib import Path

__version__ = "0.1.0"

# What a notebook uses. Loaded on first use: a script that reads a JSON file should not import torch, nor should it
# count as depending on the modules behind these names.
_PUBLIC = {
    "load_pipeline": "quantwatt.inference.checkpoint",
    "measure": "quantwatt.measuring.callables",
    "open_meter": "quantwatt.measuring.meters",
}


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'quantwatt' has no attribute '{name}'")
    if not (_SCRIPTS.parent / "resources" / "schemas").is_dir():
        raise ImportError("quantwatt reads its project's resources/: install it by pip install --editable FOLDER")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def _name_the_interpreter(kind, error, traceback):
    """Say which Python runs a script, where the system's was taken, which has none of the packages."""
    if issubclass(kind, ModuleNotFoundError):
        print(f"error: {sys.executable} has no '{error.name}'; run .venv/bin/python (make install)", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


_SCRIPTS = Path(__file__).resolve().parents[1]
_OF_THE_SYSTEM = sys.prefix == sys.base_prefix and not Path(sys.prefix, "conda-meta").exists()
if _OF_THE_SYSTEM and _SCRIPTS in Path("".join(sys.argv[:1])).resolve().parents:  # a script, no notebook
    sys.excepthook = _name_the_interpreter
