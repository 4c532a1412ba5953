"""Image sets in parts: the same images as from one job, and only a failed or lost part is generated again."""

import quantwatt.jobs.torchvision_ops  # noqa: F401  before diffusers

# isort: split
import json

import numpy as np
import pytest
from image_sets import read_images

import gather_images
import generate
from quantwatt.artifacts import image_parts, images
from quantwatt.artifacts.errors import DataError, DegenerateImages
from quantwatt.artifacts.manifest import read_json, write_json
from quantwatt.jobs.fingerprints import ROOT

SAMPLING = {
    "prompts": str(ROOT / "resources/prompts/digits.txt"), "cycle": True, "images": 21, "steps": 1, "guidance": 1.0,
    "height": 16, "width": 16, "seed": 7, "batch_size": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The embedded model of digits, not quantized."""
    path = tmp_path_factory.mktemp("checkpoint") / "manifest.json"
    model = {"family": "consistency", "dtype": "float32", "timesteps": [[22, 0]]}
    found = {"status": "ok", "model": "digits", "method": "float32", "model_settings": model, "files": {}, "layers": {}}
    location = str(ROOT / "resources/models/tiny-consistency")
    write_json(path, {**found, "location": location, "settings": {"compile": False}})
    return path


def draw(checkpoint, output, part=(), **sampling):
    generate.main(
        ["--checkpoint", str(checkpoint), "--sampling-name", "one-step", "--sampling", json.dumps(SAMPLING | sampling),
         *(["--part", str(part.start), str(part.stop)] if part else []), "--output", str(output)]
    )  # fmt: skip


def draw_parts(checkpoint, folder, images_per_job, **sampling):
    """A set in parts, the last first."""
    parts = image_parts.parts(SAMPLING | sampling, images_per_job)
    for part in reversed(parts):
        draw(checkpoint, folder / image_parts.part_name(part.start), part, **sampling)
    return gather_images.gather(folder, [part.start for part in parts])


def pngs(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


@pytest.mark.parametrize(("images_per_job", "sizes"), [(4, [4, 4, 4, 4, 4, 1]), (7, [8, 8, 5]), (100, [21])])
def test_parts_are_whole_batches_that_hold_what_is_asked_for(images_per_job, sizes):
    parts = image_parts.parts(SAMPLING, images_per_job)
    assert [len(part) for part in parts] == sizes
    assert [number for part in parts for number in part] == list(range(21))


def test_a_set_that_grows_keeps_its_full_parts():
    small, large = (image_parts.parts(SAMPLING | {"images": n}, 8) for n in (21, 50_000))
    assert small[:2] == large[:2] and len(large) == 6250


@pytest.mark.parametrize("images_per_job", [1, 7, 12])
def test_any_parts_give_the_same_images_byte_for_byte(tmp_path, monkeypatch, checkpoint, images_per_job):
    monkeypatch.setattr(image_parts, "SHARD_IMAGES", 6)  # parts share folders
    draw(checkpoint, tmp_path / "whole/manifest.json")
    gathered = draw_parts(checkpoint, tmp_path / "parts", images_per_job)
    assert pngs(tmp_path / "parts") == pngs(tmp_path / "whole") and len(pngs(tmp_path / "whole")) == 21
    whole = read_json(tmp_path / "whole/manifest.json")
    parts = gathered.pop("parts")
    assert read_json(tmp_path / "parts/manifest.json") == gathered | {"parts": parts}
    assert gathered.keys() == whole.keys()
    assert {**gathered, "seconds": 0} == {**whole, "seconds": 0}
    assert sum(part["n_images"] for part in parts) == 21 and gathered["seconds"] == sum(p["seconds"] for p in parts)
    read = read_images(tmp_path / "parts/manifest.json")
    assert np.array_equal(read, read_images(tmp_path / "whole/manifest.json"))


def test_a_part_begins_at_a_batch(tmp_path, checkpoint):
    with pytest.raises(DataError, match="begins at image 6, inside a batch of 4"):
        draw(checkpoint, tmp_path / "part-00006.json", range(6, 12))
    assert not list(tmp_path.iterdir())


def write_part(folder, part, seed=0, **fields):
    pixels = np.random.default_rng(seed).integers(0, 256, (len(part), 8, 8, 3), dtype=np.uint8)
    images.write_images(folder, [(pixels, ["x"] * len(part), list(part))], fields, part)


def test_a_part_alone_is_made_again(tmp_path):
    """The set's manifest is removed with the part; images of other parts stay."""
    for part in (range(0, 4), range(4, 8), range(8, 10)):
        write_part(tmp_path, part, provenance={})
    gather_images.gather(tmp_path, [0, 4, 8])
    before = pngs(tmp_path)
    victim = tmp_path / "shard-000/00005.png"
    victim.write_bytes(victim.read_bytes()[:-9])
    with pytest.raises(
        DataError, match="00005.png: .*truncated.*; delete .*part-00004.json and .*manifest.json and run"
    ):
        images.image_files(tmp_path / "manifest.json")

    def killed():
        yield np.full((1, 8, 8, 3), 9, np.uint8) * np.arange(8, dtype=np.uint8)[:, None], ["x"], [4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        images.write_images(tmp_path, killed(), {}, range(4, 8))
    assert not (tmp_path / "manifest.json").exists() and not (tmp_path / "part-00004.json").exists()
    assert pngs(tmp_path) == {name: data for name, data in before.items() if not "00004" <= name[-9:-4] < "00008"}
    write_part(tmp_path, range(4, 8), provenance={})
    gather_images.gather(tmp_path, [0, 4, 8])
    assert pngs(tmp_path) == before and len(images.image_files(tmp_path / "manifest.json")) == 10


def test_a_set_fails_with_its_part_for_that_parts_reason(tmp_path):
    write_part(tmp_path, range(0, 4), provenance={}, method="m")
    images.write_no_images(tmp_path, "oom", "9 GB asked for, 8 there", {"method": "m"}, range(4, 8))
    found = gather_images.gather(tmp_path, [0, 4])
    assert found == {"status": "oom", "reason": "9 GB asked for, 8 there", "method": "m", "n_images": 0, "images": []}
    assert len(pngs(tmp_path)) == 4
    with pytest.raises(DataError, match="no images .oom"):
        images.image_files(tmp_path / "manifest.json")


def test_a_degenerate_image_is_named_by_its_number_in_the_set(tmp_path):
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(1, 8, 8, 3)
    batches = [(np.concatenate([pixels, 0 * pixels]), ["x", "x"], [0, 1])]
    with pytest.raises(DegenerateImages, match="image 13 is all black"):
        images.write_images(tmp_path, batches, {}, range(12, 14))
    assert not pngs(tmp_path)


def test_parts_that_are_no_set_are_refused(tmp_path):
    write_part(tmp_path, range(0, 4), provenance={}, kernel="torch._int_mm")
    write_part(tmp_path, range(4, 8), provenance={}, kernel=None)
    with pytest.raises(DataError, match="part-00004.json: kernel is None, but 'torch._int_mm' in part-00000.json"):
        gather_images.gather(tmp_path, [0, 4])
    write_part(tmp_path, range(8, 10), provenance={}, kernel="torch._int_mm")
    with pytest.raises(DataError, match="part-00008.json: begins with .*00008.png, but the parts before it end at 4"):
        gather_images.gather(tmp_path, [0, 8])
    with pytest.raises(DataError, match="part-00012.json: the file does not exist"):
        gather_images.gather(tmp_path, [0, 12])


def test_nothing_of_another_size_or_of_other_parts_is_left(tmp_path):
    for part in (range(0, 4), range(4, 8), range(8, 12)):
        write_part(tmp_path, part, provenance={})
    write_part(tmp_path, range(4, 6), provenance={})
    gather_images.gather(tmp_path, [0, 4])
    assert len(pngs(tmp_path)) == 6 and not (tmp_path / "part-00008.json").exists()
    images.write_images(tmp_path, [(np.arange(192, dtype=np.uint8).reshape(1, 8, 8, 3), ["x"], [0])], {})
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["00000.png", "manifest.json"]


def test_latents_are_kept_beside_the_images_whatever_the_parts(tmp_path, checkpoint):
    draw(checkpoint, tmp_path / "whole/manifest.json", images=9, trajectory=64)
    draw_parts(checkpoint, tmp_path / "parts", 4, images=9, trajectory=64)
    draw(checkpoint, tmp_path / "without/manifest.json", images=9)
    assert pngs(tmp_path / "whole") == pngs(tmp_path / "parts") == pngs(tmp_path / "without")
    paths = tmp_path / "whole/manifest.json", tmp_path / "parts/manifest.json"
    own, others = (np.stack(list(each)) for each in images.paired_latents(*paths))
    assert own.shape == (9, 1, 64) and own.dtype == np.float32 and np.array_equal(own, others) and own.std() > 0.1
    seeds = [entry["seed"] for entry in read_json(paths[0])["images"]]
    assert len({latents.tobytes() for latents in own}) == 9 and seeds == list(range(7, 16))
    with pytest.raises(DataError, match="without/manifest.json: its latents were not kept; delete it and run again"):
        images.paired_latents(tmp_path / "without/manifest.json", paths[0])
    draw_parts(checkpoint, tmp_path / "parts", 4, images=5, trajectory=64)  # of the smaller set nothing else is left
    assert len(list((tmp_path / "parts").rglob("*.npy"))) == 5
    (tmp_path / "parts/shard-000/00002.npy").write_bytes(b"broken")
    with pytest.raises(DataError, match="00002.npy"):
        list(images.paired_latents(tmp_path / "parts/manifest.json", tmp_path / "parts/manifest.json")[0])
