"""Image sets: written images are read back unchanged, and broken files are refused."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from image_sets import read_images
from PIL import Image

import reference
from quantwatt.artifacts import image_parts, images
from quantwatt.artifacts.errors import DataError, DegenerateImages
from quantwatt.artifacts.manifest import read_json
from quantwatt.data import scenes

SCRIPTS = Path(images.__file__).parents[2]


def pictures(n, seed=0, size=16):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def write(folder, found, prompts=None, seeds=None, **fields):
    n = len(found)
    prompts = prompts or [f"prompt {i}" for i in range(n)]
    batches = [(found[i : i + 5], prompts[i : i + 5], (seeds or list(range(n)))[i : i + 5]) for i in range(0, n, 5)]
    images.write_images(folder, batches, fields)
    return folder / "manifest.json"


def test_round_trip_over_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(image_parts, "SHARD_IMAGES", 4)
    found = pictures(10)
    path = write(tmp_path, found, method="rtn-w4a16")
    manifest = read_json(path)
    assert np.array_equal(read_images(path), found)
    assert [entry["file"] for entry in manifest["images"]][3:5] == [
        "shard-000/00003.png",
        "shard-001/00004.png",
    ]
    assert [(entry["prompt"], entry["seed"]) for entry in manifest["images"]][9] == ("prompt 9", 9)
    assert {key: manifest[key] for key in ("status", "method", "n_images", "height", "width")} == {
        "status": "ok",
        "method": "rtn-w4a16",
        "n_images": 10,
        "height": 16,
        "width": 16,
    }


def test_a_rerun_leaves_no_image_of_the_earlier_run(tmp_path, monkeypatch):
    monkeypatch.setattr(image_parts, "SHARD_IMAGES", 4)
    write(tmp_path, pictures(10))
    path = write(tmp_path, pictures(3, seed=1))
    assert len(list(tmp_path.rglob("*.png"))) == 3
    assert len(read_images(path)) == 3
    images.write_no_images(tmp_path, "oom", "9 GB asked for, 8 there", {})
    assert not list(tmp_path.rglob("*.png"))
    with pytest.raises(DataError, match="no images .oom: 9 GB"):
        read_images(path)


def test_a_generator_that_fails_leaves_nothing(tmp_path):
    def failing():
        yield pictures(2), ["a", "b"], [0, 1]
        raise RuntimeError("a bug")

    write(tmp_path, pictures(3))
    with pytest.raises(RuntimeError, match="a bug"):
        images.write_images(tmp_path, failing(), {})
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="at least one image"):
        images.write_images(tmp_path, [], {})
    with pytest.raises(TypeError, match="uint8"):
        images.write_images(tmp_path, [(pictures(1) / 255, ["a"], [0])], {})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:], "sha256 differs"),
        (lambda data: data[:-40], "truncated"),
        (None, "missing"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, damage, message):
    path = write(tmp_path, pictures(6))
    victim = tmp_path / "shard-000" / "00004.png"
    if damage:
        victim.write_bytes(damage(victim.read_bytes()))
    else:
        victim.unlink()
    with pytest.raises(DataError, match=message) as caught:
        read_images(path)
    assert "00004.png" in str(caught.value) and f"delete {path}" in str(caught.value)
    with pytest.raises(DataError, match=message):
        images.image_files(path)


def test_disk_full_leaves_no_manifest(tmp_path):
    """A real write error: the kernel refuses to let any file of the process grow beyond 4 KB."""
    folder = tmp_path / "images"
    write(folder, pictures(2, size=8))
    program = f"""
import resource, sys
sys.path.insert(0, {str(SCRIPTS)!r})
import numpy as np
from quantwatt.artifacts import images
from quantwatt.jobs import command

def main():
    rng = np.random.default_rng(0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    sizes = [rng.integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)]
    images.write_images({str(folder)!r}, [(size, ["a"], [0]) for size in sizes], {{}})

command.run(main)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(folder.iterdir())


def test_broken_computations_are_refused_before_they_are_converted():
    good = np.random.default_rng(0).random((4, 16, 16, 3), dtype=np.float32)
    assert np.abs(images.to_uint8(good) / 255.0 - good).max() < 0.5 / 255 + 1e-6
    broken = good.copy()
    broken[2, 3, 3, 1] = np.nan
    with pytest.raises(DegenerateImages, match="image 12 has NaN"):
        images.to_uint8(broken, first=10)
    black = good.copy()
    black[1] = 0
    with pytest.raises(DegenerateImages, match="image 1 is all black"):
        images.to_uint8(black)
    plain = pictures(3)
    plain[2] = (10, 20, 30)
    with pytest.raises(DataError, match="image 2 is all of one single colour"):
        images.check_images(plain)
    plain[2, 0, 0, 0] = 11
    images.check_images(plain)


def test_black_images_are_never_written(tmp_path):
    with pytest.raises(DegenerateImages, match="image 5 is all black"):
        write(tmp_path, np.concatenate([pictures(5), np.zeros((1, 16, 16, 3), np.uint8)]))
    assert not list(tmp_path.iterdir())


def test_pairs_have_equal_prompts_and_seeds(tmp_path):
    found = pictures(6)
    one = write(tmp_path / "one", found)
    two = write(tmp_path / "two", found[::-1])
    here, there = images.paired_images(one, two)
    assert np.array_equal(np.stack(list(here)), np.stack(list(there))[::-1])
    other_seed = write(tmp_path / "seed", found, seeds=[0, 1, 2, 3, 5, 4])
    with pytest.raises(DataError, match="image 4 has seed 4, but 5"):
        images.paired_images(one, other_seed)
    other_prompt = write(tmp_path / "prompt", found, prompts=["prompt 0", "another"] + ["x"] * 4)
    with pytest.raises(DataError, match="image 1 has prompt 'prompt 1', but 'another'"):
        images.paired_images(one, other_prompt)
    with pytest.raises(DataError, match="n_images is 6, but 5"):
        images.paired_images(one, write(tmp_path / "five", found[:5]))


def test_hashes_name_the_content_not_the_run(tmp_path):
    one = read_json(write(tmp_path / "one", pictures(3), method="a"))
    two = read_json(write(tmp_path / "two", pictures(3), method="b"))
    assert images.images_sha256(one) == images.images_sha256(two)
    assert images.images_sha256(one) != images.images_sha256(read_json(write(tmp_path / "three", pictures(3, 1))))
    asked = [["a", "b"], ["b", "a"], ["ab"], [None, "a"]]
    hashes = [images.prompts_sha256([{"prompt": prompt} for prompt in prompts]) for prompts in asked]
    hashes += [images.prompts_sha256([{"prompt": "ab", "picture_sha256": sha}]) for sha in "01"]
    assert len(set(hashes)) == 6 and None not in hashes
    assert images.prompts_sha256([{"prompt": None}, {"prompt": None}]) is None


def test_rendered_reference(tmp_path):
    output = tmp_path / "shapes" / "manifest.json"
    arguments = ["--name", "shapes", "--settings", '{"renderer": "shapes", "seed": 777, "images": 20}']
    reference.main([*arguments, "--output", str(output)])
    expected, captions = scenes.dataset(20, 777)
    manifest = read_json(output)
    assert np.array_equal(read_images(output), expected)
    assert [entry["prompt"] for entry in manifest["images"]] == captions
    assert manifest["reference"] == "shapes" and manifest["n_images"] == 20
    with pytest.raises(DataError, match="no renderer 'shpaes'"):
        reference.make_reference("x", {"renderer": "shpaes", "seed": 1, "images": 2}, tmp_path / "x")


def test_some_images_of_a_folder_are_drawn_from_all_its_classes(tmp_path):
    source = tmp_path / "train"
    for number in range(40):
        path = source / f"class-{number // 10}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = np.full((8, 8, 3), number, np.uint8)
        picture[7, 7] = 255
        Image.fromarray(picture).save(path)

    def drawn(**settings):
        return [int(x[0, 0, 0, 0]) for x, _, _ in reference.from_folder(source, 8, 8, 12, **settings)]

    assert len(set(drawn())) == 12 and {number // 10 for number in drawn()} == {0, 1, 2, 3}
    assert drawn() == drawn(seed=0) != drawn(seed=1)


def test_reference_from_a_folder(tmp_path):
    source = tmp_path / "photographs"
    (source / "more").mkdir(parents=True)
    left = np.zeros((32, 64, 3), np.uint8)
    left[:, 40:] = 255  # white beyond the middle 32 columns' last quarter
    Image.fromarray(left).save(source / "b.png")
    Image.fromarray(pictures(1, size=40)[0]).save(source / "more" / "c.JPG")
    Image.fromarray(pictures(1, size=16)[0, ..., 0]).save(source / "a.jpeg")  # grey
    settings = {"folder": str(source), "height": 16, "width": 16, "images": None}
    manifest = reference.make_reference("coco", settings, tmp_path / "out")
    found = read_images(tmp_path / "out" / "manifest.json")
    assert found.shape == (3, 16, 16, 3) and manifest["prompts_sha256"] is None
    assert (found[0][..., 0] == found[0][..., 1]).all()
    assert (found[1][:, :10] == 0).all() and (found[1][:, 13:] == 255).all()  # columns 16 to 47 of 64, halved
    assert len(reference.make_reference("coco", settings | {"images": 2}, tmp_path / "out")["images"]) == 2
    with pytest.raises(DataError, match="3 image files, but 4"):
        reference.make_reference("coco", settings | {"images": 4}, tmp_path / "out")
    with pytest.raises(DataError, match="needs the 'height' and 'width'"):
        reference.make_reference("coco", {"folder": str(source)}, tmp_path / "out")
    archive = shutil.make_archive(str(tmp_path / "archive"), "zip", source)
    zipped = reference.make_reference("coco", settings | {"folder": archive}, tmp_path / "zipped")
    assert images.images_sha256(zipped) == images.images_sha256(manifest)
    with pytest.raises(DataError, match="b.png: neither a folder nor a ZIP archive"):
        reference.make_reference("coco", settings | {"folder": str(source / "b.png")}, tmp_path / "zipped")
    (source / "more" / "c.JPG").write_bytes(b"not a photograph")
    with pytest.raises(DataError, match="c.JPG: not a readable image"):
        reference.make_reference("coco", settings, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()
