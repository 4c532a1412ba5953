"""Code of the user's own: a function `module:function` that quantizes or replaces parts of the model's pipeline.

It is called as function(pipeline, device), with the family's unquantized pipeline on the CPU, and returns the pipeline
to draw with: the same one, changed, or another of the same class. It runs where the checkpoint's `env` says, or in the
environment of the job. The module is looked for below `path` alone, which is a folder of this machine.
"""

import importlib
import sys
from typing import Any

from quantwatt.artifacts.errors import DataError, Unsupported
from quantwatt.inference.loaders import Source

FILES = ("*.py",)


def load(source: Source, pipeline: Any, device: str) -> Any:
    """See quantwatt.inference.loaders.

    Raises:
        DataError: there is no such function, or it returns no pipeline.
        Unsupported: a package that it needs is not installed.
    """
    module_name, _, name = source.settings["function"].partition(":")
    where = f"checkpoint.function: {source.settings['function']}"
    folder = str(source.folder.resolve())
    if not (source.folder / f"{module_name.replace('.', '/')}.py").is_file():
        raise DataError(f"{where}: {source.folder} holds no {module_name.replace('.', '/')}.py.")
    sys.path.insert(0, folder)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # the folder's content is an input of jobs
    try:
        function = getattr(importlib.import_module(module_name), name, None)
    except ImportError as error:
        raise Unsupported(
            f"{where}: {error}; install it, or name an environment that has it as checkpoint.env."
        ) from error
    finally:
        sys.path.remove(folder)
        sys.dont_write_bytecode = writes
    if not callable(function):
        raise DataError(f"{where}: {module_name} has no function {name}.")
    built = function(pipeline, device)
    if not callable(getattr(built, "to", None)):
        raise DataError(f"{where}: returned {type(built).__name__}, and not a pipeline.")
    for key, value in vars(pipeline).items():  # what the family has noted on its own pipeline
        if not hasattr(built, key):
            setattr(built, key, value)
    return built
