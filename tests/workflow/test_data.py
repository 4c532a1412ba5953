"""Public data is downloaded once, and files that already exist are not touched, whoever put them there."""

import io
import os
import re

import fetched_from
import numpy as np
import pytest
from conftest import ROOT, copy_of_the_tree
from PIL import Image

from quantwatt.data import datasets

LONG_AGO = 1_000_000_000
REFERENCE = "results/sd35-medium-gptq/reference/manifest.json"
SST2 = fetched_from.archive(fetched_from.SST2)


def photographs(seed):
    """An archive of two pictures, as val2017.zip has 5,000."""
    found = {}
    for number, pixels in enumerate(np.random.default_rng(seed).integers(0, 256, (2, 40, 60, 3), np.uint8)):
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "JPEG")
        found[f"val2017/{number:012d}.jpg"] = content.getvalue()
    return fetched_from.archive(found)


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A fresh copy of the project without data, whose addresses and hashes are those of a server on this machine."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    files = {"sst2/SST-2.zip": SST2, "coco-2017/val2017.zip": photographs(0)}
    project = copy_of_the_tree(tmp_path / "project")
    with fetched_from.Server({f"/{name}": content for name, content in files.items()}) as server:
        path = project.path("workflow_scripts/quantwatt/data/datasets.py")
        text = path.read_text().replace('_sst2("dev", 872)', '_sst2("dev", 2)')
        for name, content in files.items():
            archive = datasets.ARCHIVES[name]
            text = text.replace(archive.sha256, fetched_from.sha256(content))
        text = text.replace(
            '"https://dl.fbaipublicfiles.com/glue/data/SST-2.zip"', f'"{server.address}/sst2/SST-2.zip"'
        )
        text = re.sub(r"_COCO = .*", f'_COCO = ("{server.address}/coco-2017",)', text)
        path.write_text(text.replace("{place}/zips/val2017.zip", "{place}/val2017.zip"))
        project.commit()
        project.server = server
        yield project


def of_data(jobs):
    return {job for job in jobs if job.startswith(("Fetch ", "Make data/"))}


def put(project, name, content):
    """A file that a user brought long ago."""
    path = project.path(f"data/{name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def test_what_is_missing_is_fetched_once(bare):
    fetch, dev, train = "Fetch data/sst2/SST-2.zip", "Make data/sst2/dev.tsv", "Make data/sst2/train.tsv"
    assert of_data(bare.plan(experiment="distilbert-energy")) == {fetch, dev, train}
    done = bare.snakemake("--cores", "1", "--", "data/sst2/dev.tsv", experiment="distilbert-energy")
    assert done.returncode == 0, done.stdout
    assert bare.path("data/sst2/dev.tsv").read_text() == fetched_from.SST2["SST-2/dev.tsv"]
    assert bare.server.asked == ["/sst2/SST-2.zip"]
    with bare.path("workflow_scripts/fetch.py").open("a") as file:
        file.write("CHANGED = True\n")
    for arguments in ((), ("--forceall",)):
        assert of_data(bare.plan(*arguments, experiment="distilbert-energy")) == {train}


def test_a_users_file_is_neither_fetched_nor_changed(bare):
    mine = put(bare, "sst2/dev.tsv", b"sentence\tlabel\nmine\t1\n")
    assert "Make data/sst2/dev.tsv" not in bare.plan("--forceall", experiment="distilbert-energy")
    images = put(bare, "coco-2017/val2017.zip", photographs(1))
    done = bare.snakemake("--cores", "1", "--forceall", "--", REFERENCE, experiment="sd35-medium-gptq")
    assert done.returncode == 0 and bare.path(REFERENCE).exists(), done.stdout
    assert images.read_bytes() == photographs(1) and bare.server.asked == []
    assert mine.stat().st_mtime == images.stat().st_mtime == LONG_AGO


def test_real_images_are_made_anew_when_their_archive_changes_and_not_after_they_were_fetched(bare):
    done = bare.snakemake("--cores", "1", "--", REFERENCE, experiment="sd35-medium-gptq")
    assert done.returncode == 0 and bare.server.asked == ["/coco-2017/val2017.zip"], done.stdout
    assert bare.plan(REFERENCE, experiment="sd35-medium-gptq") == set()
    bare.path("data/coco-2017/val2017.zip").write_bytes(photographs(1))
    assert bare.plan(REFERENCE, experiment="sd35-medium-gptq") == {"Make the reference images"}


def test_a_publisher_that_is_gone(bare):
    bare.server.files.clear()
    done = bare.snakemake("--cores", "1", "--", "data/sst2/dev.tsv", experiment="distilbert-energy")
    assert done.returncode != 0 and "Traceback" not in done.stdout
    assert "error: data/sst2/SST-2.zip: cannot be fetched from http://127.0.0.1" in done.stdout
    assert "put it there." in done.stdout and not bare.path("data/sst2/SST-2.zip").exists()


def test_imagenet_is_asked_for(bare):
    bare.replace(
        "resources/experiments/smoke.yaml",
        "reference: {renderer: shapes, seed: 777, images: 64}",
        "reference: {folder: data/imagenet/train, height: 64, width: 64}",
    )
    done = bare.snakemake("--cores", "1", "--", "results/smoke/reference/manifest.json")
    assert done.returncode != 0 and "Traceback" not in done.stdout
    assert f"error: data/imagenet/train: {datasets.YOURS['imagenet/train'].sentence}" in done.stdout
    picture = bare.path("data/imagenet/train/n01440764/a.JPEG")
    picture.parent.mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 70, 3), np.uint8)).save(picture)
    assert bare.plan("results/smoke/reference/manifest.json") == {"Make the reference images"}
    done = bare.snakemake("--cores", "1", "--", "results/smoke/reference/manifest.json")
    assert done.returncode == 0 and bare.plan("results/smoke/reference/manifest.json") == set(), done.stdout
    Image.fromarray(np.zeros((80, 70, 3), np.uint8)).save(picture.with_name("b.JPEG"))
    os.utime(picture.parent, (LONG_AGO, LONG_AGO))
    assert bare.plan("results/smoke/reference/manifest.json") == {"Make the reference images"}


def test_data_is_not_committed():
    assert "/data/" in (ROOT / ".gitignore").read_text().splitlines()
