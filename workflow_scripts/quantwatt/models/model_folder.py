"""The contents of a model's folder: its parts, their classes and the files that loading reads.

Only file names and JSON files are read, no tensors, and no model library is imported: planning can refuse a folder
before any job starts.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantwatt import registry
from quantwatt.artifacts import linked_folders
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import read_json
from quantwatt.registry import schema

PIPELINE, TEXT_MODEL = "model_index.json", "config.json"  # the file that describes a folder's contents
STEMS = {"diffusers": ("diffusion_pytorch_model",), "transformers": ("model",)}  # of weight files' names, by library
# Classes of parts that have no weights: schedulers, tokenizers, image processors, guiders.
WITHOUT_WEIGHTS = re.compile(r"Scheduler|Tokenizer|Processor|FeatureExtractor|Guid(er|ance)")
VARIANT = r"(?P<variant>(?!.*-\d+-of-\d+)[\w-]+)"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Files of a part that loading never reads: weights in other file formats, notes, images.
NEVER_READ = (*PICKLES, ".msgpack", ".h5", ".onnx", ".onnx_data", ".gguf", ".md", ".png", ".jpg", ".jpeg", ".webp")
# The checker that blackens images, and the extractor that prepares its inputs: pipelines are loaded without them.
CENSOR = ("safety_checker", "feature_extractor")
DENOISERS = ("transformer", "unet")  # usual names of a pipeline's denoiser
LFS_POINTER, POINTER_BYTES = b"version https://git-lfs", 1024


@dataclass(frozen=True)
class Weights:
    """files: names in the part's folder, an index before its shards; variant: in their names, None without one."""

    files: tuple[str, ...]
    variant: str | None


@dataclass(frozen=True)
class Part:
    """A part of a pipeline, or a whole text model.

    folder: of its files; library, kind: library and name of its class; weights: None for a part without weights
    (schedulers, tokenizers).
    """

    folder: Path
    library: str
    kind: str
    weights: Weights | None


def parts(folder: str | Path, settings: Mapping[str, Any]) -> dict[str, Part]:
    """The parts of a model's folder that its settings load, each with its weights.

    Args:
        folder: of a diffusers pipeline or a transformers model, on this machine.
        settings: a model's completed entry.
    Returns:
        {name: Part}; a text model is one part with the name "".
    Raises:
        DataError: the folder does not fit the family or is incomplete; the sentence tells what to do.
    """
    folder = Path(folder)
    _check_is_folder(folder, settings["family"])
    if index_of(settings["family"]) == TEXT_MODEL:
        _check_text_model(folder, settings["family"])
        kind = schema(f"families/{settings['family']}")["x-classes"][0]
        return {"": Part(folder, "transformers", kind, weights(folder, "transformers", kind, settings))}
    listed = listed_parts(folder, settings)
    loaded = {
        name: Part(folder / name, library, kind, _part_weights(folder, name, library, kind, settings))
        for name, (library, kind) in listed.items()
    }
    named, variants = (
        settings.get("variant"),
        sorted({part.weights.variant or "" for part in loaded.values() if part.weights}),
    )
    if named and named not in variants:
        known = ", ".join(filter(None, variants)) or "only plain ones"
        raise DataError(f"{folder}: variant: no part has weights of variant '{named}' (there are: {known}).")
    return loaded


def weighted_parts(folder: str | Path, settings: Mapping[str, Any], without: Collection[str] = ()) -> dict[str, Part]:
    """{name: Part} of a pipeline's parts with weights and a folder, except the names in `without`.

    Raises:
        DataError: a part's weights are incomplete.
    """
    return {
        name: Part(Path(folder) / name, library, kind, weights(Path(folder) / name, library, kind, settings))
        for name, (library, kind) in _named_parts(folder).items()
        if name not in without and (Path(folder) / name).is_dir() and not WITHOUT_WEIGHTS.search(kind)
    }


def read_files(folder: str | Path, settings: Mapping[str, Any]) -> list[str]:
    """The names, relative to a model's folder, of all files that loading the model may read, sorted.

    Raises:
        DataError: see `parts`.
    """
    folder, files = Path(folder), set()
    if index_of(settings["family"]) == PIPELINE:
        files.add(PIPELINE)
    for name, part in parts(folder, settings).items():
        chosen = part.weights.files if part.weights else ()
        for file in linked_folders.names(part.folder):
            foreign = any(word.startswith(".") for word in Path(file).parts) or (not name and "/" in file)
            if file in chosen or not (foreign or file.endswith((".safetensors", *NEVER_READ))):
                files.add(str(Path(name) / file))
    return sorted(files)


def index_of(family: str) -> str:
    """The name of the file that describes a model folder of this family."""
    return TEXT_MODEL if schema(f"families/{family}").get("x-kind") == "text" else PIPELINE


def left_out(settings: Mapping[str, Any]) -> list[str]:
    """Parts of a pipeline that the settings do not load; "x-parts" in the family's schema links keys to parts."""
    properties = schema(f"families/{settings['family']}")["properties"]
    return [name for key, entry in properties.items() if not settings.get(key) for name in entry.get("x-parts", ())]


def listed_parts(folder: str | Path, settings: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """{name: (library, class)} of the parts that a pipeline's model_index.json names and the settings load.

    Raises:
        DataError: the pipeline's class does not belong to the family, or it lacks a part that the settings load.
    """
    index = Path(folder) / PIPELINE
    _check_class(_read_mapping(index).get("_class_name"), index, settings["family"])
    named = _named_parts(folder)
    for key, entry in schema(f"families/{settings['family']}")["properties"].items():
        missing = [name for name in entry.get("x-parts", ()) if settings.get(key) and name not in named]
        if missing:
            raise DataError(f"{folder}: {key}: the pipeline has no {missing[0]}; set {key}: false.")
    censor = CENSOR if "safety_checker" in named else ()
    return {name: value for name, value in named.items() if name not in (*left_out(settings), *censor)}


def networks(folder: str | Path, settings: Mapping[str, Any]) -> tuple[str, list[str]] | None:
    """Return (the denoiser's name, names of the other parts with weights) of a pipeline's folder, from its index.

    None where the denoiser has an unusual name, which the classes of the parts alone tell.

    Raises:
        DataError: as `listed_parts`.
    """
    listed = listed_parts(folder, settings).items()
    named = [name for name, (_, kind) in listed if not WITHOUT_WEIGHTS.search(kind)]
    denoiser = next((name for name in DENOISERS if name in named), None)
    return denoiser and (denoiser, [name for name in named if name != denoiser])


def _named_parts(folder):
    """{name: (library, class)} of all parts in model_index.json; a part [null, null] is absent."""
    return {
        name: tuple(value)
        for name, value in _read_mapping(Path(folder) / PIPELINE).items()
        if not name.startswith("_") and isinstance(value, list) and [type(word) for word in value] == [str, str]
    }


def _check_is_folder(folder, family):
    index = index_of(family)
    if (folder / index).is_file():
        return
    if folder.is_file():
        raise DataError(f"{folder}: is one file, and a folder with {index} is needed{_from_file(folder, family)}.")
    library = "diffusers pipeline" if index == PIPELINE else "transformers model"
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    single = next((path for path in inside if path.suffix == ".safetensors"), None)
    if not inside:
        hint = ": the folder is empty" if folder.is_dir() else ": there is no such folder"
    elif index == PIPELINE and single and not (folder / TEXT_MODEL).exists():
        hint = _from_file(single, family)
    elif index == PIPELINE and (folder / TEXT_MODEL).exists():
        hint = "; it holds a model alone: give the folder of the whole pipeline"
    elif index == TEXT_MODEL and (folder / PIPELINE).exists():
        hint = "; it holds a diffusers pipeline: name a family of image models"
    else:
        hint = ""
    raise DataError(f"{folder}: not a {library} (it has no {index}){hint}.")


def _from_file(path, family):
    """How to convert a single file to a folder: the end of a sentence."""
    kinds = schema(f"families/{family}").get("x-classes", ["DiffusionPipeline"])
    if path.suffix != ".safetensors" or index_of(family) == TEXT_MODEL:
        return "; save the model with save_pretrained, in safetensors"
    return f"; make one: diffusers.{kinds[0]}.from_single_file('{path}').save_pretrained(FOLDER)"


def _check_class(kind, file, family):
    """Refuse a pipeline whose class is not in the family's schema, where the schema names classes."""
    if not isinstance(kind, str):
        reason = "names no class" if kind is None else "names a class of the model's own code, which is never run"
        raise DataError(f"{file}: _class_name: it {reason}; save the pipeline anew with save_pretrained.")
    expected = schema(f"families/{family}").get("x-classes")
    if expected and kind not in expected:
        raise DataError(
            f"{file}: _class_name: family '{family}' takes {' or '.join(expected)}, and this is {kind}; "
            f"{_other_family(kind, PIPELINE)}."
        )


def _check_text_model(folder, family):
    """Refuse a text model whose type or class is not in the family's schema."""
    config, known = _read_mapping(folder / TEXT_MODEL), schema(f"families/{family}")
    kind = config.get("model_type")
    expected, named = known["x-classes"], config.get("architectures")
    if kind is not None and kind != known["x-model-type"]:
        other = _other_family(((named or [None])[0]), TEXT_MODEL)
        raise DataError(
            f"{folder / TEXT_MODEL}: model_type: family '{family}' takes {known['x-model-type']}, and this is {kind}; "
            f"{other}."
        )
    if isinstance(named, list) and named and not set(named) & set(expected):
        raise DataError(
            f"{folder / TEXT_MODEL}: architectures: family '{family}' takes {' or '.join(expected)}, and this is "
            f"{named[0]}; give a model that was trained and saved as {expected[0]}."
        )


def _other_family(kind, index):
    """Which family takes a class: the end of a sentence."""
    families = registry.names("families")
    takes = next((name for name in families if kind in schema(f"families/{name}").get("x-classes", ())), None)
    if takes:
        return f"write family: {takes}"
    if index == PIPELINE:
        return "family 'diffusers' takes any pipeline that draws images from texts or classes"
    texts = [name for name in families if index_of(name) == TEXT_MODEL]
    return f"families of text models are {', '.join(texts)}"


def _part_weights(folder, name, library, kind, settings):
    """The weights of a pipeline's part, or None for a class without weights."""
    if not (folder / name).is_dir():
        properties = schema(f"families/{settings['family']}")["properties"].items()
        key = next((key for key, entry in properties if name in entry.get("x-parts", ())), None)
        hint = f"; set {key}: false to leave it out, or fetch it" if key else "; fetch the model again"
        raise DataError(f"{folder / name}: {PIPELINE} names this part ({kind}), and the folder is missing{hint}.")
    if WITHOUT_WEIGHTS.search(kind):
        return None
    return weights(folder / name, library, kind, settings)


def weights(folder: Path, library: str, kind: str, settings: Mapping[str, Any]) -> Weights:
    """The weight files that are read from the folder of a part or a text model.

    Args:
        library, kind: library and name of the class that loads the weights.
        settings: its key `variant` selects among several variants.
    Returns:
        Weights.
    Raises:
        DataError: weights are missing, incomplete or not in safetensors; or they are quantized, or an adapter.
    """
    if not (folder / TEXT_MODEL).is_file():
        raise DataError(f"{folder}: has no {TEXT_MODEL}, which {kind} is built by; fetch the model again.")
    config = _read_mapping(folder / TEXT_MODEL)
    quantized = config.get("quantization_config")
    if quantized:
        how = quantized.get("quant_method", "some library") if isinstance(quantized, dict) else "some library"
        raise DataError(
            f"{folder / TEXT_MODEL}: quantization_config: these weights are quantized already ({how}); "
            "give the model that they were made of."
        )
    if (folder / "adapter_config.json").exists():
        raise DataError(
            f"{folder}: holds an adapter (adapter_config.json) beside the model; merge it (PEFT's merge_and_unload), "
            "and save the whole model."
        )
    stems = STEMS.get(library, (*STEMS["diffusers"], *STEMS["transformers"]))
    if file := config.get("transformers_weights"):  # transformers loads the file named here, even outside the folder
        wanted = f"{stems[0]}.safetensors"
        raise DataError(f"{folder / TEXT_MODEL}: transformers_weights: '{file}'; drop the key, and name it {wanted}.")
    return _chosen(folder, stems, kind, settings.get("variant"))


def _chosen(folder, stems, kind, asked):
    """Choose among the stored variants of the weights.

    The order of preference: the variant in the settings, the weights without a variant, the only other variant.
    """
    stored = _stored(folder, stems)
    if not stored:
        raise DataError(f"{folder}: {_no_weights(folder, stems, kind)}")
    variant = asked if asked in stored else None
    if variant is None and None not in stored:
        if len(stored) > 1:
            raise DataError(
                f"{folder}: has weights of the variants {', '.join(sorted(stored))} and no plain ones; "
                f"name one of them (variant: {min(stored)})."
            )
        [variant] = stored
    files = (stored[variant],)
    if stored[variant].endswith(".json"):
        files += _shards(folder, stored[variant])
    for file in files:
        _check_is_no_pointer(folder / file)
    return Weights(files, variant)


def _stored(folder, stems):
    """{variant: weight file, or the index of its shards} of a part, by the same rules as its library."""
    stored, names = {}, sorted(path.name for path in folder.iterdir())
    for stem in stems:
        single = rf"{stem}(\.{VARIANT})?\.safetensors"
        index = rf"{stem}\.safetensors(\.{VARIANT})?\.index\.json|{stem}\.safetensors\.index(\.{VARIANT})?\.json"
        index = index.replace("variant>", "legacy>", 1)
        # Where a folder has both, diffusers reads the shards and transformers the single file. The last pattern wins.
        patterns = (single, index) if stem == "diffusion_pytorch_model" else (index, single)
        for pattern in patterns:
            for name in names:
                if match := re.fullmatch(pattern, name):
                    groups = match.groupdict()
                    stored[groups["variant"] or groups.get("legacy")] = name
    return stored


def _no_weights(folder, stems, kind):
    names = sorted(path.name for path in folder.iterdir())
    wanted = " or ".join(f"{stem}.safetensors" for stem in stems)
    if others := [name for name in names if name.endswith(".safetensors")]:
        return f"has no {wanted}, and {others[0]} is not read under this name; rename it, or save the model anew."
    if pickles := [name for name in names if name.endswith(PICKLES)]:
        return (
            f"its weights are in {pickles[0]} only, and pickled ones are never read; save it as safetensors "
            f"({kind}.from_pretrained(...).save_pretrained(...), where you trust the file)."
        )
    return f"has no weights ({wanted} is missing); fetch the model again."


def _shards(folder, index):
    """The files that the index of sharded weights names."""
    named = _read_mapping(folder / index).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(file, str) for file in named.values()):
        raise DataError(f"{folder / index}: has no weight_map of tensors and files; fetch the model again.")
    files = tuple(sorted(set(named.values())))
    for file in files:
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise DataError(f"{folder / index}: names '{file}', which is no safetensors file of its folder.")
        if not (folder / file).is_file():
            raise DataError(f"{folder / index}: names {file}, and the file is missing; fetch the model again.")
    return files


def _check_is_no_pointer(path):
    if path.stat().st_size < POINTER_BYTES and path.read_bytes().startswith(LFS_POINTER):
        raise DataError(
            f"{path}: is a pointer of Git LFS and not the weights; run `git lfs pull` in the model's folder."
        )


def _read_mapping(path):
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object, got {json.dumps(value)[:40]}; fetch the model again.")
    return value
