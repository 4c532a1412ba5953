"""Interrupted, disturbed or hostile runs: a clear message, no half-written file, and a clean resume."""

import contextlib
import json
import os
import signal
import subprocess
import time
from contextlib import contextmanager

import fake_cuda
import psutil
import pytest
from conftest import SECRET
from test_mistakes import EXPERIMENT, IMAGES, scratch  # noqa: F401  (a fixture)

IMAGE_SET = f"{IMAGES}/manifest.json"
GENERATE = {"Generate images: tiny-sd3, rtn-w8a8, steps-4"}


@pytest.fixture
def undrawn(scratch):  # noqa: F811
    """A project in which one set of images has to be drawn, which takes a few seconds."""
    scratch.replace(EXPERIMENT, "    steps: 4\n    guidance: 3.0\n    height: 64\n    width: 64\n    batch_size: 16",
                    "    steps: 24\n    guidance: 3.0\n    height: 64\n    width: 64\n    batch_size: 4")  # fmt: skip
    assert scratch.plan("--", IMAGE_SET) == GENERATE
    return scratch


@contextmanager
def drawing(project):
    """Snakemake in a process group of its own, as a terminal gives it, and the script that draws, halted at that."""
    with project.start("--cores", "1", "--", IMAGE_SET, options={"start_new_session": True}) as process:
        try:
            seen = ""  # a bar's line ends when the next is drawn, so letters are read
            while not seen.endswith("generating rtn-w8a8"):
                letter = process.stdout.read(1)
                assert letter, seen
                seen += letter
            script = next(
                child for child in psutil.Process(process.pid).children(recursive=True)
                if "workflow_scripts/generate.py" in child.cmdline()
            )  # fmt: skip
            script.suspend()
            yield process, script
        finally:
            end_of(process.pid)


def end_of(group):
    """Kill what is left of a process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def wait_for_the_end_of(group, seconds=60):
    for _ in range(seconds * 20):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError(f"after {seconds} s a process still runs")


def assert_nothing_is_half_written(project):
    assert not project.path(IMAGE_SET).exists()
    assert not [path for path in project.path("results").rglob(".*") if ".part" in path.name]


def assert_resumes(project):
    assert project.plan("--", IMAGE_SET) == GENERATE
    done = project.snakemake("--cores", "1", "--", IMAGE_SET)
    assert done.returncode == 0, done.stdout
    assert json.loads(project.path(IMAGE_SET).read_text())["n_images"] == 16
    assert project.plan("--", IMAGE_SET) == set()


def test_ctrl_c(undrawn):
    with drawing(undrawn) as (process, script):
        os.killpg(process.pid, signal.SIGINT)
        script.resume()
        output = process.communicate(timeout=120)[0]
    assert process.returncode != 0 and "Traceback" not in output
    assert "Terminating processes on user request" in output
    log = undrawn.path("results/smoke/logs/generate/tiny-sd3/rtn-w8a8/steps-4.log")
    assert log.read_text().endswith("interrupted: run again to go on.\n"), (log.read_text(), output)
    assert "Traceback" not in log.read_text()
    assert_nothing_is_half_written(undrawn)
    assert_resumes(undrawn)


def test_snakemake_is_killed_and_another_runs_at_once(undrawn):
    with drawing(undrawn) as (process, script):
        second = undrawn.snakemake("--cores", "1", "--", IMAGE_SET)
        assert second.returncode != 0 and "Traceback" not in second.stdout
        assert "Directory cannot be locked" in second.stdout and process.poll() is None
        process.kill()
        script.resume()
        process.communicate()
        wait_for_the_end_of(process.pid)  # its job ends, too, and does not write beside the next run's
    assert_nothing_is_half_written(undrawn)
    third = undrawn.snakemake("--cores", "1", "--", IMAGE_SET)
    assert third.returncode != 0 and "can be removed with the --unlock argument" in " ".join(third.stdout.split())
    assert undrawn.snakemake("--unlock").returncode == 0
    assert_resumes(undrawn)


@contextmanager
def mounted(*arguments):
    """A mount, for as long as the block takes; skips where this user may not."""
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs a mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", arguments[-1]], check=True)


def test_a_full_disk(scratch):  # noqa: F811
    folder = scratch.path(IMAGES).parents[1]  # of all the model's images
    scratch.path(IMAGE_SET).unlink()
    with mounted("-t", "tmpfs", "-o", "size=48k", "tmpfs", str(folder)):
        (folder / "another").mkdir()
        done = scratch.snakemake("--cores", "1", "--", IMAGE_SET)
        assert done.returncode != 0 and "Traceback" not in done.stdout
        assert "cannot be written: No space left on device." in done.stdout
        assert not [path for path in folder.rglob("*") if path.is_file()]
    assert_resumes(scratch)


def test_a_read_only_results_folder(scratch):  # noqa: F811
    results = str(scratch.path("results"))
    scratch.path(IMAGE_SET).unlink()
    with mounted("--bind", results, results):
        subprocess.run(["mount", "-o", "remount,ro,bind", results], check=True)
        done = scratch.snakemake("--cores", "1", "--", IMAGE_SET)
        assert done.returncode != 0 and "Traceback" not in done.stdout
        assert "results: 'results' cannot be written" in done.stdout
        assert scratch.plan("--", IMAGE_SET) == GENERATE  # looking is allowed
    assert_resumes(scratch)


HOSTILE = [
    "a red circle; touch escaped", "$(touch escaped) `touch escaped`", '"; touch escaped; "', "'; touch escaped; '",
    "{wildcards.model} {model} {output} {{", "<script>alert(1)</script>", "| touch escaped & \\ %s ${HOME}", "-rf *",
]  # fmt: skip


def test_what_a_shell_or_snakemake_would_read_in_a_prompt_is_inert(scratch):  # noqa: F811
    name = "resources/prompts/a $(touch escaped) 'x'.txt"
    scratch.path(name).write_text("".join(f"{line}\n" for line in HOSTILE * 2))
    negative = json.dumps(HOSTILE[1] + HOSTILE[2] + HOSTILE[3] + HOSTILE[4])
    quoted = json.dumps(name)
    scratch.replace(EXPERIMENT, "    prompts: resources/prompts/shapes-test.txt\n    images: 16",
                    f"    prompts: {quoted}\n    negative_prompt: {negative}\n    images: 16")  # fmt: skip
    scratch.replace(EXPERIMENT, "description: ", f"description: {HOSTILE[5]} {HOSTILE[1]} ")
    assert "Write the report" in scratch.plan()
    done = scratch.snakemake("--cores", "1", "--", IMAGE_SET)
    assert done.returncode == 0, done.stdout
    drawn = json.loads(scratch.path(IMAGE_SET).read_text())["images"]
    assert [image["prompt"] for image in drawn] == HOSTILE * 2
    assert not [path for path in scratch.folder.rglob("escaped*")]


def test_no_output_repeats_a_secret_of_the_environment(finished):
    assert SECRET not in finished.output
    files = [path for top in ("results", ".snakemake") for path in finished.path(top).rglob("*") if path.is_file()]
    assert len(files) > 100 and any(path.suffix == ".log" for path in files)
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


@fake_cuda.needs_gcc
def test_as_many_gpus_as_there_are_are_given_to_jobs(finished, tmp_path, monkeypatch):
    fake_cuda.build(tmp_path)
    fake_cuda.install(monkeypatch, tmp_path, count=2)
    target = f"{tmp_path}/smoke/reference/manifest.json"
    words = (f"results={tmp_path}", "device=cuda", "--cores", "2")
    for options, expected in (((), 2), (("--resources", "gpu=1"), 1)):
        done = finished.snakemake(*words, *options, "--forcerun", "reference", "--", target)
        assert done.returncode == 0 and f'gpu=Resource("gpu", {expected})' in done.stdout, done.stdout
