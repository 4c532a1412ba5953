"""quantwatt: what quantizing a generative model costs in quality, and really saves in time, memory and energy."""

import importlib

__version__ = "0.1.0"

# What a notebook uses. Loaded on first use: a script that reads a JSON file should not import torch, nor should it
# count as depending on the modules behind these names.
_PUBLIC = {
    "load_pipeline": "quantwatt.checkpoint",
    "measure": "quantwatt.measurement",
    "open_meter": "quantwatt.meters",
}


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'quantwatt' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
