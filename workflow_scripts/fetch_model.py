"""Make a model available locally and describe it: revision, files with sha256, sizes, quantizable layers."""

import argparse
import json
import os
from pathlib import Path

from quantwatt import command, manifest
from quantwatt.families import load_family
from quantwatt.manifest import DataError


def fetch(settings):
    """Local folder of a model: its `path`, or a hub snapshot of exactly its revision.

    A hub token is read from the environment (HF_TOKEN) by huggingface_hub and never written.

    Raises:
        DataError: the folder is missing, or the hub refuses; says what to do.
    """
    if settings.get("path"):
        if not (Path(settings["path"]) / "model_index.json").exists():
            raise DataError(f"{settings['path']}: not a diffusers pipeline (it has no model_index.json).")
        return settings["path"]
    from huggingface_hub import errors, snapshot_download

    where = f"{settings['hub']} at {settings['revision'][:12]}"
    try:
        return snapshot_download(
            settings["hub"],
            revision=settings["revision"],
            allow_patterns=["*.json", "*.txt", "*.model", "*/*.safetensors"],
        )
    except errors.GatedRepoError as error:
        raise DataError(
            f"{where}: the model is gated; accept its licence on the hub, then set HF_TOKEN in the environment."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DataError(f"{where}: no such repository, or it is private: check the name, or set HF_TOKEN.") from error
    except errors.RevisionNotFoundError as error:
        raise DataError(f"{where}: the repository has no such commit.") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        raise DataError(
            f"{where}: not on this machine and the hub cannot be reached ({type(error).__name__})."
        ) from error


def describe(family, location):
    """Layers, blocks and size of the denoiser, from its architecture alone."""
    denoiser = family.meta_denoiser(location)
    layers = {}
    for name in family.quantizable(denoiser):
        layer = denoiser.get_submodule(name)
        layers[name] = {"in_features": layer.in_features, "out_features": layer.out_features}
    return {
        "layers": layers,
        "blocks": family.blocks(denoiser),
        "parameters": sum(p.numel() for p in denoiser.parameters()),
        "denoiser_files": family.DENOISER_FOLDER,
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="name of the model in the experiment")
    parser.add_argument("--settings", required=True, type=json.loads, help="the model's entry, as JSON")
    parser.add_argument("--output", required=True, help="manifest.json to write")
    args = parser.parse_args(argv)
    location = Path(fetch(args.settings))
    names = sorted(str(p.relative_to(location)) for p in location.rglob("*") if p.is_file() and p.suffix != ".md")
    for name in names:
        if name.endswith((".bin", ".pt", ".pkl", ".ckpt")):
            raise DataError(f"{location / name}: only safetensors weights are read, never pickled ones.")
    details = describe(load_family(args.settings["family"]), location)
    files = manifest.describe_files(location, names)
    folder = details.pop("denoiser_files")
    size = sum(
        f["bytes"] for name, f in files.items() if name.startswith(f"{folder}/") and name.endswith(".safetensors")
    )
    manifest.write_json(
        args.output,
        {
            "model": args.model,
            "settings": args.settings,
            "location": os.path.relpath(location) if args.settings.get("path") else str(location),
            "denoiser_bytes": size,
            **details,
            "files": files,
            "provenance": manifest.provenance(),
        },
    )


if __name__ == "__main__":
    command.run(main)
