"""Run stages within a time budget, each in a process of its own, and go on where an earlier run stopped.

Each stage has a file, OUTPUT/STAGE.json: {"stage", "status", "reason", "seconds", "device", "size", "provenance"} and
what it has found, written as it finds it. The status is "complete"; "skipped", where it cannot run here; "partial",
where time was over; "failed", with the reason; or "running", in the file of a process that was killed. All but complete
stages are run again, and what a stage has found is not measured again.
"""

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.provenance import provenance
from quantwatt.measuring.meters import Metering

MODULES = {  # stage: module of this package
    "machine": "machine", "sensor": "sensor", "tests": "cuda_tests", "pairs": "self_comparison",
    "denoisers": "denoiser_table", "kernels": "kernel_table", "solvers": "solver_table", "experiment": "experiment",
}  # fmt: skip
# (stage, most seconds of a turn) by value. The denoisers get what is left after every other stage has had its turn.
ORDER = (
    ("machine", 60), ("sensor", 75), ("tests", 120), ("pairs", 60), ("denoisers", 360), ("kernels", 120),
    ("solvers", 240), ("denoisers", None), ("solvers", None), ("experiment", None),
)  # fmt: skip
LEAST_S = 20.0  # of a turn
GRACE_S = 15.0  # for which a stage may go on beyond its time before it is ended
PACKAGES = ("torch", "triton", "diffusers", "transformers", "torchao", "bitsandbytes", "gptqmodel", "nvidia-ml-py")


class Record:
    """The file of a stage, and how much time the stage has left."""

    def __init__(
        self, stage: str, output: str | Path, device: str, size: str, meter: str, seconds: float,
        denoisers: Sequence[str] = (), configurations: Sequence[str] = (),
    ):  # fmt: skip
        """Read what an earlier run has found, if it was of the same device and size.

        Args:
            size: "true" or "tiny"; seconds: that the stage has.
            denoisers, configurations: those to measure; empty: all.

        Raises:
            DataError: the file is of another device or size.
        """
        self.path = path_of(output, stage)
        self.device, self.size, self.meter = device, size, meter
        self.denoisers, self.configurations = denoisers, configurations
        self.begin, self.until = time.monotonic(), time.monotonic() + seconds
        self.found = read(output, stage)
        self.spent = self.found.get("seconds", 0.0)
        for key, value in (("device", device), ("size", size)):
            if self.found.get(key, value) != value:
                raise DataError(
                    f"{self.path}: {key}: holds figures of {self.found[key]}, not of {value}; choose another --output."
                )
        found = {key: value for key, value in self.found.items() if key not in ("status", "reason")}
        self.found = {"stage": stage, "status": "running", "reason": None, "device": device, "size": size, **found}
        self.found["provenance"] = provenance(PACKAGES)

    def left(self) -> float:
        """Seconds that are left."""
        return self.until - time.monotonic()

    def keep(self, **entries: Any) -> None:
        """Add entries, and write the file."""
        seconds = self.spent + time.monotonic() - self.begin
        self.found |= {**entries, "seconds": round(seconds, 1)}
        manifest.write_json(self.path, self.found)

    def partial(self, reason: str) -> None:
        """End the stage for this time: something is left for the next run."""
        self.keep(status="partial", reason=reason)

    def scripts_path(self) -> dict[str, str]:
        """The environment variable by which a process that the stage starts finds the project's modules."""
        scripts = str(manifest.PROJECT / "workflow_scripts")
        return {"PYTHONPATH": os.pathsep.join(filter(None, [scripts, os.environ.get("PYTHONPATH")]))}


def metering(meter: str, interval_ms: float | None = None) -> Metering:
    """Settings of a meter; the wattages of an estimate, which is for rehearsals alone, are made up."""
    return Metering(meter, interval_ms, idle_w=5, full_w=20)


def path_of(output: str | Path, stage: str) -> Path:
    return Path(output) / f"{stage}.json"


def read(output: str | Path, stage: str) -> dict[str, Any]:
    """What a stage's file holds; nothing where there is none."""
    path = path_of(output, stage)
    return manifest.read_json(path) if path.exists() else {}


def run_stage(record: Record) -> None:
    """Run one stage in this process; its failures are the caller's, who sees them in the exit code."""
    record.keep()
    importlib.import_module(f"benchmarks.gpu.{MODULES[record.found['stage']]}").run(record)
    if record.found["status"] == "running":
        record.keep(status="complete")


@dataclass(frozen=True)
class Turn:
    """One turn of one stage: its process, and what became of it."""

    command: Sequence[str]
    output: Path
    stage: str
    seconds: float

    def run(self, grace_s: float = GRACE_S) -> str:
        """Run the stage's process to its end, or end it; return the status of its file."""
        process = subprocess.Popen(
            [*self.command, "--stage", self.stage, "--seconds", str(self.seconds)], stderr=subprocess.PIPE, text=True,
            errors="replace", start_new_session=True,
        )  # fmt: skip
        try:
            _, said = process.communicate(timeout=self.seconds + grace_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 15)
            try:
                _, said = process.communicate(timeout=5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                _, said = process.communicate()
            self._end("partial", f"it was ended {grace_s:g} s after its {self.seconds:.0f} s were over")
        except BaseException:
            os.killpg(process.pid, 15)
            raise
        else:
            if process.returncode:
                self._end("failed", last_line(said) or f"exit code {process.returncode}")
        print(said[-2000:] if process.returncode else "", file=sys.stderr, end="")
        return read(self.output, self.stage).get("status", "failed")

    def _end(self, status, reason):
        found = {"stage": self.stage, **read(self.output, self.stage), "status": status, "reason": reason}
        manifest.write_json(path_of(self.output, self.stage), found)


def last_line(said: str) -> str:
    """The last line that a program has said: of a Python program, its error."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""


def run_all(
    stages: Sequence[str], output: Path, minutes: float, command: Sequence[str], least_s: float = LEAST_S
) -> dict[str, str]:
    """Run stages by value while there is time; {stage: its status}.

    Args:
        command: this script with its options, to which a stage's name and seconds are added.
    """
    failed: set[str] = set()
    until, reserve = time.monotonic() + 60 * minutes, min(GRACE_S, 6 * minutes)
    for stage, most_s in ORDER:
        status, left = read(output, stage).get("status"), until - reserve - time.monotonic()
        if stage not in stages or stage in failed or status == "complete" or left < least_s:
            continue
        seconds = left if most_s is None else min(left, most_s)
        print(f"{stage}: {seconds:.0f} s", flush=True)
        status = Turn(command, output, stage, seconds).run(reserve)
        if status in ("failed", "skipped"):
            failed.add(stage)
        reason = read(output, stage).get("reason")
        print(f"{stage}: {status}" + (f": {reason}" if reason else ""), flush=True)
    return {stage: read(output, stage).get("status", "not begun") for stage in stages}
