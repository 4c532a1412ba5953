"""Plugins by name: `formats/nf4.py` is the format `nf4`.

A plugin is imported when it is asked for, so that a job depends only on the plugins it uses, and editing one solver
invalidates nothing of another.
"""

import importlib


def load(kind, name):
    """The module `quantwatt.KIND.NAME` (a dash in the name stands for an underscore in the file's)."""
    return importlib.import_module(f"quantwatt.{kind}.{name.replace('-', '_')}")
