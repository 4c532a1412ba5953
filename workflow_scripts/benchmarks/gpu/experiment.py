"""An experiment of the workflow on the device, end to end: the embedded model, measured by its meter.

Snakemake goes on where it stopped, as long as `results/` is still there.
"""

import importlib.util
import re
import subprocess
import sys

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import PROJECT

NAME = {"true": "embedded", "tiny": "smoke"}
STEPS = re.compile(r"(\d+) of (\d+) steps")
SHOWN = 3000  # characters of what Snakemake said last


def run(record) -> None:
    """The stage: what Snakemake made, and the rows of the table of results."""
    if importlib.util.find_spec("snakemake") is None:
        record.keep(status="skipped", reason="snakemake is not installed")
        return
    name = NAME[record.size]
    summary = PROJECT / f"results/{name}/tables/summary.csv"
    command = [sys.executable, "-m", "snakemake", "--cores", "all", "--config", f"experiment={name}",
               f"device={record.device}"]  # fmt: skip
    with subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        try:
            said, _ = process.communicate(timeout=max(record.left() - 10, 1))
        except subprocess.TimeoutExpired:
            process.terminate()  # it ends its jobs, too
            said, _ = process.communicate()
            record.keep(experiment=name, steps=steps(said), said=said[-SHOWN:])
            record.partial("the time was over within the experiment")
            return
    record.keep(experiment=name, steps=steps(said), said=said[-SHOWN:])
    if process.returncode:
        raise DataError(f"snakemake ended with {process.returncode}; the stage's file has what it said last.")
    record.keep(summary_csv=summary.read_text())
    bundle = [sys.executable, str(PROJECT / "workflow_scripts/tools/bundle.py"), "--results", str(summary.parents[1]),
              "--output", str(record.path.with_name(f"{name}.zip"))]  # fmt: skip
    subprocess.run(bundle, cwd=PROJECT, check=True)


def steps(said: str) -> list[int] | None:
    """[jobs done, all jobs], as Snakemake said last."""
    found = STEPS.findall(said)
    return [int(number) for number in found[-1]] if found else None
