"""Extract the features of an image set, for the metrics that compare features."""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from quantwatt import registry
from quantwatt.artifacts import feature_files, images
from quantwatt.artifacts.errors import DataError, Unsupported
from quantwatt.artifacts.manifest import PROJECT, read_json, verify_files
from quantwatt.artifacts.provenance import provenance
from quantwatt.jobs import command, gpus
from quantwatt.jobs.progress import progress
from quantwatt.score.extractors import Rater

CHUNK = 256  # images per update of the progress bar


def extract(
    images_path: str | Path,
    weights_path: str | Path,
    device: str,
    output: str | Path,
    baseline_path: str | Path | None = None,
) -> None:
    """Extract and write the features of an image set, or the numbers that a network gives its images.

    Args:
        images_path: manifest.json of the images (generated or reference).
        baseline_path: manifest.json of the baseline's images, for a network that reads pairs.
        weights_path: EXTRACTOR.json of fetch_weights.py, with the extractor's settings and the location of its weights.
        device: a torch device.
        output: EXTRACTOR.json; arrays (features, a reference's moments) go to EXTRACTOR-NAME.npy in the same folder.
    Raises:
        DataError: an image is corrupted, or the extractor's weights are not the fetched files.
    """
    manifest, fetched = read_json(images_path), read_json(weights_path)
    name = fetched["extractor"]
    fields = {"status": manifest["status"], "reason": manifest["reason"], "extractor": name}
    baseline = read_json(baseline_path) if baseline_path else None
    if manifest["status"] == "ok" and baseline and baseline["status"] != "ok":
        reason = f"the baseline has no images ({baseline['status']}: {baseline['reason']})"
        fields |= {"status": "unsupported", "reason": reason}
    if fields["status"] != "ok":
        feature_files.write_features(output, {}, fields)
        return
    files = images.image_files(images_path)
    check_weights(weights_path, fetched)
    extractor = registry.load("extractors", name).load(fetched["settings"], device)
    fields |= {
        "library": extractor.library,
        "weights_sha256": extractor.weights_sha256,
        "resize": extractor.resize,
        "images_sha256": images.images_sha256(manifest),
        "prompts_sha256": manifest["prompts_sha256"],
        "reference": manifest.get("reference"),
        "method": manifest.get("method"),
        "baseline": baseline and {"method": baseline.get("method"), "images_sha256": images.images_sha256(baseline)},
        "device": device,
        "provenance": provenance(("torch", "torchvision", "clean-fid", "open_clip_torch", "pillow")),
    }
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    prompts = [entry["prompt"] for entry in manifest["images"]]
    if isinstance(extractor, Rater):
        others = prompts if baseline_path is None else images.paired_files(images_path, baseline_path)
        try:
            feature_files.write_features(output, rated(files, others, extractor, name), fields)
        except Unsupported as error:
            feature_files.write_features(output, {}, fields | {"status": "unsupported", "reason": str(error)})
        return
    with tempfile.TemporaryFile(dir=Path(output).parent) as file:
        tensors = tensors_of(features_of(files, extractor, name, file), prompts, extractor)
        fields["prompts_cut"] = extractor.cut  # number of truncated prompts
        feature_files.write_features(output, tensors, fields)


def check_weights(path: str | Path, fetched: Mapping[str, Any]) -> None:
    """Refuse weights that are missing on this machine or differ from the fetched files.

    Raises:
        DataError: the weights are missing or differ; the message says what to do.
    """
    folder = PROJECT / fetched["location"]
    if not folder.is_dir():
        raise DataError(
            f"{folder}: this machine cannot see the folder with the {fetched['extractor']}'s weights; "
            f"set HF_HOME, TORCH_HOME and XDG_CACHE_HOME to folders that all machines share, delete {path} and run "
            "again on a machine with a network connection."
        )
    verify_files(path, fetched["files"], folder)


def rated(files: Sequence[Path], others: Sequence[Any], rater: Any, name: str) -> dict[str, np.ndarray]:
    """The numbers [n] that a Rater gives image files together with prompts or the baseline's files."""
    parts = [
        rater.rate(files[first : first + CHUNK], others[first : first + CHUNK])
        for first in progress(range(0, len(files), CHUNK), description=f"{name} of images")
    ]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def features_of(files: Sequence[Path], extractor: Any, name: str, scratch: IO[bytes]) -> np.ndarray:
    """Features [n, d] float32 of image files, memory-mapped from `scratch`: a million images take ten gigabytes."""
    for first in progress(range(0, len(files), CHUNK), description=f"{name} features"):
        part = extractor.image(files[first : first + CHUNK])
        try:
            scratch.write(part)
            scratch.flush()
        except OSError as error:
            raise DataError(f"features of {len(files)} images cannot be written: {error.strerror}.") from error
    return np.memmap(scratch, np.float32, "r+").reshape(len(files), -1)


def tensors_of(image: np.ndarray, prompts: Sequence[str | None], extractor: Any) -> dict[str, np.ndarray]:
    """The arrays for `feature_files.write_features`, from the images' features [n, d] and their prompts."""
    tensors = {"image": image}
    if None not in prompts and (text := extractor.text(prompts)) is not None:
        tensors |= {"text": text, "quality": extractor.quality()}
    if (seen := extractor.classes(image)) is not None:
        tensors["classes"] = seen
        numbers = [int(prompt) for prompt in prompts if prompt is not None and prompt.strip().isdecimal()]
        if len(numbers) == len(prompts):
            tensors["asked"] = np.array(numbers)
            if (largest := tensors["asked"].max()) >= extractor.n_classes:
                raise DataError(
                    f"class {largest} is asked for, and the classifier knows {extractor.n_classes}, from 0; do the "
                    "prompts count from 1?"
                )
    return tensors


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True, help="manifest.json of the image set")
    parser.add_argument("--baseline", help="manifest.json of the baseline's images, for a network that reads pairs")
    parser.add_argument("--weights", required=True, help="EXTRACTOR.json of fetch_weights.py")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    parser.add_argument("--output", required=True, help="EXTRACTOR.json; EXTRACTOR-NAME.npy go to the same folder")
    args = parser.parse_args(argv)
    gpus.claim(args.device)
    extract(args.images, args.weights, args.device, args.output, args.baseline)


if __name__ == "__main__":
    command.run(main)
