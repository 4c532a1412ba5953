"""Make a model available locally and describe it: revision, files with sha256, sizes, quantizable layers."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantwatt.artifacts import manifest
from quantwatt.artifacts.dtypes import BYTES
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.provenance import provenance
from quantwatt.formats import convolution
from quantwatt.jobs import command
from quantwatt.models import adapters, model_folder, tensor_check, tokenizers
from quantwatt.models.families import load_family

if TYPE_CHECKING:
    from quantwatt.models.network import Network

ENDINGS = (".json", ".txt", ".model", ".safetensors")  # of files that are downloaded for a part of a pipeline
VARIANT_FILES = "*.fp16*"  # skipped if a part also has weights without a variant
# Files of a text model that are read: weights, configuration and tokenizer, but no weights in other file formats.
TEXT_FILES = ("*.json", "*.txt", "model*.safetensors")


def fetch(settings: Mapping[str, Any]) -> str:
    """The local folder of a model: its `path`, or a hub snapshot of exactly its revision.

    huggingface_hub reads a token from the environment (HF_TOKEN) and never writes it.

    Raises:
        DataError: the hub refuses the download or cannot be reached; tells what to do.
    """
    if settings.get("path"):
        return settings["path"]
    from huggingface_hub import errors, hf_hub_download, snapshot_download

    where = f"{settings['hub']} at {settings['revision'][:12]}"
    snapshot = {"repo_id": settings["hub"], "revision": settings["revision"]}
    try:
        if model_folder.index_of(settings["family"]) == model_folder.TEXT_MODEL:
            return snapshot_download(**snapshot, allow_patterns=list(TEXT_FILES), ignore_patterns=["*/*"])
        index = hf_hub_download(snapshot["repo_id"], model_folder.PIPELINE, revision=snapshot["revision"])
        parts = model_folder.listed_parts(Path(index).parent, settings)
        load_family(settings["family"]).check(Path(index).parent)  # before gigabytes are downloaded
        wanted = [model_folder.PIPELINE, *(f"{part}/*{end}" for part in parts for end in ENDINGS)]
        others = [] if settings.get("variant") else [VARIANT_FILES]
        folder = snapshot_download(**snapshot, allow_patterns=wanted, ignore_patterns=others)
        if others and (lacking := [part for part in parts if _is_without_weights(Path(folder, part))]):
            wanted = [f"{part}/*.safetensors*" for part in lacking]  # stored only as a variant, or not at all
            folder = snapshot_download(**snapshot, allow_patterns=wanted)
        return folder
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


def _is_without_weights(folder):
    """Whether a downloaded part has the configuration of a network, but no weights."""
    return (folder / "config.json").exists() and not any(folder.glob("*.safetensors"))


def describe(family: "Network", location: str | Path, dtype: str) -> dict[str, Any]:
    """Layers, blocks and size of a network in its computing dtype, from its architecture alone."""
    denoiser = family.meta_network(location)
    layers = {name: convolution.describe(denoiser.get_submodule(name)) for name in family.quantizable(denoiser)}  # ty: ignore
    for name, count in family.segments(denoiser).items():
        layers[name] |= {"segments": count} if count > 1 else {}
    for name, channels in family.skips(denoiser).items():
        layers[name]["skips"] = list(channels)
    for name in family.first_token(denoiser):
        layers[name]["first_token"] = True
    if (content := family.content(denoiser)) is not None:
        for name, layer in layers.items():
            layer["group"] = "content" if name in content else "quality"
    stored = {id(tensor): tensor for tensor in denoiser.state_dict(keep_vars=True).values()}  # tied tensors count once
    return {
        "layers": layers,
        "blocks": family.blocks(denoiser),
        "parameters": sum(p.numel() for p in denoiser.parameters()),
        "denoiser_bytes": sum(tensor.numel() for tensor in stored.values()) * BYTES[dtype],
    }


def denoiser_of(settings: Mapping[str, Any], location: str | Path) -> str | None:
    """The name of a pipeline's denoiser; None of a text model, which is one network."""
    family: Any = load_family(settings["family"])
    return family.denoiser_name(location) if hasattr(family, "denoiser_name") else None


def describe_components(settings: Mapping[str, Any], location: str | Path) -> dict[str, dict[str, Any]]:
    """{name: layers, blocks, parameters and bytes} of the components beside the denoiser that can be quantized."""
    from quantwatt.models import components

    found = {}
    for name, part in components.of(load_family(settings["family"]), settings, location).items():
        found[name] = describe(part, location, settings["dtype"])
        found[name]["bytes"] = found[name].pop("denoiser_bytes")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="name of the model in the experiment")
    parser.add_argument("--settings", required=True, type=json.loads, help="the model's entry, as JSON")
    parser.add_argument("--output", required=True, help="manifest.json to write")
    args = parser.parse_args(argv)
    location = Path(fetch(args.settings))
    adapter_files = [str(adapters.file_of(entry)) for entry in args.settings.get("adapters") or ()]
    parts = model_folder.parts(location, args.settings)
    checked = tensor_check.check(location, args.settings, parts)
    for name, part in checked.items():
        if part["variant"]:
            print(f"{name or args.model}: weights of the variant '{part['variant']}' are read", file=sys.stderr)
    tokenizers.check(args.settings, location)
    manifest.write_json(
        args.output,
        {
            "model": args.model,
            "settings": args.settings,
            "location": str(location),
            **describe(load_family(args.settings["family"]), location, args.settings["dtype"]),
            "denoiser": denoiser_of(args.settings, location),
            "components": describe_components(args.settings, location),
            "parts": checked,
            "files": manifest.describe_files(location, model_folder.read_files(location, args.settings)),
            **({"adapters": {path: manifest.sha256(path) for path in adapter_files}} if adapter_files else {}),
            "provenance": provenance(),
        },
    )


if __name__ == "__main__":
    command.run(main, fetches=True)
