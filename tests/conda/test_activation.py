"""A rule's environment goes before all others, whatever is active where Snakemake is started."""

import os
import subprocess
from pathlib import Path

import pytest

from quantwatt.jobs import command

HERE = Path(__file__).parent


@pytest.mark.parametrize("active", [True, False])
def test_the_environment_of_a_rule_goes_first(active, tmp_path, monkeypatch):
    for name in ("conda", "rule"):
        python = tmp_path / name / "bin/python"
        python.parent.mkdir(parents=True)
        python.write_text(f"#!/bin/sh\necho {name}\n")
        python.chmod(0o755)
    monkeypatch.delenv("CONDA_SHLVL", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}/conda/bin:{os.environ['PATH']}")
    if active:  # as conda's base environment is in every new shell, once `conda init` has been run
        monkeypatch.setenv("CONDA_SHLVL", "1")
        monkeypatch.setenv("CONDA_PREFIX", f"{tmp_path}/conda")
    command.use_this_interpreter()
    job = ["bash", "-c", f"source {HERE}/activate '{tmp_path}/rule'; python"]
    assert subprocess.run(job, check=True, capture_output=True, text=True).stdout == "rule\n"
