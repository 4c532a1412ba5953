"""Write and read image sets: PNG files in folders shard-NNN, and a manifest with the hash of every file.

A set may be generated in parts (`quantwatt.artifacts.image_parts`): an image's file name depends on its number in the
whole set.
"""

import hashlib
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quantwatt.artifacts import instructions
from quantwatt.artifacts.errors import DataError, DegenerateImages
from quantwatt.artifacts.image_parts import image_name, latents_name, part_name
from quantwatt.artifacts.manifest import (
    atomic_path,
    canonical_json,
    describe_files,
    read_json,
    verify_files,
    write_json,
)


def check_images(images: np.ndarray, first: int = 0) -> None:
    """Refuse degenerate images before they are converted or scored.

    Args:
        images: [n, h, w, 3], uint8, or floating point before its conversion.
        first: index of images[0] in the whole set, for the message.
    Raises:
        DegenerateImages: a NaN or infinite value, or an image of one single colour (such as black).
    """
    images = np.asarray(images)
    if np.issubdtype(images.dtype, np.floating):
        broken = ~np.isfinite(images).all(axis=(1, 2, 3))
        if broken.any():
            raise DegenerateImages(
                f"image {first + int(broken.argmax())} has NaN or infinite values "
                f"({broken.sum()} of {len(images)} in its batch): the computation overflowed."
            )
    constant = (images.max(axis=(1, 2)) == images.min(axis=(1, 2))).all(axis=1)
    if constant.any():
        i = int(constant.argmax())
        name = "black" if not images[i].any() else "of one single colour"
        raise DegenerateImages(
            f"image {first + i} is all {name} ({constant.sum()} of {len(images)} in its batch): "
            "the model gives no picture in this format."
        )


def to_uint8(images: np.ndarray, first: int = 0) -> np.ndarray:
    """Convert floating-point images [n, h, w, 3] in [0, 1] to uint8, after `check_images`."""
    check_images(images, first)
    return (np.clip(images, 0, 1) * 255).round().astype(np.uint8)


def prompts_sha256(images: Iterable[Mapping[str, Any]]) -> str | None:
    """Hash of the prompts of a manifest's images in their order, with their input pictures; None without prompts."""
    asked = [
        [image["prompt"], image["picture_sha256"]] if "picture_sha256" in image else image["prompt"] for image in images
    ]
    if all(prompt is None for prompt in asked):
        return None
    return hashlib.sha256(canonical_json(asked).encode()).hexdigest()


def images_sha256(manifest: Mapping[str, Any]) -> str:
    """Hash of all image files of a manifest in order: equal for equal images, whenever they were generated."""
    return hashlib.sha256("\n".join(image["sha256"] for image in manifest["images"]).encode()).hexdigest()


def clear(folder: str | Path, part: range | None = None) -> None:
    """Remove an earlier image set, or only one part of it, from `folder`; manifests are removed first.

    If a shard is a link, the link is removed and its target is left unchanged.
    """
    folder = Path(folder)
    (folder / "manifest.json").unlink(missing_ok=True)
    for path in folder.glob("part-*.json") if part is None else [folder / part_name(part.start)]:
        path.unlink(missing_ok=True)
    for shard in folder.glob("shard-*"):
        if shard.is_symlink():
            shard.unlink(missing_ok=True)  # another part's job may have removed it
        elif part is None:
            shutil.rmtree(shard)
    for number in part or ():
        for name in (image_name(number), latents_name(image_name(number))):
            (folder / name).unlink(missing_ok=True)


def write_images(
    folder: str | Path,
    batches: Iterable[tuple[np.ndarray, Sequence[str | None], Sequence[int | None]]],
    fields: Mapping[str, Any],
    part: range | None = None,
    real: bool = False,
    latents: MutableMapping[int, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Write an image set into `folder`, the manifest last; an earlier set in the folder is removed first.

    Args:
        folder: gets shard-000/00000.png, ... and manifest.json. Files are numbered through all shards.
        batches: iterable of (images uint8 [b, h, w, 3], prompts [b] of str or None, seeds [b] of int or
            None). It may generate images lazily: the manifest's `seconds` includes that time.
        fields: further entries of the manifest (model, method, sampling, provenance, ...).
        part: range of the images' numbers, if they are a part of the set: part-FIRST.json is then written instead of
            manifest.json, which is removed, and files of other parts are left unchanged.
        real: whether the images are real: then images of a single colour are accepted.
        latents: {seed: [steps, values] float32} that `batches` fills; each is written beside its image, and taken out.
    Returns:
        The manifest.
    Raises:
        DegenerateImages: see `check_images`.
        DataError: there are no images, or the disk is full. No manifest and no image is left then.
    """
    from PIL import Image

    folder, first = Path(folder), 0 if part is None else part.start
    clear(folder, part)
    started = time.perf_counter()
    images, shape = [], ()
    try:
        for batch, prompts, seeds in batches:
            shape = shape or batch.shape[1:]
            if batch.dtype != np.uint8 or batch.shape[1:] != shape or shape[2:] != (3,):
                raise TypeError(f"images of {shape} uint8 expected, not {batch.shape[1:]} {batch.dtype}")
            if not real:
                check_images(batch, first=first + len(images))
            for pixels, prompt, seed in zip(batch, prompts, seeds, strict=True):
                name = image_name(first + len(images))
                with atomic_path(folder / name) as temporary:
                    Image.fromarray(pixels).save(temporary)
                images.append({"file": name, "prompt": prompt, "seed": seed, **instructions.described(prompt)})
                if latents is not None and seed is not None:
                    images[-1]["latents"] = _write_latents(folder, latents_name(name), latents.pop(seed))
        if not images:
            raise DataError(f"{folder}: an image set needs at least one image.")
        seconds = time.perf_counter() - started
        files = describe_files(folder, [image["file"] for image in images])
        manifest = {
            "status": "ok",
            "reason": None,
            **fields,
            "n_images": len(images),
            "prompts_sha256": prompts_sha256(images),
            "height": shape[0],
            "width": shape[1],
            "seconds": seconds,
            "images": [{**image, **files[image["file"]]} for image in images],
        }
        write_json(_manifest_path(folder, part), manifest)
    except BaseException:
        clear(folder, part)
        raise
    return manifest


def _write_latents(folder, name, latents):
    with atomic_path(folder / name) as temporary, temporary.open("wb") as file:
        np.save(file, latents, allow_pickle=False)
    return {"file": name, **describe_files(folder, [name])[name]}


def write_no_images(
    folder: str | Path, status: str, reason: str, fields: Mapping[str, Any], part: range | None = None
) -> dict[str, Any]:
    """Write and return the manifest of a set or part without images, with the reason; earlier images are removed."""
    clear(folder, part)
    manifest = {"status": status, "reason": reason, **fields, "n_images": 0, "images": []}
    write_json(_manifest_path(folder, part), manifest)
    return manifest


def _manifest_path(folder, part):
    return Path(folder) / ("manifest.json" if part is None else part_name(part.start))


def image_files(manifest_path: str | Path) -> list[Path]:
    """The paths of an image set's files in order, each checked against its size and sha256.

    Raises:
        DataError: the set has no images, or a file is missing, truncated or corrupted.
    """
    return [path for path, _ in _checked(manifest_path)]


def iterate_images(manifest_path: str | Path) -> Iterator[np.ndarray]:
    """The images of a set one by one, uint8 [h, w, 3], all files checked first; raises as `image_files`."""
    return (_decode(path, manifests) for path, manifests in _checked(manifest_path))


def _checked(manifest_path):
    """Check all files of a set; return [(path, the manifests to delete to regenerate the image)]."""
    manifest, folder, checked = read_json(manifest_path), Path(manifest_path).parent, []
    if manifest["status"] != "ok":
        raise DataError(f"{manifest_path}: there are no images ({manifest['status']}: {manifest['reason']}).")
    for part in manifest.get("parts", [{"file": None, "n_images": manifest["n_images"]}]):
        images = manifest["images"][len(checked) : len(checked) + part["n_images"]]
        manifests = f"{folder / part['file']} and {manifest_path}" if part["file"] else manifest_path
        verify_files(manifests, {image["file"]: image for image in images}, folder)
        checked += [(folder / image["file"], manifests) for image in images]
    return checked


def paired_files(manifest_path: str | Path, baseline_path: str | Path) -> list[Path]:
    """The image files of a baseline, image i from the same prompt and seed as image i of another set.

    Raises:
        DataError: the sets differ in size, in a prompt or in a seed; see also `image_files`.
    """
    _check_pairs(manifest_path, baseline_path)
    return image_files(baseline_path)


def _check_pairs(manifest_path, baseline_path):
    """Refuse sets that differ in size, in a prompt or in a seed."""
    manifest, reference = read_json(manifest_path), read_json(baseline_path)
    for key in ("n_images", "height", "width"):
        if manifest[key] != reference[key]:
            raise DataError(
                f"{manifest_path}: {key} is {manifest[key]}, but {reference[key]} in its baseline {baseline_path}."
            )
    for i, (image, baseline) in enumerate(zip(manifest["images"], reference["images"], strict=True)):
        for key in ("prompt", "seed"):
            if image[key] != baseline[key]:
                raise DataError(
                    f"{manifest_path}: image {i} has {key} {image[key]!r}, but {baseline[key]!r} in its "
                    f"baseline {baseline_path}; delete the older of both manifests and run again."
                )


def paired_images(
    manifest_path: str | Path, baseline_path: str | Path
) -> tuple[Iterator[np.ndarray], Iterator[np.ndarray]]:
    """Two iterators over uint8 [h, w, 3], image i of both from the same prompt and seed.

    Raises:
        DataError: as `paired_files`.
    """
    _check_pairs(manifest_path, baseline_path)
    return iterate_images(manifest_path), iterate_images(baseline_path)


def paired_latents(
    manifest_path: str | Path, baseline_path: str | Path
) -> tuple[Iterator[np.ndarray], Iterator[np.ndarray]]:
    """Two iterators over float32 [steps, values], latents i of both from the same prompt and seed.

    Raises:
        DataError: as `paired_files`, or latents were not kept.
    """
    _check_pairs(manifest_path, baseline_path)
    return _latents(manifest_path), _latents(baseline_path)


def _latents(manifest_path):
    folder, files = Path(manifest_path).parent, [image.get("latents") for image in read_json(manifest_path)["images"]]
    if None in files:
        raise DataError(f"{manifest_path}: its latents were not kept; delete it and run again.")
    verify_files(manifest_path, {file["file"]: file for file in files}, folder)
    return (np.load(folder / file["file"], allow_pickle=False) for file in files)


def _decode(path, manifests):
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:  # a PNG that was already broken when its manifest was written
        raise DataError(f"{path}: not a readable image; delete {manifests} and run again.") from error
