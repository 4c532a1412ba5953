"""Real photographs: each is read as clean-fid reads it, or refused with its file name."""

import quantwatt.jobs.torchvision_ops  # noqa: F401  before clean-fid imports torchvision

# isort: split
import io
import os
import shutil
import zipfile

import numpy as np
import pytest
from cleanfid.utils import ResizeDataset
from image_sets import read_images
from PIL import Image

import reference
from quantwatt.artifacts import images, linked_folders
from quantwatt.artifacts.errors import DataError, DegenerateImages

SIZE = 16


@pytest.fixture
def grey():
    """A ramp [16, 16] uint8."""
    return np.arange(256, dtype=np.uint8).reshape(SIZE, SIZE)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photographs").mkdir()
    return tmp_path / "photographs"


def made(folder, size=SIZE):
    """(uint8 [n, size, size, 3], the record) of the reference of a folder or archive."""
    output = folder.parent / "reference"
    settings = {"folder": str(folder), "height": size, "width": size, "images": None}
    manifest = reference.make_reference("real", settings, output)
    return read_images(output / "manifest.json"), manifest["reading"]


def refusal(folder):
    with pytest.raises(DataError) as caught:
        made(folder)
    assert not (folder.parent / "reference" / "manifest.json").exists() and "\n" not in str(caught.value)
    return str(caught.value)


def palette(grey):
    picture = Image.fromarray(grey).convert("P")
    return picture, {"transparency": bytes(range(256))}


PICTURES = {
    "a.png": palette,
    "b.jpg": lambda grey: (Image.fromarray(grey).convert("CMYK"), {}),
    "c.png": lambda grey: (Image.merge("RGBA", [Image.fromarray(own) for own in (grey, grey.T, grey, grey)]), {}),
    "d.png": lambda grey: (Image.merge("LA", [Image.fromarray(own) for own in (grey, grey.T)]), {}),
    "e.png": lambda grey: (Image.fromarray(grey > 100), {}),
    "f.JPEG": lambda grey: (Image.fromarray(grey), {"exif": turned()}),
    "g.webp": lambda grey: (Image.fromarray(grey), {"lossless": True}),
    "h.bmp": lambda grey: (Image.fromarray(grey), {}),
    "i.tif": lambda grey: (Image.fromarray(grey), {}),
    "j.gif.PNG": lambda grey: (Image.fromarray(grey), {}),
}


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_pictures_of_every_kind_are_those_of_clean_fid(folder, grey, capsys):
    for name, make in PICTURES.items():
        picture, options = make(grey)
        picture.save(folder / name, **options)
    found, record = made(folder)
    files = sorted(folder.iterdir())
    own = ResizeDataset(files, mode="clean")
    own.fn_resize = lambda pixels: pixels
    for picture, name, expected in zip(found, files, own, strict=True):
        assert np.array_equal(picture, expected.permute(1, 2, 0).round().numpy()), name
    assert {kind: part["count"] for kind, part in record.items() if kind not in ("read", "left_out")} == {
        "alpha": 3,
        "cmyk": 1,
        "turned": 1,
    }
    said = capsys.readouterr().err
    assert "3 of 10 pictures with transparency, which is dropped, as clean-fid does (a.png, c.png, d.png).\n" in said
    assert said.count("\n") == 3


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_greys_of_16_bits_are_scaled_and_not_cut_off(folder, grey, name):
    """python-pillow/Pillow#3011: PIL's conversion makes nearly all of it white."""
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / name)
    found, record = made(folder)
    assert np.array_equal(found[0][..., 0], grey) and record["sixteen_bit"] == {"count": 1, "first": [name]}
    Image.fromarray(grey.astype(np.int32) * 257).save(folder / "i.tif")
    assert np.array_equal(made(folder)[0][1][..., 0], grey)


@pytest.mark.parametrize("values", [np.float32(1) * np.ones((8, 8)), np.full((8, 8), 70_000)])
def test_values_without_a_range_are_refused(folder, values):
    Image.fromarray(values.astype(np.float32 if values.dtype == float else np.int32)).save(folder / "a.tif")
    assert f"{folder}/a.tif: not a readable image (its values" in refusal(folder)


def test_pictures_of_one_colour_are_kept_and_named(folder, grey, capsys):
    Image.fromarray(grey).save(folder / "a.png")
    Image.new("RGB", (SIZE, SIZE), "white").save(folder / "white.png")
    alone = Image.merge("LA", [Image.new("L", (SIZE, SIZE)), Image.fromarray(grey)])
    alone.save(folder / "logo.png")
    found, record = made(folder)
    assert len(found) == 3 and (found[2] == 255).all() and (found[1] == 0).all()
    assert record["one_colour"] == {"count": 1, "first": ["white.png"]}
    assert record["alpha_only"] == {"count": 1, "first": ["logo.png"]}
    said = capsys.readouterr().err
    assert "1 of 3 pictures of one single colour (white.png).\n" in said and "(logo.png)" in said
    (folder / "a.png").unlink()
    assert "all 2 pictures have only one colour (for example logo.png)" in refusal(folder)


def test_a_model_still_may_not_give_one_colour(tmp_path):
    with pytest.raises(DegenerateImages, match="the model gives no picture"):
        images.write_images(tmp_path, [(np.zeros((1, 8, 8, 3), np.uint8), ["a"], [0])], {})


def broken_png(grey):
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: b"", "the file is empty"),
        (lambda data: b"<html>not found</html>", "of no kind that Pillow knows"),
        (lambda data: data[:-60], "not a readable image"),
        (lambda data: data[:40], "not a readable image"),
        (lambda data: data[:60] + bytes(40) + data[100:], "not a readable image"),
    ],
)
def test_broken_files_are_named_in_folders_and_archives(folder, grey, damage, words):
    Image.fromarray(grey).save(folder / "a.png")
    (folder / "b.png").write_bytes(damage(broken_png(grey)))
    assert (sentence := refusal(folder)).startswith(f"{folder}/b.png: ") and words in sentence
    archive = shutil.make_archive(str(folder), "zip", folder)
    assert refusal(folder.parent / "photographs.zip").startswith(f"{archive}/b.png: ")


def test_more_pixels_than_pillow_opens_is_one_sentence(folder, grey, monkeypatch):
    Image.fromarray(grey).save(folder / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)  # a warning up to twice as many
    made(folder)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert refusal(folder) == f"{folder}/a.png: more than the 200 pixels that Pillow opens; scale the image down."


def test_small_ones_and_later_frames_are_told(folder, grey):
    first, second = Image.fromarray(grey), Image.fromarray(grey.T.copy())
    first.save(folder / "a.png", save_all=True, append_images=[second])
    found, record = made(folder, size=2 * SIZE)
    assert record["frames"]["first"] == record["enlarged"]["first"] == ["a.png"]
    assert found[0][0, -1, 0] < found[0][-1, 0, 0]  # the first frame's ramp goes down


def test_what_is_no_picture_of_the_set_is_left_out(folder, grey, capsys):
    for name in ("a.png", ".b.png", "__MACOSX/x/._a.png", "more/c.PNG"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey).save(folder / name, "PNG")
    for name in (".DS_Store", "Thumbs.db", "labels.txt", "d.npy", "e.npy", "README", "more/.DS_Store"):
        (folder / name).write_bytes(b"x")
    left = {".db": 1, ".npy": 2, ".txt": 1, "hidden": 4, "without suffix": 1}
    found, record = made(folder)
    assert len(found) == record["read"] == 2 and record["left_out"] == left
    assert f"{folder}: left out: 1 .db, 2 .npy, 1 .txt, 4 hidden, 1 without suffix.\n" in capsys.readouterr().err
    shutil.make_archive(str(folder), "zip", folder)
    zipped, record = made(folder.parent / "photographs.zip")
    assert np.array_equal(zipped, found) and record["left_out"] == left


def test_links_to_files_and_class_folders_are_followed(tmp_path, folder, grey):
    elsewhere = tmp_path / "disk" / "cats"
    elsewhere.mkdir(parents=True)
    Image.fromarray(grey).save(elsewhere / "1.png")
    (folder / "cats").symlink_to(elsewhere)
    (folder / "2.png").symlink_to(elsewhere / "1.png")
    (elsewhere / "back").symlink_to(folder)
    (elsewhere / "self").symlink_to(".")
    assert len(made(folder)[0]) == 2
    (tmp_path / "set").symlink_to(folder)
    assert len(made(tmp_path / "set")[0]) == 2
    (folder / "3.png").symlink_to(elsewhere / "gone.png")
    assert f"{folder}/3.png: a link that leads nowhere" in refusal(folder)


def test_a_folder_that_cannot_be_read_is_named(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="photographs: the folder cannot be read .Permission denied"):
        list(linked_folders.files(folder))


def archive_of(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_are_odd(tmp_path, grey):
    data, path = broken_png(grey), tmp_path / "a.zip"
    found, _ = made(archive_of(path, [("../../up.png", data), ("/etc/b.png", data), ("x.png/", b"")]))
    assert len(found) == 2 and not (tmp_path.parent / "up.png").exists()
    archive_of(path, [("a.png", data), ("a.png", data)])
    assert refusal(path) == f"{path}: holds two files called a.png; make the archive anew."
    archive_of(path, [("a.png", data)])
    content = bytearray(path.read_bytes())
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(header) + flags] |= 1  # encrypted
    path.write_bytes(content)
    assert f"{path}/a.png: cannot be read from the archive" in (sentence := refusal(path)) and "encrypted" in sentence
    for header, method in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        place = content.index(header)
        content[place + method - 2] &= 0xFE
        content[place + method : place + method + 2] = (99).to_bytes(2, "little")
    path.write_bytes(content)
    assert "cannot be read from the archive (That compression method is not supported" in refusal(path)
