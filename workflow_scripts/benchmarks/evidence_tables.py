"""Fill the tables of docs/evidence.md from the measurements that lie in resources/measurements.

`--add RESULTS` first copies the tables of a finished experiment there: results/embedded-formats or
results/embedded-schedule.
"""

import argparse
import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where quantwatt is

import pandas as pd

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import PROJECT, atomic_path
from quantwatt.jobs import command
from quantwatt.report import markdown, tables
from quantwatt.report.page.numbers import DASH, missing, with_bounds

PAGE = PROJECT / "docs" / "evidence.md"
HOME = PROJECT / "resources" / "measurements"
KEPT = {  # {experiment: {table of its results: file here}}
    "embedded-formats": {"formats": "embedded-formats.csv", "changes": "embedded-formats-changes.csv"},
    "embedded-schedule": {"summary": "embedded-schedule.csv"},
}
BLOCK = re.compile(r"(<!-- table: ([\w.-]+) -->\n).*?(<!-- end of table -->\n)", re.DOTALL)
WEIGHTS_ALONE = 32
QUESTIONS = [  # (what is asked, activation bits, part, before, after)
    ("NVFP4 instead of MXFP4, weights alone", WEIGHTS_ALONE, "format", "mxfp4", "nvfp4"),
    ("NVFP4 instead of MXFP4, inputs, too", 4, "format", "mxfp4 / mxfp4", "nvfp4 / nvfp4"),
    ("a rotation, weights alone", WEIGHTS_ALONE, "transforms", None, "hadamard"),
    ("a rotation, inputs of 4 bits", 4, "transforms", None, "hadamard"),
    ("GPTQ instead of rounding, weights alone", WEIGHTS_ALONE, "solver", "rtn", "gptq"),
    ("GPTQ instead of rounding, inputs of 4 bits", 4, "solver", "rtn", "gptq"),
    ("Qronos instead of GPTQ, weights alone", WEIGHTS_ALONE, "solver", "gptq", "qronos"),
]


def best_formats(formats: pd.DataFrame, bits: float, activation_bits: int) -> list[str]:
    """Every method that is the best at its size or not told apart from it, the best first."""
    of_size = formats[(formats["bits"] == bits) & (formats["activation_bits"] == activation_bits)]
    rows = of_size[of_size["verdict"].isin(["best", "not told apart"])].sort_values("rank")
    worse = len(of_size) - len(rows)
    heads = ["format", "solver", "rotation", "PSNR, dB", "against the best"]
    cells = [
        [row.format, row.solver, "yes" if isinstance(row.transforms, str) else "no",
         with_bounds(row.value, row.value_low, row.value_high), row.verdict]
        for row in rows.itertuples()
    ]  # fmt: skip
    return [*markdown.table(heads, cells), "", f"The other {worse} of {len(of_size)} methods are worse."]


def answers(changes: pd.DataFrame) -> list[str]:
    """What one change does, over all pairs of methods that differ in nothing else."""
    rows = []
    for asked, bits, part, before, after in QUESTIONS:
        chosen = changes[(changes["activation_bits"] == bits) & (changes["part"] == part) & (changes["after"] == after)]
        chosen = chosen[chosen["before"].isna() if before is None else chosen["before"] == before]
        [row] = chosen.itertuples()
        change = with_bounds(row.difference, row.difference_low, row.difference_high, signed=True)
        rows.append([asked, change, row.verdict, f"{row.better} better, {row.worse} worse of {row.pairs}"])
    return markdown.table(["change", "PSNR, dB", "all together", "method by method"], rows)


def costs(summary: pd.DataFrame) -> list[str]:
    """Quality and energy of every method, by energy."""
    rows = summary.sort_values("energy_ratio")
    return markdown.table(
        ["method", "energy, ratio", "time, ratio", "PSNR, dB", "SSIM"],
        [[row["method"], *(_cell(row, key) for key in ("energy_ratio", "latency_ratio", "psnr_db", "ssim"))]
         for row in rows.to_dict("records") if not row["baseline"]],
    )  # fmt: skip


def _cell(row, key):
    if missing(row[key]):
        return DASH if row["status"] == "ok" else row["status"]
    return with_bounds(row[key], row[f"{key}_low"], row[f"{key}_high"])


def blocks(home: Path = HOME) -> dict[str, list[str]]:
    """{name of a table: its lines}."""
    formats, changes = (tables.read_table(home / name) for name in KEPT["embedded-formats"].values())
    return {
        **{
            f"formats-{bits:g}-{name}": best_formats(formats, bits, activations)
            for bits in (4.25, 4.5)
            for name, activations in (("weights", WEIGHTS_ALONE), ("inputs", 4))
        },
        "formats-answers": answers(changes),
        "schedule": costs(tables.read_table(home / KEPT["embedded-schedule"]["summary"])),
    }


def filled(page: str, made: dict[str, list[str]]) -> str:
    """The page with its tables made anew.

    Raises:
        DataError: the page names a table that there is not.
    """
    if unknown := {name for _, name, _ in BLOCK.findall(page)} - made.keys():
        raise DataError(f"{PAGE}: there is no table {min(unknown)}; there are {', '.join(made)}.")
    return BLOCK.sub(lambda found: found[1] + "\n".join(made[found[2]]) + "\n" + found[3], page)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--add", type=Path, action="append", default=[], metavar="RESULTS")
    for results in parser.parse_args(argv).add:
        if results.name not in KEPT:
            raise DataError(f"{results}: its tables are not kept; those of {', '.join(KEPT)} are.")
        for table, name in KEPT[results.name].items():
            shutil.copyfile(results / "tables" / f"{table}.csv", HOME / name)
    with atomic_path(PAGE) as temporary:
        temporary.write_text(filled(PAGE.read_text(), blocks()))


if __name__ == "__main__":
    command.run(main)
