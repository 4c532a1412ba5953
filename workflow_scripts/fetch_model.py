"""Make a model available locally and describe it: revision, files with sha256, sizes, quantizable layers."""

import argparse
import json
from pathlib import Path

from quantwatt import command, convolution, manifest
from quantwatt.families import BYTES, load_family
from quantwatt.manifest import DataError

ENDINGS = (".json", ".txt", ".model", ".safetensors")  # what is read of a part of a pipeline
# What is read of a text model: its weights, its configuration and its tokenizer, not its other forms.
TEXT_FILES = ("*.json", "*.txt", "model*.safetensors")


def fetch(settings):
    """Local folder of a model: its `path`, or a hub snapshot of exactly its revision.

    A hub token is read from the environment (HF_TOKEN) by huggingface_hub and never written.

    Raises:
        DataError: the folder is missing, or the hub refuses; says what to do.
    """
    index = getattr(load_family(settings["family"]), "INDEX", "model_index.json")
    if settings.get("path"):
        if not (Path(settings["path"]) / index).exists():
            library = "diffusers pipeline" if index == "model_index.json" else "transformers model"
            raise DataError(f"{settings['path']}: not a {library} (it has no {index}).")
        return settings["path"]
    from huggingface_hub import errors, hf_hub_download, snapshot_download

    where = f"{settings['hub']} at {settings['revision'][:12]}"
    try:
        if index != "model_index.json":
            return snapshot_download(
                settings["hub"], revision=settings["revision"], allow_patterns=TEXT_FILES, ignore_patterns=["*/*"]
            )
        listed = manifest.read_json(hf_hub_download(settings["hub"], index, revision=settings["revision"]))
        parts = [name for name, value in listed.items() if isinstance(value, list) and value[0]]
        if not settings.get("text_encoder_3", True):
            parts = [name for name in parts if not name.endswith("_3")]
        return snapshot_download(
            settings["hub"],
            revision=settings["revision"],
            allow_patterns=["model_index.json", *(f"{part}/*{end}" for part in parts for end in ENDINGS)],
            ignore_patterns=["*.fp16*"],
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


def describe(family, location, dtype):
    """Layers, blocks and size of the denoiser in its computing type, from its architecture alone."""
    denoiser = family.meta_denoiser(location)
    layers = {name: convolution.describe(denoiser.get_submodule(name)) for name in family.quantizable(denoiser)}
    for name, count in family.segments(denoiser).items():
        layers[name] |= {"segments": count} if count > 1 else {}
    for name, channels in family.skips(denoiser).items() if hasattr(family, "skips") else ():
        layers[name]["skips"] = list(channels)
    for name in family.first_token(denoiser) if hasattr(family, "first_token") else ():
        layers[name]["first_token"] = True
    if hasattr(family, "content"):
        content = set(family.content(denoiser))
        for name, layer in layers.items():
            layer["group"] = "content" if name in content else "quality"
    stored = {id(tensor): tensor for tensor in denoiser.state_dict(keep_vars=True).values()}  # a tied one once
    return {
        "layers": layers,
        "blocks": family.blocks(denoiser),
        "parameters": sum(p.numel() for p in denoiser.parameters()),
        "denoiser_bytes": sum(tensor.numel() for tensor in stored.values()) * BYTES[dtype],
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="name of the model in the experiment")
    parser.add_argument("--settings", required=True, type=json.loads, help="the model's entry, as JSON")
    parser.add_argument("--output", required=True, help="manifest.json to write")
    args = parser.parse_args(argv)
    location = Path(fetch(args.settings))
    names = sorted(str(p.relative_to(location)) for p in location.rglob("*") if p.name.endswith(ENDINGS))
    if not any(name.endswith(".safetensors") for name in names):
        raise DataError(f"{location}: has no safetensors weights, and pickled ones are never read.")
    for name in names:
        if name.endswith(".safetensors"):
            manifest.check_tensors(location / name, "fetch the model again.")
    manifest.write_json(
        args.output,
        {
            "model": args.model,
            "settings": args.settings,
            "location": str(location),
            **describe(load_family(args.settings["family"]), location, args.settings["dtype"]),
            "files": manifest.describe_files(location, names),
            "provenance": manifest.provenance(),
        },
    )


if __name__ == "__main__":
    command.run(main, fetches=True)
