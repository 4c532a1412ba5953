"""Mistakes of newcomers and broken files: one clear sentence, a non-zero exit code, no half-written file."""

import json
import resource
import shutil
import subprocess
import sys

import pytest
from conftest import CORES
from test_invalidation import SUMMARY, cell

EXPERIMENT = "resources/experiments/smoke.yaml"
WEIGHTS = "results/smoke/checkpoints/tiny-sd3/rtn-w8a8/weights.safetensors"
IMAGES = "results/smoke/images/tiny-sd3/rtn-w8a8/steps-4"
FEATURES = "results/smoke/features/tiny-sd3/rtn-w8a8/steps-4/judge.json"


@pytest.fixture
def scratch(finished, tmp_path):
    """A copy of the finished project whose results may be broken."""
    return finished.copy(tmp_path / "copy")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("bits: 3,", "bitz: 3,", f"{EXPERIMENT}: methods.gptq-w3.weights: unknown key 'bitz'; did you mean 'bits'."),
        ("    images: 16\n", "    images: 1000000000\n    cycle: true\n", "1,000,000,000 images in parts of 2,500"),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_refused_before_any_job(project, old, new, sentence):
    project.replace(EXPERIMENT, old, new)
    done = project.snakemake("--cores", "1")
    assert done.returncode != 0
    assert sentence in done.stdout.splitlines()[-1]  # alone, without lines of rules/common.smk
    assert "Traceback" not in done.stdout and "common.smk" not in done.stdout and "Building DAG" not in done.stdout


def test_no_cores_are_refused_at_once(project):
    done = project.snakemake("--cores", "0")
    assert done.returncode == 1 and done.stdout.splitlines()[-1].startswith("--cores 0 leaves no core for any job")


def test_an_unknown_experiment_names_the_nearest(project):
    done = project.snakemake("-n", experiment="smoek")
    assert done.returncode != 0 and "Traceback" not in done.stdout
    assert "--config: experiment: there is no 'smoek' in resources/experiments; did you mean 'smoke'." in done.stdout


def test_a_target_that_does_not_exist_names_the_nearest(project):
    """Those of other kinds: tests/unit/test_command_line.py."""
    sentence = f"{EXPERIMENT}: there is no method 'gptq-w3b16'; did you mean 'gptq-w3'."
    done = project.snakemake("-n", "results/smoke/scores/tiny-sd3/gptq-w3b16/steps-4/fid.json")
    assert done.returncode != 0 and sentence in done.stdout and "Traceback" not in done.stdout


def test_a_flipped_byte_in_a_checkpoint(scratch):
    content = bytearray(scratch.path(WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 1
    scratch.path(WEIGHTS).write_bytes(content)
    target = f"{IMAGES}/manifest.json"
    done = scratch.snakemake("--cores", "1", "--forcerun", "generate", "--", target)
    assert done.returncode != 0
    assert "weights.safetensors: its sha256 differs from the manifest (corrupted?); delete" in done.stdout
    assert "Traceback" not in done.stdout and not scratch.path(target).exists()
    # What the sentence advises, makes it good again.
    scratch.path(WEIGHTS).with_name("manifest.json").unlink()
    done = scratch.snakemake("--cores", "1", "--", target)
    assert done.returncode == 0 and scratch.path(target).exists(), done.stdout


def test_a_truncated_image(scratch):
    image = scratch.path(f"{IMAGES}/shard-000/00003.png")
    image.write_bytes(image.read_bytes()[:-20])
    done = scratch.snakemake("--cores", "1", "--forcerun", "features", "--", FEATURES)
    assert done.returncode != 0 and "Traceback" not in done.stdout
    assert "00003.png: " in done.stdout and "(truncated?); delete" in done.stdout
    assert not scratch.path(FEATURES).exists()


def limited(size):
    """A limit on the size of written files, which fails like a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_while_a_checkpoint_is_written(scratch):
    folder = scratch.path("results/smoke")
    output = folder / "checkpoints/full/manifest.json"
    entry = json.dumps(json.loads((folder / "checkpoints/tiny-sd3/rtn-w8a8/manifest.json").read_text())["settings"])
    allocation = scratch.snakemake("--cores", "1", "results/smoke/allocation/tiny-sd3/rtn-w8a8.json")
    assert allocation.returncode == 0
    command = [
        sys.executable, "workflow_scripts/quantize.py", "--model", folder / "models/tiny-sd3/manifest.json",
        "--allocation", folder / "allocation/tiny-sd3/rtn-w8a8.json", "--method-name", "full", "--method", entry,
        "--output", output,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=scratch.folder, preexec_fn=limited(1_000_000), stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "weights.safetensors: cannot be written" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not output.exists() and list(output.parent.iterdir()) == []


def test_an_interrupted_run_resumes(scratch):
    """A run that ended while one cell's images were written makes those again, and what follows, and no more."""
    results = scratch.path("results/smoke")
    for name in ("features", "scores", "measurements"):
        shutil.rmtree(results / name / "tiny-sd3/rtn-w8a8")
    for name in ("tables", "figures"):
        shutil.rmtree(results / name)
    (results / "report.html").unlink()
    scratch.path(f"{IMAGES}/manifest.json").unlink()
    for image in sorted(scratch.path(f"{IMAGES}/shard-000").iterdir())[8:]:
        image.unlink()
    assert scratch.plan() == cell("rtn-w8a8") | SUMMARY
    done = scratch.snakemake("--cores", CORES)
    assert done.returncode == 0, done.stdout
    assert len(list(scratch.path(f"{IMAGES}/shard-000").iterdir())) == 16
    assert scratch.plan() == set()
