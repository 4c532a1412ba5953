"""What benchmarks leave behind: rows as JSON, the machine that they come from, and a figure beside them."""

import contextlib
from pathlib import Path

from quantwatt import manifest


def write(output, rows, packages, machine=None):
    """Write OUTPUT.json with the rows, and OUTPUT.machine.json with where they come from.

    Args:
        output: path of the JSON file.
        packages: names of those whose versions matter.
        machine: further entries of the second file.
    """
    manifest.write_json(output, rows)
    described = {**manifest.provenance(packages), **(machine or {})}
    manifest.write_json(Path(output).with_suffix(".machine.json"), described)


@contextlib.contextmanager
def figure(output, size):
    """A matplotlib figure to be drawn on, which is written beside OUTPUT.json as a PNG.

    Args:
        size: (width, height), inches.
    """
    import matplotlib  # not every environment that a benchmark's workers run in has it
    from matplotlib.figure import Figure

    from quantwatt.figures import DPI, STYLE

    with matplotlib.rc_context(STYLE), manifest.atomic_path(Path(output).with_suffix(".png")) as temporary:
        drawn = Figure(figsize=size, layout="constrained")
        yield drawn
        drawn.savefig(temporary, dpi=DPI, metadata={"Software": None})
