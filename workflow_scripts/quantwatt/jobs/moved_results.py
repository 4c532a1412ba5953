"""Results that lie in a place where Snakemake has no record of them, as after a copy to another machine.

Snakemake then goes by dates alone: it keeps what is newer than its inputs, whatever settings that was made with, and
makes the rest anew. Its --touch would record the settings of now beside all of it.
"""

from base64 import urlsafe_b64encode
from pathlib import Path

from quantwatt.artifacts import layout

RECORDS = Path(".snakemake/metadata")  # relative to the folder that Snakemake runs in, as its outputs are


def warning(results, touches=False):
    """A sentence on results without records, or None where there are no results, or some have their records.

    Args:
        results: the experiment's folder, as rules name it.
        touches: whether Snakemake was told to --touch.
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
    """The file in which Snakemake records how an output was made: its name, in pieces that a file name may have."""
    name, most = urlsafe_b64encode(str(path).encode()).decode(), 254
    pieces = [name[first : first + most] for first in range(0, len(name), most)]
    return RECORDS.joinpath(*(f"@{piece}" for piece in pieces[:-1]), pieces[-1])
