"""What rules ask of a scheduler, and the profile for SLURM, without a cluster."""

import os
import re
import subprocess
from pathlib import Path

import preloaded
import pytest
import yaml

from quantwatt.jobs import slurm

ROOT = Path(__file__).parents[2]
TEXTS = [path.read_text() for path in sorted((ROOT / "rules").glob("*.smk"))]
RULES = dict(found for text in TEXTS for found in re.findall(r"^rule (\w+):\n((?:    .*\n|\n)+)", text, flags=re.M))
PROFILE = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())


def plan(*config):
    """The finished dry run of the smoke experiment on a cluster, its output in `stdout`."""
    command = [preloaded.snakemake().python, "-m", "snakemake", "-n", "--workflow-profile", "profiles/slurm"]
    command += ["--config", "experiment=smoke", *config]
    return subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_every_rule_asks_for_memory_and_minutes():
    assert {"fetch", "quantize", "generate", "measure", "score", "tables", "report"} <= RULES.keys()
    asked = r"    resources:\n        (\*\*(model_resources|resources_of)\(|mem_mb=.*,\n        runtime=CONFIG\[)"
    for name, text in RULES.items():
        assert re.search(asked, text), name
    common = (ROOT / "rules/common.smk").read_text()
    assert 'return {"mem_mb": CONFIG["memory_mb"][stage], "runtime": CONFIG["runtime_min"][stage]}' in common
    assert 'return resources_of(stage) | {"mem_mb": megabytes' in common


def test_measuring_has_its_node_alone_and_one_attempt():
    measuring = {name for name, text in RULES.items() if "threads: whole_machine\n" in text}
    assert measuring == {"measure", "layer_costs"}
    assert measuring == {name for name, text in RULES.items() if "retries: 0\n" in text}
    assert measuring == set(PROFILE["set-threads"]) == set(PROFILE["set-resources"])
    assert {resources["slurm_extra"] for resources in PROFILE["set-resources"].values()} == {"'--exclusive'"}


def test_only_what_is_safe_is_tried_again():
    attempts = {name: int(found[1]) for name, text in RULES.items() if (found := re.search(r"retries: (\d)", text))}
    safe = {"fetch", "fetch_weights", "fetch_checkpoint", "generate", "predict"}
    assert {name for name, retries in attempts.items() if retries} == safe
    assert "retries" not in PROFILE


def test_the_profile_plans(tmp_path):
    done = plan("device=cuda", f"results={tmp_path}")
    assert done.returncode == 0 and "Measure tiny-sd3, rtn-w8a8, steps-4" in done.stdout, done.stdout


def test_the_device_of_the_machine_that_submits_is_not_asked():
    done = plan()
    assert done.returncode != 0 and "Traceback" not in done.stdout
    assert "device: auto asks this machine, and jobs run on others; write device=cuda or device=cpu." in done.stdout


@pytest.mark.parametrize("accounting", ["exit 0", "exit 1", None])
def test_states_of_jobs_come_from_squeue_where_there_is_no_accounting(accounting, tmp_path, monkeypatch):
    programs = {"squeue": 'echo "squeue $*"', "sacct": accounting}
    for name, text in programs.items():
        if text:
            (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
            (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    slurm.use_squeue_without_accounting()
    question = ["sacct", "-X", "--format=JobIdRaw,State", "--name", "run 7"]
    asked = subprocess.run(question, capture_output=True, text=True)
    from_squeue = "squeue --noheader --states=all --format=%i|%T --name run 7\n"
    assert asked.stdout == ("" if accounting == "exit 0" else from_squeue) and asked.returncode == 0
    if asked.stdout:  # of nothing else does it know
        assert subprocess.run(["sacct", "-nu", "root", "-o", "Account%256"], capture_output=True).returncode == 1


def test_where_there_is_no_slurm_nothing_is_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    slurm.use_squeue_without_accounting()
    assert os.environ["PATH"] == str(tmp_path)
