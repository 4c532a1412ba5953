"""Detect results of which Snakemake has no record, as after a copy to another machine.

Snakemake then compares only dates: it keeps outputs that are newer than their inputs, whatever their settings were, and
reruns the rest. Its --touch would record the current settings for all of these results.
"""

from base64 import urlsafe_b64encode
from pathlib import Path

from quantwatt.artifacts import layout

RECORDS = Path(".snakemake/metadata")  # relative to the folder that Snakemake runs in, like its outputs


def warning(results: str | Path, touches: bool = False) -> str | None:
    """A warning about results without records; None if there are no results, or if some of them have records.

    Args:
        results: the experiment's folder, as in the rules' paths.
        touches: whether Snakemake runs with --touch.
    """
    every = {"model": "*", "method": "*"}
    made = [path for file in ("model", "checkpoint") for path in Path(results).glob(layout.FILES[file].format(**every))]
    if not made or any(_record(path).exists() for path in made):
        return None
    if touches:
        return (
            f"{results}: Snakemake has no record of these results; --touch takes them for this experiment's, whatever "
            "settings and code they were made with."
        )
    return (
        f"{results}: Snakemake has no record of how these results were made, and goes by dates alone: settings may be "
        f"others than this experiment's. Copy {RECORDS} of where they were made to here, too, or name another folder."
    )


def _record(path):
    """The file in which Snakemake records how an output was made; its name is split where it exceeds a file name."""
    name, most = urlsafe_b64encode(str(path).encode()).decode(), 254
    pieces = [name[first : first + most] for first in range(0, len(name), most)]
    return RECORDS.joinpath(*(f"@{piece}" for piece in pieces[:-1]), pieces[-1])
