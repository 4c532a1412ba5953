"""How scripts are run, and how they end."""

import os
import sys
from pathlib import Path

from quantwatt.manifest import DataError


def run(main):
    """Call `main()`; a DataError is printed as one sentence, exit code 1, and any other exception is a bug."""
    try:
        sys.exit(main())
    except DataError as error:
        sys.exit(f"error: {error}")


def use_this_interpreter():
    """Make `python` in a rule the interpreter that runs Snakemake, whether or not its environment was activated.

    With --sdm conda the rule's own environment still goes before it: conda puts an environment in the place on PATH of
    the one that is active, which may be behind this interpreter's, so none may be. Packages of the user's home are left
    out.
    """
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    os.environ.pop("CONDA_SHLVL", None)  # how many are active
    os.environ["PYTHONNOUSERSITE"] = "1"
