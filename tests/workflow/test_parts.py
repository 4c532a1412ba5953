"""Image sets in parts by several jobs, through Snakemake: only lost or added parts are generated."""

import json
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import copy_of_the_tree

from quantwatt.config import yaml_files
from tools import plan

EXPERIMENT = "resources/experiments/smoke.yaml"
FOLDER = "results/smoke/images/tiny-sd3/float32/steps-4"
CELL = "tiny-sd3, float32, steps-4"
GATHER = f"Gather images: {CELL}"


@pytest.fixture(scope="module")
def parts(finished, tmp_path_factory):
    """The finished project, in which one method's set was made anew: of 40 images, by jobs of 16."""
    project = finished.copy(tmp_path_factory.mktemp("parts") / "copy")
    with project.path("tests/workflow/quick.yaml").open("a") as file:
        file.write("images_per_job: 10\n")  # a batch is 16
    project.replace(EXPERIMENT, "images: 16\n", "images: 40\n")
    project.commit()
    limit = ("--max-jobs-per-timespan", "100/1m")  # of a scheduler: jobs of this machine start as fast as they can
    done = project.snakemake("--cores", "1", *limit, "--", f"{FOLDER}/manifest.json")
    assert done.returncode == 0, done.stdout
    assert time.time() - project.path(f"{FOLDER}/manifest.json").stat().st_mtime < 40  # it ends with its last job
    project.output = done.stdout
    return project


def part(first):
    return f"Generate images from {first}: {CELL}"


def manifest(project):
    return json.loads(project.path(f"{FOLDER}/manifest.json").read_text())


def test_parts_make_the_images_that_one_job_makes(parts, finished):
    for first in ("00000", "00016", "00032"):
        assert part(first) in parts.output
    assert GATHER in parts.output and f"Generate images: {CELL}" not in parts.output
    one, several = manifest(finished)["images"], manifest(parts)["images"]
    assert len(several) == 40 and several[:16] == one
    for image in one:
        assert (
            parts.path(f"{FOLDER}/{image['file']}").read_bytes()
            == finished.path(f"{FOLDER}/{image['file']}").read_bytes()
        )
    assert parts.plan("--", f"{FOLDER}/manifest.json") == set()


def test_a_lost_part_alone_is_made_again(parts):
    before = manifest(parts)
    parts.path(f"{FOLDER}/part-00016.json").unlink()
    parts.path(f"{FOLDER}/manifest.json").unlink()
    parts.path(f"{FOLDER}/shard-000/00020.png").unlink()
    assert parts.plan("--", f"{FOLDER}/manifest.json") == {part("00016"), GATHER}
    done = parts.snakemake("--cores", "1", "--", f"{FOLDER}/manifest.json")
    assert done.returncode == 0, done.stdout
    assert manifest(parts)["images"] == before["images"]


def test_a_set_that_grows_keeps_its_full_parts(parts):
    parts.replace(EXPERIMENT, "images: 40\n", "images: 56\n")
    try:
        assert parts.plan("--", f"{FOLDER}/manifest.json") == {part("00032"), part("00048"), GATHER}
    finally:
        parts.restore()


def test_a_part_that_does_not_exist_is_a_sentence(parts):
    done = parts.snakemake("-n", "--", f"{FOLDER}/part-00010.json")
    assert done.returncode != 0 and "steps-4: no part begins at 00010; parts are part-00000.json, " in done.stdout


MODELS, METHODS, SAMPLINGS, IMAGES = 5, 40, 4, 50_000


def grid():
    """An experiment of MODELS x METHODS x SAMPLINGS cells, in the form of the smoke experiment."""
    smoke = yaml_files.read_yaml(Path(plan.ROOT) / EXPERIMENT, EXPERIMENT)
    sampling, model = smoke["samplings"]["steps-4"], smoke["models"]["tiny-sd3"]
    formats = [
        {"format": "integer", "bits": bits, "granularity": "group", "group_size": size}
        for bits in (2, 3, 4, 8) for size in range(8, 8 * (METHODS // 4) + 1, 8)
    ]  # fmt: skip
    methods = {f"gptq-{i}": {"solver": {"name": "gptq"}, "weights": formats[i]} for i in range(METHODS - 1)}
    samplings = {
        f"steps-{n}": sampling | {"steps": n, "images": IMAGES, "cycle": True} for n in range(SAMPLINGS + 1)[1:]
    }
    grown = {"models": {f"model-{i}": model for i in range(MODELS)}, "methods": {"float32": None, **methods}}
    return smoke | grown | {"samplings": samplings, "study": None}


@pytest.mark.slow
def test_a_large_grid_is_planned_in_a_minute(tmp_path):
    """800 cells of 50,000 images, in seconds of the processor; the bound is generous, as machines of tests are slow."""
    project = copy_of_the_tree(tmp_path)
    project.path("resources/experiments/grid.yaml").write_text(yaml.safe_dump(grid()))
    command = [sys.executable, "workflow_scripts/tools/plan.py", "--experiment", "grid"]
    command += ["--config", "device=cpu"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    printed = subprocess.run(command, cwd=project.folder, check=True, capture_output=True, text=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    jobs = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+) ", printed, flags=re.MULTILINE)}
    cells = MODELS * METHODS * SAMPLINGS  # 2,500 images a job, in batches of 16
    assert jobs["generate_part"] == cells * -(-IMAGES // 2512) and "generate" not in jobs
    assert jobs["gather_images"] == jobs["measure"] == cells and jobs["score"] == 5 * cells
    assert jobs["quantize"] == MODELS * METHODS and jobs["reference_features"] == 1
    assert f"\n{sum(jobs.values())} jobs. How many hours without a GPU they take is not known" in printed
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 120
